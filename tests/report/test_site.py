"""The site as files: links, anchors, verdicts, bytes. How a browser shows it is in test_site_browser.py."""

import html
import re
import resource
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from vmrepro import paths
from vmrepro.paper import claims, reference
from vmrepro.report import figures, site, site_data, verify

COMMITTED = paths.root() / "figures"


class Parsed(HTMLParser):
    """Links, sources, ids and elements of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.sources, self.ids, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        self.links += [found["href"]] if tag == "a" else []
        self.sources += [found[name] for name in ("src", "srcset", "data", "action") if name in found]
        self.sources += [found["href"]] if tag == "link" else []
        self.ids += [found["id"]] if "id" in found else []


@pytest.fixture(scope="module")
def pages(site_folder) -> dict[str, Parsed]:
    return {file.name: Parsed(file.read_text(encoding="utf-8")) for file in site_folder.glob("*.html")}


def broken_links(folder: Path, pages: dict[str, Parsed]) -> list[str]:
    """Every link that does not lead to a file, or to an id on a page of the site."""
    broken = []
    for name, page in pages.items():
        for link in page.links + page.sources:
            parts = urlsplit(link)
            if parts.scheme == "data":
                continue
            target = unquote(parts.path) or name
            is_file = not parts.scheme and not parts.netloc and not target.startswith("/") and (folder / target).is_file()
            if not is_file or (parts.fragment and parts.fragment not in pages[target].ids):
                broken.append(f"{name}: {link}")
    return broken


def test_every_link_leads_somewhere_beside_the_page(site_folder, pages):
    assert len(pages) == 6 + len(site_data.RESULTS)
    assert sum(len(page.links) for page in pages.values()) > 1000
    assert broken_links(site_folder, pages) == []


@pytest.mark.parametrize("link", ["gone.html", "claims.html#C999", "https://example.org/", "/figures/index.html", "#nowhere"])
def test_a_broken_link_is_found(site_folder, pages, link):
    page = Parsed(f'<a href="{link}">x</a>')
    assert broken_links(site_folder, {**pages, "index.html": page})[0] == f"index.html: {link}"


def test_no_page_fetches_anything_from_elsewhere(site_folder):
    for file in site_folder.glob("*.html"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"""(https?:)?//[a-z]|@import|url\(""", text), file.name


def test_ids_are_unique_on_a_page(pages):
    for name, page in pages.items():
        assert len(page.ids) == len(set(page.ids)), name


def test_every_claim_row_erratum_and_run_can_be_linked_to(pages):
    assert {claim.id for claim in claims.claims()} <= set(pages["claims.html"].ids)
    assert {entry.id for entry in reference.errata()} <= set(pages["errata.html"].ids)
    for name in reference.tables():
        assert {row.id for row in reference.table(name)} <= set(pages[f"{site_data.result_of(name)}.html"].ids)
    runs = figures.load("fig6", "mini").origin["runs"]
    assert {run["id"] for run in runs} <= set(pages["runs.html"].ids)


def test_every_judgement_is_on_the_page_of_claims(pages):
    shown = {found["id"]: found["data-lines"].split() for tag, found in pages["claims.html"].tags if tag == "article"}
    expected = {}
    for line in verify.judgements():
        expected.setdefault(line.claim, []).append(f"{line.basis}:{line.verdict.replace(' ', '-')}")
    assert shown == expected


def test_what_touches_a_table_is_on_its_page(pages):
    on_page = set(pages["table2.html"].ids)
    assert {"C29", "C28", "E13", "E12"} <= on_page
    assert "C46" not in on_page  # of Table 4


def test_every_result_links_the_notebook_that_computes_it(pages):
    linked = {
        result.id: [link for link in pages[f"{result.id}.html"].links if link.endswith(".ipynb")] for result in site_data.RESULTS
    }
    sources = sorted(file.name for file in paths.notebooks().glob("*.ipynb"))
    assert sorted(link for links in linked.values() for link in links) == [f"../notebooks/{name}" for name in sources]
    assert linked["fig6"] == ["../notebooks/fig6_distill.ipynb"]


def test_every_recorded_speed_is_on_its_page(site_folder, pages):
    text = html.unescape((site_folder / "speed.html").read_text(encoding="utf-8"))
    recorded = sorted(file.stem for file in (COMMITTED / "speed").glob("*.csv"))
    assert recorded == sorted(site_data.SPEEDS)
    for name in recorded:
        saved = figures.load("speed", name)
        assert {f"speed/{name}.csv", f"speed/{name}.json"} <= set(pages["speed.html"].links)
        assert saved.origin["runs"][0]["commit"] in text
        assert all(str(line) in text for line in saved.numbers.iloc[:, 0])
        rates = saved.numbers["clips_per_second" if name == "decoders" else "ours"]
        assert all(f'<td class="number">{rate:.4g}</td>' in text for rate in rates)
    for page in ("index.html", "runs.html"):
        assert pages[page].links.count("speed.html") == 2  # in the navigation and in the text


