"""Pages in a real browser: they show runs and sweeps, to everybody, and ask for nothing."""

import json

import pytest

from fedprune.cli import main
from fedprune.report.page import write_report
from tests.support.browser import Page, browse, find_chromium
from tests.support.jobs import job
from tests.support.reports import made_up
from tests.support.runs import run

CHROMIUM = find_chromium()
HOSTILE = '<img src="http://example.invalid/x" onerror=alert(1)><script>alert(2)</script>'

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="no Chromium: apt-get install chromium, or set FEDPRUNE_CHROMIUM to its path",
    ),
]

# Every visible text with its colour and what it stands on: its cell of a heat map, or the closest
# element around it that has a background.
CONTRASTS = """
(() => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => {
    const [r, g, b] = channels(colour).slice(0, 3).map(
      v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    if (element.classList.contains('on')) {
      const box = element.getBoundingClientRect();
      const x = box.x + box.width / 2, y = box.y + box.height / 2;
      for (const rect of element.ownerSVGElement.querySelectorAll('rect')) {
        const r = rect.getBoundingClientRect();
        if (r.left <= x && x <= r.right && r.top <= y && y <= r.bottom)
          return getComputedStyle(rect).fill;
      }
    }
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if ((channels(colour)[3] ?? 1) === 1) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  for (const d of document.querySelectorAll('details')) d.open = true;
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || element.closest('title, style')) continue;
    const style = getComputedStyle(element), drawn = element.closest('svg');
    const ink = light(drawn ? style.fill : style.color), paper = light(behind(element));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    found.push([texts.currentNode.data.trim().slice(0, 30), ratio]);
  }
  return found;
})()
"""

FOCUSABLE = "a[href], summary, [tabindex='0']"
FOCUSED = f"""
(() => {{
  const e = document.activeElement, all = [...document.querySelectorAll("{FOCUSABLE}")];
  return [all.indexOf(e), getComputedStyle(e).outlineStyle];
}})()
"""
CELLS = """
[...document.querySelectorAll('table')].map(t => [t.caption.textContent,
  [...t.rows].map(r => [...r.cells].map(c => c.innerText.trim()))])
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folders of a real run and of two made-up ones."""
    base = tmp_path_factory.mktemp("runs")
    job(base / "real", "evaluation.local_only=true", "evaluation.centralized=true")
    names = [f"'{HOSTILE}' (partition 0)", *(f"partition {place}" for place in range(1, 1000))]
    for name, results in {
        "large": made_up(names, 80, datasets=("wikitext2", "c4", "ptb"), lost=names[:1]),
        "bare": made_up(names[1:2], datasets=(), alone=False) | {"agreement": None},
    }.items():
        (base / name).mkdir()
        (base / name / "results.json").write_text(json.dumps(results))
        write_report(base / name)
    return {folder.name: folder for folder in base.iterdir()}


@pytest.fixture(scope="module")
def browser():
    with browse(str(CHROMIUM)) as page:
        yield page


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
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


def opened(browser, place):
    browser.resize(1100)
    browser.emulate()
    browser.open(place)
    return browser


@pytest.fixture(params=["real", "large", "bare"])
def report(request, runs, browser):
    return opened(browser, runs[request.param] / "report.html")


@pytest.fixture
def sweep_page(sweep, browser):
    return opened(browser, sweep / "sweep.html")


@pytest.fixture(params=["real", "large", "bare", "sweep"])
def page(request, runs, sweep, browser):
    pages = {name: folder / "report.html" for name, folder in runs.items()}
    return opened(browser, (pages | {"sweep": sweep / "sweep.html"})[request.param])


def told(page: Page, method: str) -> list[dict]:
    return [parameters for name, parameters in page.events if name == method]


def test_it_shows_without_complaints_and_without_the_network(page):
    assert page.run("document.querySelector('h1').innerText").startswith(("demo, ", "sweep"))
    assert not told(page, "Runtime.consoleAPICalled")
    assert not told(page, "Runtime.exceptionThrown")
    assert not told(page, "Page.javascriptDialogOpening")
    assert not [told["entry"]["text"] for told in told(page, "Log.entryAdded")]
    (only,) = told(page, "Network.requestWillBeSent")
    assert only["request"]["url"].startswith("file://")


def test_its_links_lead_to_what_is_there(report):
    missing = "[...document.links].filter(a => !document.querySelector(a.hash)).map(a => a.href)"
    assert report.run(missing) == []
    assert report.run("document.links.length") > 5


@pytest.mark.parametrize("width", [360, 768])
def test_it_fits_a_narrow_window(page, width):
    page.resize(width)
    page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.run("document.documentElement.scrollWidth") <= width
    smallest = "Math.min(...[...document.querySelectorAll('body *')].filter(e => e.innerText)"
    smallest += ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    assert page.run(smallest) >= 12


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_told_from_what_it_stands_on(page, scheme):
    page.emulate(scheme)
    ground = page.run("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(15, 19, 23)") == (scheme == "dark")
    found = page.run(CONTRASTS)
    assert len(found) > 50
    assert [(text, ratio) for text, ratio in found if ratio < 4.5] == []


