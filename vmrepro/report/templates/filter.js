"use strict";
{
  const form = document.querySelector("#filter");
  const articles = [...document.querySelectorAll("article[data-lines]")];
  const sections = [...document.querySelectorAll("section[data-topic]")];
  const wanted = new URLSearchParams(location.search);
  for (const name of ["verdict", "basis", "topic"]) {
    const choice = form.elements[name];
    if ([...choice.options].some((option) => option.value === wanted.get(name))) choice.value = wanted.get(name);
  }
  const apply = () => {
    const { verdict, basis, topic, words } = Object.fromEntries(new FormData(form));
    const text = words.trim().toLowerCase();
    const line = (entry) => (!basis || entry.startsWith(basis + ":")) && (!verdict || entry.endsWith(":" + verdict));
    let shown = 0;
    for (const article of articles) {
      const fits =
        article.dataset.lines.split(" ").some(line) &&
        (!topic || article.dataset.topic === topic) &&
        (!text || article.textContent.toLowerCase().includes(text));
      article.hidden = !fits;
      shown += fits;
    }
    for (const section of sections) section.hidden = !section.querySelector("article:not([hidden])");
    form.elements.count.value = `${shown} of ${articles.length} claims`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  form.hidden = false;
  apply();
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}
