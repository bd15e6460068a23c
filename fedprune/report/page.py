"""The pages of a run, a sweep, an audit: one file each that loads nothing and runs nothing."""

import base64
import hashlib
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from fedprune.disk import replace_file
from fedprune.report.audit import AUDIT_HEADER, audit_rows, audit_summary
from fedprune.report.run import run_view
from fedprune.report.sweep import SweepFacts, sweep_view
from fedprune.results import text
from fedprune.results.read import read_results

_log = logging.getLogger("flwr")

REPORT = "report.html"
TEMPLATES = Path(__file__).parent / "templates"


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run's folder, whole or not at all, and return its path.

    `folder`: a run's folder, with ``results.json`` and ``config.yaml``. Raises FedpruneError if the
    folder holds no completed run. Raises OSError if the page cannot be written.
    """
    results = read_results(folder)
    config = folder / "config.yaml"
    content = config.read_text(encoding="utf-8") if config.is_file() else ""
    page = folder / REPORT
    replace_file(page, render_page(results, content, folder.absolute()).encode())
    return page


def leave_report(folder: Path) -> None:
    """Write ``report.html`` into a finished run's folder, or log why that was not possible."""
    try:
        write_report(folder)
    except Exception as error:  # whatever happens here, the run is done and must not fail
        _log.warning("no report was written: %s: %s", type(error).__name__, error)


def render_page(results: Mapping[str, Any], config: str, folder: Path) -> str:
    """Return the page of one run.

    `results`: the content of `results.json`. `config`: the content of `config.yaml`; "" leaves it
    out. `folder`: the run's folder, for the code that loads the model.
    """
    return _render("run.html.jinja", run_view(results, config, folder))


def render_sweep(facts: SweepFacts) -> str:
    """Return the page of a sweep."""
    return _render("sweep.html.jinja", sweep_view(facts))


def render_audit(found: Mapping[str, Any]) -> str:
    """Return the page of an audit; parameters as :func:`fedprune.report.audit.audit_rows`."""
    view = {"found": found, "header": AUDIT_HEADER, "rows": audit_rows(found)}
    return _render("audit.html.jinja", view | {"summary": audit_summary(found)})


def _template(name: str) -> str:
    """Return a file's text. Flower bundles files of some endings only, `.md` among them."""
    return (TEMPLATES / f"{name}.md").read_text(encoding="utf-8")


@cache
def environment() -> Environment:
    """Return the templates: all that is put into them is escaped, and nothing may be missing."""
    found = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "percent": text.percent,
        "figure": text.figure,
        "size": text.size,
        "seconds": text.seconds,
        "rise": text.rise,
        "beside": text.beside,
        "count": text.count,
        "sentence": lambda label: label[:1].upper() + label[1:],
        "anchor": lambda title: title.lower().replace(" ", "-"),
        "px": lambda value: f"{value:.2f}".rstrip("0").rstrip("."),
        "prose": prose,
    }
    return found


def prose(sentence: str) -> Markup:
    """Return a sentence as HTML; what stands between backticks is code."""
    parts = sentence.split("`")
    code = Markup("<code>{}</code>")
    return Markup("").join(
        code.format(part) if place % 2 else escape(part) for place, part in enumerate(parts)
    )


def _render(template: str, view: Mapping[str, Any]) -> str:
    style = _template("style.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    # Of the style sheet alone is it known that it is no text of somebody's.
    return environment().get_template(template).render(style=Markup(style), digest=digest, **view)
