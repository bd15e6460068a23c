"""What `fedprune status` shows."""

from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedprune.reporting.gateway import GatewayTally
from fedprune.reporting.printable import printable
from fedprune.reporting.progress import LABELS, duration_text, size_text
from fedprune.reporting.status import Status, moment

_STYLES = {"lost": "red", "refused": "red", "working": "cyan", "answered": "green"}
_MOST_ROWS = 20
_BAR = 24


def status_table(
    status: Status, now: datetime, place: str, gateway: GatewayTally | None = None
) -> RenderableType:
    """Return a run's status for a terminal; names and reasons in it can do no harm there.

    Parameters
    ----------
    status : Status
        Where the run is.
    now : datetime
        With a time zone.
    place : str
        Its folder, as the way on names it.
    gateway : GatewayTally, optional
        What a gateway has refused.
    """
    parts: list[RenderableType] = [_facts(status, now, gateway)]
    if status.clients and status.status == "running":
        parts.append(_clients(status, now))
    return Group(*parts, *_verdict(status, now, place))


def verdict_of(status: Status, now: datetime) -> str:
    """Return "running", "failed" or "done", or "stale" where the process seems to be dead."""
    return "stale" if status.stale(now) else status.status


def _facts(status: Status, now: datetime, gateway: GatewayTally | None) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, text in _rows(status, now, gateway):
        if text:
            table.add_row(label, Text(printable(text)))
    return table


def _rows(status: Status, now: datetime, gateway: GatewayTally | None) -> list[tuple[str, str]]:
    phase = LABELS.get(status.phase, status.phase)
    if status.phase_total > 1:
        phase += f" {_bar(status.phase_done / status.phase_total)}"
    rounds = f", round {status.round} of {status.rounds}" if status.rounds > 1 else ""
    blocks = f"{status.blocks_done} of {status.blocks_total} pruned{rounds}"
    states = ", ".join(f"{count} {state}" for state, count in status.states.items() if count)
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
    return [
        ("run", f"{status.run} · {verdict_of(status, now)}"),
        ("phase", phase if running else ""),
        ("blocks", blocks if status.blocks_total else ""),
        ("messages", f"{status.answered} of {status.asked} answered" if running else ""),
        ("clients", states),
        ("nodes", alive if running else ""),
        ("traffic", traffic),
        ("time", times),
        ("refused", _counts(status.refused)),
        ("gateway", _refused(gateway)),
    ]


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


def _counts(counts: object) -> str:
    found = dict(counts) if isinstance(counts, dict) else {}
    return ", ".join(f"{count} {kind}" for kind, count in found.items() if count)


def _refused(gateway: GatewayTally | None) -> str:
    if gateway is None:
        return ""
    return f"refused since {gateway.since}: {_counts(gateway.refused) or 'nothing'}"


def _bar(share: float) -> str:
    done = round(min(1.0, max(0.0, share)) * _BAR)
    return f"{'━' * done}{'╌' * (_BAR - done)} {share:.0%}"
