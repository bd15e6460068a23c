"""The page: sections in reading order, one style sheet, nothing from elsewhere."""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedprune.disk import replace_file
from fedprune.report import summary
from fedprune.report.agreement import agreement
from fedprune.report.clients import clients
from fedprune.report.cost import cost
from fedprune.report.further import further, sizes
from fedprune.report.markup import Html, join, tag
from fedprune.report.quality import perplexity
from fedprune.report.structure import sparsity
from fedprune.report.style import STYLE
from fedprune.report.usage import configuration, load
from fedprune.results.read import read_results

REPORT = "report.html"


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run's folder, whole or not at all, and return its path.

    Parameters
    ----------
    folder : Path
        A run's folder, with ``results.json`` and ``config.yaml``.

    Raises
    ------
    FedpruneError
        If the folder holds no completed run.
    OSError
        If the page cannot be written.
    """
    results = read_results(folder)
    config = folder / "config.yaml"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    page = folder / REPORT
    replace_file(page, render_page(results, text, folder.absolute()).encode())
    return page


def render_page(results: Mapping[str, Any], config: str, folder: Path) -> str:
    """Return the page of one run.

    Parameters
    ----------
    results : Mapping
        The content of `results.json`.
    config : str
        The content of `config.yaml`; "" leaves the section out.
    folder : Path
        The run's folder, for the code that loads the model.
    """
    parts = {
        "Points to note": summary.careful(results),
        "Perplexity": join([perplexity(results), further(results)]),
        "Sparsity": sparsity(results),
        "Agreement": agreement(results),
        "Clients": clients(results),
        "Cost": cost(results),
        "Use the model": join([load(folder), sizes(results)]),
        "What was run": join(
            [summary.what_was_run(results), configuration(config) if config else None]
        ),
    }
    navigation, contents = sections(parts)
    body = [
        tag("a", "Skip to the report", href="#report", class_="skip"),
        summary.header(results),
        navigation,
        tag("main", summary.headlines(results), *contents, id="report"),
        tag("footer", f"Written by fedprune {results['versions'].get('fedprune', '')}."),
    ]
    title = f"{summary.model_name(results)} · {summary.strategy_name(results)} · fedprune"
    return document(title, *body)


def document(title: str, *body: Html, style: str = "") -> str:
    """Return a whole HTML document that may load nothing and run nothing; ``style`` adds rules."""
    rules = STYLE + style
    digest = base64.b64encode(hashlib.sha256(rules.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("meta", name_="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Html(rules)),
    ]
    page = tag("html", tag("head", *head), tag("body", *body), lang="en")
    return f"<!doctype html>\n{page}\n"


def sections(parts: Mapping[str, Html]) -> tuple[Html, list[Html]]:
    """Return the links to all parts of a page, and the parts with their titles."""
    links = [tag("a", title, href=f"#{_anchor(title)}") for title in parts]
    contents = [
        tag("section", tag("h2", title, id=_anchor(title)), content, aria_labelledby=_anchor(title))
        for title, content in parts.items()
    ]
    return tag("nav", *links, aria_label="Sections"), contents


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