def test_provenance_and_what_was_not_run_are_written_out(site_folder):
    runs = (site_folder / "runs.html").read_text(encoding="utf-8")
    origin = figures.load("fig6", "mini").origin["runs"][0]
    for fact in (origin["commit"], origin["device"]["name"], origin["versions"]["torch"], "vmrepro run fig6 --tier mini"):
        assert fact in runs
    not_run = (site_folder / "not_run.html").read_text(encoding="utf-8")
    assert "vmrepro run fig6 --tier paper" in not_run
    assert "no experiment yet" in not_run


def test_without_scripts_every_claim_is_shown_and_the_filter_is_not(pages):
    tags = pages["claims.html"].tags
    assert [found.get("hidden", "missing") for tag, found in tags if tag == "form"] == [None]
    assert not any("hidden" in found for tag, found in tags if tag in ("article", "section"))


def test_every_verdict_and_basis_has_its_word_and_sign():
    assert set(site.TONES) == set(claims.Verdict)
    assert {line.basis for line in verify.judgements()} <= set(site.BASES)
    style = (site.TEMPLATES / "style.css").read_text()
    for tone in set(site.TONES.values()):
        assert re.search(rf'\.{tone}::before {{ content: "\S"; }}', style)


def luminance(colour: str) -> float:
    """Relative luminance of a #rrggbb colour, after WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_words_stand_out_from_every_ground_in_both_colour_schemes():
    schemes = re.findall(r":root {(.*?)}", (site.TEMPLATES / "style.css").read_text(), re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#\w{6})", scheme))
        for ground in ("page", "panel", "own"):
            for word in ("ink", "quiet", "link", *set(site.TONES.values())):
                dark, light = sorted((luminance(colours[ground]), luminance(colours[word])))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (word, ground)


def test_two_builds_are_equal_and_name_no_machine(site_folder, build_site, tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    again = build_site(tmp_path / "elsewhere")
    for file in site_folder.glob("*.html"):
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name
        for place in (str(paths.root()), str(site_folder), sys.prefix):
            assert place not in file.read_text(encoding="utf-8")


def test_a_site_without_records_is_whole_too(figure_folder):
    pages = {file.name: Parsed(file.read_text(encoding="utf-8")) for file in site.build()}
    assert broken_links(figure_folder, pages) == []
    assert "Nothing of this figure is computed here yet" in (figure_folder / "fig6.html").read_text(encoding="utf-8")


def test_texts_are_escaped_and_ids_in_them_linked():
    shown = site._linked("<b> t2_25 & C01x; Tables 3 and 4, Fig. 6a", {"t2_25": "table2.html#t2_25"}, {"table3", "fig6"})
    assert shown == (
        '&lt;b&gt; <a href="table2.html#t2_25">t2_25</a> &amp; C01x; '
        'Tables <a href="table3.html">3</a> and 4, <a href="fig6.html">Fig. 6a</a>'
    )


def test_what_a_record_says_is_shown_as_text(figure_folder):
    shutil.copytree(COMMITTED / "fig6", figure_folder / "fig6", ignore=shutil.ignore_patterns("smoke.*"))
    origin = figure_folder / "fig6" / "mini.json"
    origin.write_text(origin.read_text().replace("NVIDIA H200", "<script>alert(1)</script>"))
    site.build()
    runs = (figure_folder / "runs.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in runs
    assert "<script>alert" not in runs


@pytest.mark.slow
def test_report_writes_pictures_tables_and_pages_quickly_and_without_torch(tmp_path, monkeypatch):
    target = tmp_path / "figures"
    shutil.copytree(COMMITTED, target, ignore=shutil.ignore_patterns("smoke.*", "*.html", "*.png", "*.svg", "*.tex"))
    monkeypatch.setenv("VMREPRO_FIGURES", str(target))
    code = "import sys; from vmrepro import cli; assert cli.main(['report']) == 0; assert 'torch' not in sys.modules"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], cwd=paths.root(), capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert str(target / "index.html") in done.stdout
    for made in ("index.html", "fig6/mini.png", "fig6/mini.svg", "table3/table3.tex"):
        assert (target / made).is_file()
    # Processor time, which is what a quiet machine takes; others may be busy on this one.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20
