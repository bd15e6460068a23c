"""The page of a run: whole, escaped, complete for people who do not see it, and true."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from fedprune.errors import FedpruneError
from fedprune.report.page import leave_report, render_page, write_report
from tests.support.markup import Markup
from tests.support.reports import made_up

NAMES = ["'north' (partition 0)", "'south' (partition 1)", "partition 2", "partition 3"]
HOSTILE = "<img src=x onerror=alert(1)>\"'&"


def read(results: dict, config: str = "sparsity: 0.5\n", folder: str = "/runs/one") -> Markup:
    return Markup(render_page(results, config, Path(folder)))


VARIANTS = {
    "votes": made_up(NAMES),
    "one client": made_up(NAMES[:1], alone=False),
    "three data sets": made_up(NAMES, datasets=("a", "b", "c")),
    "a lost client": made_up(NAMES, lost=NAMES[:1]),
    "nothing measured": made_up(NAMES, datasets=(), alone=False),
    "statistics": made_up(NAMES, 2, "strategy=fedstats") | {"agreement": None},
    "many": made_up([f"partition {place}" for place in range(100)], 90),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_page_is_whole_and_its_links_lead_somewhere(name):
    page = read(VARIANTS[name])
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    targets = [attributes["href"] for attributes in page.all("a")]
    assert targets and all(href[0] == "#" and href[1:] in identifiers for href in targets)
    for _, attributes in page.elements:
        label = attributes.get("aria-labelledby")
        assert label is None or label in identifiers
    assert len(page.all("h1")) == len(page.all("main")) == 1
    assert page.text("head").strip().startswith("demo · ")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_page_can_be_read_without_seeing_it(name):
    page = read(VARIANTS[name])
    assert page.all("html")[0]["lang"] == "en"
    for attributes in page.all("th"):
        assert attributes["scope"] in ("col", "row")
    for attributes in page.all("svg"):
        assert attributes.get("aria-hidden") == "true"
    images = [a for _, a in page.elements if a.get("role") == "img"]
    assert all(len(a["aria-label"]) > 20 for a in images)
    for (tag, attributes), around in zip(page.elements, page.inside, strict=True):
        if tag == "svg" and "td" not in around and "p" not in around:
            assert "figure" in around, attributes
    captions = [text for around, text in page.texts if around[-1] == "caption"]
    assert len(captions) == len(page.all("table")) and all(captions)


@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_is_loaded_and_nothing_can_run(name):
    text = render_page(VARIANTS[name], "", Path("/runs/one"))
    page = Markup(text)
    assert not {"script", "link", "img", "iframe", "form"} & {tag for tag, _ in page.elements}
    assert not [a for _, a in page.elements if {"style", "src", "onclick"} & set(a)]
    assert "url(" not in text and "@import" not in text and "http" not in page.text("style")
    policies = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    style = page.text("style")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policies == [
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    ]


def test_what_comes_from_outside_is_escaped():
    results = made_up([f"'{HOSTILE}' (partition 0)", HOSTILE], datasets=(HOSTILE,), lost=[HOSTILE])
    results["ledger"]["entries"][-1]["refused"] = HOSTILE
    results["model"]["path"] = HOSTILE
    results["versions"] = {HOSTILE: HOSTILE}
    text = render_page(results, HOSTILE, Path(f"/runs/{HOSTILE}"))
    page = Markup(text)
    assert "<img" not in text and not page.all("img")
    assert page.text().count(HOSTILE) >= 5


def test_figures_are_those_of_the_results():
    results = made_up(NAMES, 3)
    page = read(results)
    text = page.text()
    found = results["perplexity"]["text"]
    local = found["local_only"]
    assert f"{results['sparsity']['zeros']:,} of {results['sparsity']['weights']:,}" in text
    for value in (10, 12.5, 12, local["best"], local["mean"], local["worst"]):
        assert f"{value:.2f}" in text
    for value in local["clients"].values():
        assert f"{value:.2f}" in text
    for client, share in results["agreement"]["clients"]["result"].items():
        assert f"{share:.2%}" in text, client
    assert f"{results['agreement']['pairwise']:.1%}" in text
    close = text[text.index("Agreement with the dense model") :]
    for value in ("0.1250", "75.0%", "0.1000", "80.0%"):
        assert value in close
    worst = max(local["clients"], key=lambda name: local["clients"][name])
    rows = re.split("One client alone, worst", text)[1].split("Federated")[0]
    assert worst.split("'")[1] in rows if "'" in worst else worst in rows


def test_a_method_that_nobody_knows_is_told_in_its_own_words():
    results = made_up(NAMES)
    results["method"] |= {"strategy": "lottery", "tickets": 7}
    results["strategy"] = {
        "label": f"Lottery {HOSTILE}",
        "does": "clients send a number, the server draws one",
        "sends": "a number",
        "tells": "Nothing.",
    }
    text = read(results).text()
    told = f"Lottery {HOSTILE}: clients send a number, the server draws one"
    assert told in text and "tickets 7" in text
    del results["strategy"]["does"], results["strategy"]["label"]  # as older versions wrote it
    assert "lottery: a number" in read(results).text()


def test_columns_of_votes_are_shares_of_all_weights():
    results = made_up(NAMES)
    counts = results["agreement"]["votes_by_voters"]["4"]
    text = read(results).text()
    for votes, number in enumerate(counts):
        assert f"{votes}: {number / sum(counts):.1%}" in text
        assert f"{number:,}" in text


def test_code_that_loads_the_model_is_python(tmp_path):
    folder = tmp_path / "it's a run"
    (folder / "model").mkdir(parents=True)
    code = read(made_up(NAMES), folder=str(folder)).text("code")
    start = code.index("from transformers")
    python = code[start : code.index("from_pretrained(folder)", code.index("tokenizer =")) + 23]
    names: dict[str, object] = {}
    exec(python.split("model =")[0].split("\n\n")[1], names)
    assert names["folder"] == str(folder / "model")
    compile(python, "page", "exec")


def test_a_model_that_was_not_kept_is_not_offered():
    assert "from_pretrained" not in read(made_up(NAMES)).text()


def test_a_thousand_clients_and_eighty_blocks_stay_light():
    names = [f"'site {place}' (partition {place})" for place in range(1000)]
    text = render_page(made_up(names, 80), "x" * 4000, Path("/runs/one"))
    assert len(text.encode()) < 2_000_000
    page = Markup(text)
    assert "All 1,000 clients" in page.text()
    assert "closest to and furthest from the result" in page.text()


def test_results_of_an_older_version_still_make_a_page():
    results = made_up(NAMES)
    for key in ("clients", "tied"):
        del results["agreement"][key]
    del results["sparsity"]["reporters"]
    assert "Votes to prune" in read(results).text()


def test_the_configuration_is_folded_and_whole():
    text = read(made_up(NAMES), "a: <b>\nc: 'd'\n").text("details")
    assert "a: <b>\nc: 'd'\n" in text


def test_write_report(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(made_up(NAMES)))
    (tmp_path / "config.yaml").write_text("sparsity: 0.123\n")
    page = write_report(tmp_path)
    assert page == tmp_path / "report.html"
    assert "sparsity: 0.123" in page.read_text(encoding="utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.yaml",
        "report.html",
        "results.json",
    ]


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(FedpruneError, match=r"completed run.*needs `results.json`"):
        write_report(tmp_path)
    (tmp_path / "failure.json").write_text('{"reason": "no quorum"}')
    with pytest.raises(FedpruneError, match="failed: no quorum"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(FedpruneError, match="cannot be read"):
        write_report(tmp_path)


def test_what_else_was_measured_is_shown_where_it_was():
    results = made_up(NAMES)
    plain = read(results).text()
    assert "own texts" not in plain and "Zero-shot" not in plain and "on disk" not in plain
    figures = {"tokens": 1234, "dense": 8.0, "pruned": 10.0, "ratio": 1.25}
    worst = {"tokens": 99, "dense": 8.0, "pruned": None, "ratio": None}
    score = {"harness": "0.4.9", "tasks": {"boolq": {"acc_stderr": 0.01, "acc": 0.61}}, "mean": 0.6}
    results |= {
        "federated_evaluation": {
            "clients": {NAMES[0]: figures, NAMES[1]: worst},
            "mean": figures,
            "worst": NAMES[1],
            "left_out": {NAMES[2]: "too little text"},
        },
        "zero_shot": {"dense": score, "pruned": score | {"tasks": {"boolq": {"acc": 0.5875}}}},
        "speed": {
            "dense": {
                "model": "a",
                "prompt": 1234.0,
                "prompt_ratio": 1.0,
                "generation": 99.0,
                "generation_ratio": 1.0,
                "peak_bytes": 3_000_000,
            },
            "pruned": {
                "model": "b",
                "prompt": 2468.0,
                "prompt_ratio": 2.0,
                "generation": 148.5,
                "generation_ratio": 1.5,
                "peak_bytes": 2_000_000,
            },
        },
        "sizes": {
            "base": 5_000_000,
            "dense": 4_000_000,
            "masks": 125_000,
            "bits_and_values": 2_125_000,
        },
    }
    text = read(results).text()
    own = text[text.index("On the clients' own texts") : text.index("is left out")]
    assert own.index("All texts as one") < own.index("south") < own.index("north")
    assert own.count("+25.0%") == 2
    for part in ("1,234", "too little text", "0.6100", "0.5875", "harness 0.4.9", "2.1 MB"):
        assert part in text
    served = text[text.index("What it takes to serve") :]
    for part in ("2,468", "2.00x", "1.50x", "2.0 MB"):
        assert part in served
    assert "5.0 MB" in text


def test_a_run_leaves_its_page_and_never_fails_because_of_it(tmp_path, caplog):
    (tmp_path / "results.json").write_text(json.dumps(made_up(["a", "b"])))
    leave_report(tmp_path)
    assert "<h1>demo" in (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    (tmp_path / "results.json").write_text('{"format": 1}')
    leave_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
    assert "no report was written: KeyError" in caplog.text
