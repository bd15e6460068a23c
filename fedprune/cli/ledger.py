"""`fedprune ledger`: what left a site, from its own record."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from client_app.ledger import Entry, LedgerError, entries
from fedprune.cli.screen import say
from fedprune.results.tables import text_table
from fedprune.results.text import count, size_text

_SHOWN = 12  # characters of a hash


def run_ledger(what: str, path: str, head: str, *, as_json: bool) -> int:
    """Show or verify a ledger and return the exit code, 1 if it does not hold.

    `head`: a hash that was noted elsewhere and must be among the entries'; "" for none.
    """
    found, problem = list[Entry](), ""
    try:
        found.extend(entries(Path(path).expanduser()))
    except LedgerError as error:
        problem = str(error)
    hashes = [entry.hash for entry in found]
    if head and not problem and not any(one.startswith(head) for one in hashes):
        problem = f"no entry has the hash {head}: the end was cut off, or it is another ledger."
    screen = Console()
    if what == "show" and as_json:
        for entry, own in zip(found, hashes, strict=True):
            sys.stdout.write(json.dumps(asdict(entry) | {"hash": own}) + "\n")
    elif what == "show":
        screen.print(_table(found))
    if problem:
        sys.stderr.write(f"fedprune ledger: {problem}\n")
        return 1
    if what == "verify":
        say(screen, f"{count(len(found), 'entry holds', 'entries hold')}.")
        if hashes:
            say(screen, f"The last has the hash {hashes[-1]}")
            say(screen, "Note it elsewhere: only `--head HASH` shows that the end was cut off.")
    return 0


def _table(found: Sequence[Entry]) -> Table:
    """Return what left the site, a line a kind of answer in a job."""
    header = ["first", "job", "strategy", "answered", "sends", "answers", "bytes", "errors"]
    rows: list[list[str]] = []
    together: dict[tuple[str, ...], list[Entry]] = {}
    for entry in found:
        kinds = entry.sends + (" masked" if entry.masked else "")
        kinds += f" eps {entry.eps:g}" if entry.eps else ""
        key = (entry.job, entry.configuration, entry.strategy, entry.request, kinds)
        together.setdefault(key, []).append(entry)
    for (job, _, strategy, request, sends), group in together.items():
        errors = sum(bool(entry.error) for entry in group)
        total = size_text(sum(entry.bytes for entry in group))
        first = group[0].time[:19].replace("T", " ")
        cells = [first, job[:_SHOWN], strategy, request, sends]
        rows.append([*cells, f"{len(group):,}", total, str(errors)])
    return text_table("what left this site", header, rows, labels=5)