def test_the_keyboard_reaches_everything(report):
    wanted = report.run(
        f'[...document.querySelectorAll("{FOCUSABLE}")].flatMap('
        "(e, at) => e.checkVisibility() ? [at] : [])"
    )
    reached = set()
    for _ in range(len(wanted) + 3):
        report.press("Tab")
        place, outline = report.run(FOCUSED)
        reached.add(place)
        assert place < 0 or outline != "none"
    assert set(wanted) <= reached
    report.run("document.querySelector('summary').focus()")
    before = report.run("document.querySelector('details').open")
    report.press("Enter")
    assert report.run("document.querySelector('details').open") != before


def test_tables_and_drawings_say_what_they_are(page):
    assert page.run("document.querySelectorAll('th:not([scope])').length") == 0
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    named = {"image", "region", "table", "navigation"}
    for node in tree:
        role = node.get("role", {}).get("value")
        if role in named and not node.get("ignored"):
            assert node.get("name", {}).get("value"), node
    assert any(node.get("role", {}).get("value") == "image" for node in tree)


def test_it_prints_on_white_without_navigation(report, tmp_path):
    report.emulate("dark", "print")
    style = "getComputedStyle(document.querySelector('{}')).{}"
    assert report.run(style.format("body", "backgroundColor")) == "rgb(255, 255, 255)"
    assert report.run(style.format("nav", "display")) == "none"
    assert report.run(style.format(".scroll", "overflowX")) == "visible"
    report.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_its_figures_are_those_of_the_results(runs, browser):
    opened(browser, runs["real"] / "report.html")
    results = json.loads((runs["real"] / "results.json").read_text())
    tables = dict(browser.run(CELLS))
    found = results["perplexity"]["stdlib"]
    local = found["local_only"]
    shown = {row[0].split("\n")[0]: row[1] for row in tables["Perplexity by model and data set"]}
    assert shown == {
        "Model": "stdlib",
        "Dense": f"{found['dense']:.2f}",
        "One client alone, best": f"{local['best']:.2f}",
        "One client alone, mean": f"{local['mean']:.2f}",
        "One client alone, worst": f"{local['worst']:.2f}",
        "Federated": f"{found['pruned']:.2f}",
        "Centralised": f"{found['centralized']:.2f}",
    }
    head, *rows = tables["Clients"]
    clients = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    for client in results["clients"]:
        name = client["name"]
        assert clients[name]["Tokens"] == f"{client['tokens']:,}"
        assert clients[name]["Perplexity alone"] == f"{local['clients'][name]:.2f}"
        share = results["agreement"]["clients"]["result"][name]
        assert clients[name]["Agrees with result"] == f"{share:.2%}"
    assert [row[0] for row in rows] == sorted(local["clients"], key=local["clients"].get)[::-1]
    tiles = browser.run("document.querySelector('.tiles').innerText")
    assert f"{results['sparsity']['zeros']:,}" in tiles
    assert f"{results['agreement']['pairwise']:.1%}" in tiles
    assert f"{results['ledger']['of_dense']['bits_per_weight']:.2f} bits a weight" in tiles


def test_a_sweep_s_links_lead_to_reports_and_sections(sweep_page):
    inside = "[...document.links].filter(a => a.hash)"
    assert sweep_page.run(f"{inside}.filter(a => !document.querySelector(a.hash)).length") == 0
    assert "7 of 8 runs" in sweep_page.run("document.querySelector('header').innerText")
    reports = sweep_page.run("[...document.links].filter(a => !a.hash).map(a => a.href)")
    assert len(reports) == 7
    sweep_page.run("[...document.links].find(a => !a.hash).click()")
    while not sweep_page.run("document.title").startswith("demo"):
        sweep_page.run("new Date()")
    assert sweep_page.run("document.querySelector('h1').innerText").startswith(("demo, ", "sweep"))


def test_a_sweep_s_curves_are_drawn_in_the_colours_of_the_scheme(sweep_page):
    curves = """[...document.querySelectorAll('.wide path[stroke="var(--k0)"]')]"""
    stroke = f"getComputedStyle({curves}[0]).stroke"
    light = sweep_page.run(stroke)
    sweep_page.emulate("dark")
    assert "rgb" in light and sweep_page.run(stroke) != light
    assert sweep_page.run(f"Math.max(...{curves}.map(e => e.getBoundingClientRect().width))") > 300


def test_a_phone_gets_a_sweep_s_narrow_drawing_and_no_text_is_small(sweep_page):
    shown = "[...document.querySelectorAll('.drawn svg')].filter(e => e.checkVisibility())"
    for width, shape in ((390, "narrow"), (1100, "wide"), (760, "wide")):
        sweep_page.resize(width)
        assert set(sweep_page.run(f"{shown}.map(e => e.parentElement.className)")) == {shape}
        heights = f"{shown}.flatMap(e => [...e.querySelectorAll('text')])"
        heights += ".map(e => e.getBoundingClientRect().height)"
        assert min(sweep_page.run(heights)) > 10
    sweep_page.resize(390)
    sweep_page.emulate("light", "print")
    assert set(sweep_page.run(f"{shown}.map(e => e.parentElement.className)")) == {"wide"}
