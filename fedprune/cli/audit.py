"""`fedprune audit`: what would leave this site, and what an attacker makes of it."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedprune.audit import audit
from fedprune.cli.screen import say
from fedprune.config import config_from_overrides
from fedprune.disk import replace_file
from fedprune.errors import ConfigError
from fedprune.report.audit import AUDIT_HEADER, audit_rows, audit_summary
from fedprune.report.page import render_audit
from fedprune.results.tables import text_table

PAGE, FIGURES = "audit.html", "audit.json"


def run_audit(overrides: Sequence[str], output: str, *, as_json: bool) -> int:
    """Print what releases tell, write page and figures if ``output`` is a folder, and return 0."""
    config = config_from_overrides(["strategy.min_clients=1", *overrides])  # one site is enough
    folder = Path(output).expanduser() if output else None
    if folder is not None:
        try:  # before any long work
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"'{folder}' cannot be made: {error.strerror}. Give --output another folder."
            ) from error
    found = audit(config).to_dict()
    plain = json.dumps(found, indent=2)
    if folder is not None:
        replace_file(folder / FIGURES, (plain + "\n").encode())
        replace_file(folder / PAGE, render_audit(found).encode())
    screen = Console()
    if as_json:
        say(screen, plain)
        return 0
    rows, summary = audit_rows(found), audit_summary(found)
    screen.print(text_table("what releases tell", AUDIT_HEADER, rows, caption=summary, labels=2))
    for note in found["notes"]:
        say(screen, note)
    if folder is not None:
        say(screen, f"{folder / PAGE}")
    return 0
