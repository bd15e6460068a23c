"""The page of a sweep in a real browser: it shows to everybody, and leads to every run's report."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedprune.cli import main
from tests.e2e.test_report_page import CHROMIUM, CONTRASTS, told
from tests.support.browser import Page, browse
from tests.support.runs import run

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="no Chromium: apt-get install chromium, or set FEDPRUNE_CHROMIUM to its path",
    ),
]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep's folder with a failed run."""
    folder = tmp_path_factory.mktemp("sweep")
    points = [(n, s, p) for n in (0, 1) for s in ("fedprllm", "fedspallm") for p in ("0.5", "0.7")]
    for number, (seed, strategy, sparsity) in enumerate(points):
        overrides = [f"strategy={strategy}", f"sparsity={sparsity}", f"seed={seed}"]
        run(folder / f"{number}=a,b", None, *overrides, pruned=20 + 200 * float(sparsity) + seed)
    (folder / "7=a,b" / "results.json").unlink()
    (folder / "7=a,b" / "failure.json").write_text('{"reason": "no <quorum>"}')
    assert main(["sweep", "--collect", str(folder)]) == 1
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with browse(str(CHROMIUM)) as page:
        yield page


@pytest.fixture
def page(sweep: Path, browser: Page) -> Page:
    browser.resize(1100)
    browser.emulate()
    browser.open(sweep / "sweep.html")
    return browser


def test_it_shows_without_complaints_and_without_the_network(page: Page) -> None:
    assert "7 of 8 runs" in page.run("document.querySelector('header').innerText")
    assert not told(page, "Runtime.consoleAPICalled")
    assert not told(page, "Runtime.exceptionThrown")
    assert not [found["entry"]["text"] for found in told(page, "Log.entryAdded")]
    (only,) = told(page, "Network.requestWillBeSent")
    assert only["request"]["url"].startswith("file://")


def test_its_links_lead_to_reports_and_sections(page: Page) -> None:
    inside = "[...document.links].filter(a => a.hash)"
    assert page.run(f"{inside}.filter(a => !document.querySelector(a.hash)).length") == 0
    reports = page.run("[...document.links].filter(a => !a.hash).map(a => a.href)")
    assert len(reports) == 7
    page.run("[...document.links].find(a => !a.hash).click()")
    while not page.run("document.title").startswith("demo"):
        page.run("new Date()")
    assert page.run("document.querySelector('h1').innerText").startswith("demo, ")


@pytest.mark.parametrize("width", [360, 768])
def test_it_fits_a_narrow_window(page: Page, width: int) -> None:
    page.resize(width)
    page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.run("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_told_from_what_it_stands_on(page: Page, scheme: str) -> None:
    page.emulate(scheme)
    found = page.run(CONTRASTS)
    assert len(found) > 50
    assert [(text, ratio) for text, ratio in found if ratio < 4.5] == []


def test_curves_are_drawn_in_the_colours_of_the_scheme(page: Page) -> None:
    curves = """[...document.querySelectorAll('.wide path[stroke="var(--k0)"]')]"""
    stroke = f"getComputedStyle({curves}[0]).stroke"
    light = page.run(stroke)
    page.emulate("dark")
    assert "rgb" in light and page.run(stroke) != light
    assert page.run(f"Math.max(...{curves}.map(e => e.getBoundingClientRect().width))") > 300


def test_a_phone_gets_the_narrow_drawing_and_no_text_is_small(page: Page) -> None:
    shown = "[...document.querySelectorAll('.drawn svg')].filter(e => e.checkVisibility())"
    for width, shape in ((390, "narrow"), (1100, "wide"), (760, "wide")):
        page.resize(width)
        assert set(page.run(f"{shown}.map(e => e.parentElement.className)")) == {shape}
        heights = f"{shown}.flatMap(e => [...e.querySelectorAll('text')])"
        heights += ".map(e => e.getBoundingClientRect().height)"
        assert min(page.run(heights)) > 10
    page.resize(390)
    page.emulate("light", "print")
    assert set(page.run(f"{shown}.map(e => e.parentElement.className)")) == {"wide"}


def test_drawings_and_tables_say_what_they_are(page: Page) -> None:
    for node in page.call("Accessibility.getFullAXTree")["nodes"]:
        if node.get("role", {}).get("value") in {"image", "region", "table", "navigation"}:
            assert node.get("ignored") or node.get("name", {}).get("value"), node
