"""`fedprune status`: where a run is, for a person, a script or a monitoring system."""

import json
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedprune.disk import home
from fedprune.errors import ConfigError
from fedprune.results.progress import LABELS
from fedprune.results.prometheus import prometheus_text
from fedprune.results.run_status import PROGRESS, Status, moment, read_status
from fedprune.results.text import duration_text, printable, size_text

_LOOK_SECONDS = 1.0


def run_status(run: str | None, *, watch: bool, as_json: bool, metrics: bool) -> int:
    """Show where a run is, the newest if none is named, and return the exit code 0.

    With ``watch`` anew each second until it ends; 1 where it failed or its process seems to be
    dead.
    """
    folder, now = newest_run() if run is None else Path(run).expanduser(), datetime.now(UTC)
    if watch:
        return _watch(folder)
    status = read_status(folder)
    if metrics:
        sys.stdout.write(prometheus_text(status, status.stale(now)))
    elif as_json:
        plain = json.loads(status.to_json()) | {"stale": status.stale(now)}
        sys.stdout.write(json.dumps(plain, indent=1) + "\n")
    else:
        Console().print(status_table(status, now, str(folder)), crop=False)
    return 0


def _watch(folder: Path) -> int:
    console = Console()
    drawn = console.is_terminal and not console.is_dumb_terminal
    with Live(console=console, auto_refresh=False, transient=True) as live:
        told = ""
        while True:
            now, status = datetime.now(UTC), read_status(folder)
            verdict = verdict_of(status, now)
            table = status_table(status, now, str(folder))
            if drawn:
                live.update(table, refresh=True)
            elif f"{verdict} {status.phase}" != told:
                told = f"{verdict} {status.phase}"
                console.print(table, crop=False)
            if verdict != "running":
                break
            time.sleep(_LOOK_SECONDS)
    if drawn:
        console.print(table, crop=False)
    return 0 if verdict == "done" else 1


def newest_run() -> Path:
    """Return the folder of the run that was written to last.

    Raises ConfigError if there is none.
    """
    places = (Path("runs"), home() / "runs")
    found = [path for place in places for path in place.glob(f"*/{PROGRESS}")]
    if not found:
        raise ConfigError(
            f"There is no run in '{places[0].absolute()}' nor in '{places[1]}'. Give the folder of "
            "one: fedprune status RUN. The folder of a run on a SuperLink is on the machine of its "
            "ServerApp."
        )
    return max(found, key=lambda path: path.stat().st_mtime).parent


_STYLES = {"lost": "red", "refused": "red", "working": "cyan", "answered": "green"}
_MOST_ROWS = 20
_BAR = 24


def status_table(status: Status, now: datetime, place: str) -> RenderableType:
    """Return a run's status for a terminal; names and reasons in it can do no harm there."""
    parts: list[RenderableType] = [_facts(status, now)]
    if status.clients and status.status == "running":
        parts.append(_clients(status, now))
    return Group(*parts, *_verdict(status, now, place))


def verdict_of(status: Status, now: datetime) -> str:
    """Return "running", "failed" or "done", or "stale" where the process seems to be dead."""
    return "stale" if status.stale(now) else status.status


def _facts(status: Status, now: datetime) -> Table:
    phase = LABELS.get(status.phase, status.phase)
    if status.phase_total > 1:
        phase += f" {_bar(status.phase_done / status.phase_total)}"
    rounds = f", round {status.round} of {status.rounds}" if status.rounds > 1 else ""
    blocks = f"{status.blocks_done} of {status.blocks_total} pruned{rounds}"
    alive = "" if status.nodes_alive is None else f"{status.nodes_alive} connected"
    rate = size_text(round((status.bytes_up + status.bytes_down) / max(1.0, status.seconds)))
    traffic = f"{size_text(status.bytes_up)} up, {size_text(status.bytes_down)} down, {rate}/s"
    if status.model_bytes:
        traffic += f"; the model: {size_text(status.model_bytes)}"
    times = f"{duration_text(status.seconds)} so far"
    if status.eta_seconds is not None:
        times += f", about {duration_text(status.eta_seconds)} of pruning left"
    if status.starts > 1:
        times += f"; the {status.starts}. process at work on it"
    running = status.status == "running"
    facts = {
        "run": f"{status.run} · {verdict_of(status, now)}",
        "phase": phase if running else "",
        "blocks": blocks if status.blocks_total else "",
        "messages": f"{status.answered} of {status.asked} answered" if running else "",
        "clients": _counts(status.states),
        "nodes": alive if running else "",
        "traffic": traffic,
        "time": times,
        "refused": _counts(status.refused),
    }
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, text in facts.items():
        if text:
            table.add_row(label, Text(printable(text)))
    return table


def _clients(status: Status, now: datetime) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("client", "state", "for", "why"):
        table.add_column(name, overflow="fold")
    for client in status.clients[:_MOST_ROWS]:
        seconds = max(0.0, (now - moment(client.since)).total_seconds())
        state = Text(printable(client.state), style=_STYLES.get(client.state, ""))
        texts = Text(printable(client.name)), Text(printable(client.reason))
        table.add_row(texts[0], state, duration_text(seconds), texts[1])
    more = sum(status.states.values()) - min(_MOST_ROWS, len(status.clients))
    if more > 0:
        table.add_row(f"and {more} more", "", "", "")
    return table


def _verdict(status: Status, now: datetime, place: str) -> list[Text]:
    """Return what to do where the run does not go by itself; a command is one line, to copy."""
    if status.status == "failed":
        return [Text(f"The run failed: {printable(status.reason)}", style="red")]
    if status.stale(now):
        quiet = duration_text(status.quiet_seconds(now))
        told = f"No news for {quiet}: the run's process seems to be dead. Go on with the run:"
        command = f"fedprune run resume={printable(place)}"
        return [Text(told, style="red"), Text(command, no_wrap=True, overflow="ignore")]
    return []


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)


def _bar(share: float) -> str:
    done = round(min(1.0, max(0.0, share)) * _BAR)
    return f"{'━' * done}{'╌' * (_BAR - done)} {share:.0%}"
