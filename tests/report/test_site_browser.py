"""The site in a browser: Chromium, headless, driven by Selenium; skipped where one of the two is missing.

VMREPRO_SCREENSHOTS=FOLDER keeps a picture of every page at both widths and in both colour schemes.
"""

import os
import shutil
from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from vmrepro.report import site_data

pytestmark = pytest.mark.slow
WIDE, NARROW = (1280, 900), (390, 844)  # CSS pixels of a desktop and of a phone
PAGES = ("index", "claims", "errata", "runs", "speed", "not_run", *(result.id for result in site_data.RESULTS))


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed: pip install selenium")
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no Chromium with its driver: on Debian, apt-get install --no-install-recommends chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's sandbox refuses root, as in a container
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def show(browser, site_folder):
    """A function that opens a page, such as "claims.html?verdict=supported#C06", on a screen; it returns the browser."""

    def show(page: str, size=WIDE, scheme="light"):
        screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == NARROW}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get("about:blank")  # so that a page that differs by its fragment only is loaded again
        browser.get(f"{site_folder.as_uri()}/{page}")
        return browser

    return show


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_pages_load_without_complaint_and_do_not_scroll_sideways(show, size, scheme):
    for name in PAGES:
        browser = show(f"{name}.html", size, scheme)
        assert browser.get_log("browser") == [], name
        assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0], name
        broken = "return [...document.images].filter((image) => !image.complete || !image.naturalWidth).map((image) => image.src)"
        assert browser.execute_script(broken) == [], name
        if keep := os.environ.get("VMREPRO_SCREENSHOTS"):
            Path(keep).mkdir(parents=True, exist_ok=True)
            browser.save_screenshot(f"{keep}/{name}_{size[0]}_{scheme}.png")


def test_every_link_can_be_followed(show, browser):
    targets = defaultdict(set)
    for name in PAGES:
        for link in show(f"{name}.html").execute_script("return [...document.links].map((link) => link.href)"):
            page, fragment = urldefrag(link)
            targets[page.partition("?")[0]].add(fragment)
    assert {Path(urlsplit(page).path).stem for page in targets if page.endswith(".html")} == set(PAGES)
    missed = """
        const fits = (id) => { location.hash = id; return document.querySelector(":target")?.id === id; };
        return arguments[0].filter((id) => id && !fits(id));
    """
    for page, fragments in targets.items():
        if page.endswith(".html"):
            browser.get(page)
            assert browser.execute_script(missed, sorted(fragments)) == [], page
        else:
            assert Path(unquote(urlsplit(page).path)).is_file(), page
    assert browser.get_log("browser") == []


def visible(browser) -> list[str]:
    """What the filter is to look at of every claim that is shown: basis and verdict of its judgements."""
    return browser.execute_script(
        "return [...document.querySelectorAll('article')].filter((a) => a.offsetParent).map((a) => a.dataset.lines)"
    )


def test_claims_are_filtered_by_what_the_address_says(show):
    everything = visible(show("claims.html"))
    shown = visible(show("claims.html?basis=mini&verdict=within-seed-spread"))
    assert shown == [lines for lines in everything if "mini:within-seed-spread" in lines.split()]
    assert 0 < len(shown) < len(everything)
    browser = show("claims.html?basis=paper&verdict=contradicted")
    assert visible(browser) == [lines for lines in everything if "paper:contradicted" in lines.split()]
    count = browser.execute_script("return document.querySelector('output').value")
    assert count == f"{len(visible(browser))} of {len(everything)} claims"


def test_claims_are_filtered_by_hand_and_shown_again(show):
    browser = show("claims.html")
    everything = visible(browser)
    choose = """
        const form = document.querySelector('#filter');
        form.elements[arguments[0]].value = arguments[1];
        form.dispatchEvent(new Event('input'));
    """
    browser.execute_script(choose, "topic", "retrieval")
    of_topic = visible(browser)
    assert 0 < len(of_topic) < len(everything)
    browser.execute_script(choose, "words", "no claim says this")
    assert visible(browser) == []
    assert browser.execute_script("return [...document.querySelectorAll('section')].every((part) => part.hidden)")
    browser.execute_async_script("document.querySelector('#filter').reset(); setTimeout(arguments[0], 50)")
    assert visible(browser) == everything


def test_a_linked_claim_comes_into_view(show):
    browser = show("claims.html#C80", NARROW)
    top, height = browser.execute_script("return [document.querySelector('#C80').getBoundingClientRect().top, innerHeight]")
    assert 0 <= top < height


def test_a_wide_table_scrolls_in_its_own_box_and_keeps_its_heads(show):
    browser = show("table3.html", NARROW)
    box, head, first = browser.execute_script("""
        const box = document.querySelector(".scroll");
        box.scrollTo(400, 300);
        const corner = (found) => [found.getBoundingClientRect().left, found.getBoundingClientRect().top];
        const heads = ["thead th", "tbody th"].map((name) => corner(box.querySelector(name)));
        return [[...corner(box), box.scrollLeft, box.scrollTop], ...heads];
    """)
    assert box[2:] == [400, 300]  # it is wider and higher than its box
    assert head == pytest.approx(box[:2], abs=2)
    assert first[0] == pytest.approx(box[0], abs=2)


def test_the_colour_scheme_of_the_reader_is_followed(show):
    def brightness(scheme: str) -> float:
        colour = show("index.html", WIDE, scheme).execute_script("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(",")))

    assert brightness("light") > 600
    assert brightness("dark") < 150
