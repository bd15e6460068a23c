"""A run's status as metrics, in the text format that Prometheus reads."""

from collections.abc import Mapping

from fedprune.results.ledger import KINDS
from fedprune.results.run_status import Status, moment
from fedprune.results.text import printable

_ENDS = ("running", "failed", "done")
_Samples = Mapping[str, float | None] | float | None


def prometheus_text(status: Status, stale: bool) -> str:
    """Return the metrics, each with its help and type, what is not known left out.

    Labels are the run's folder and fixed words; no client is named.
    """
    up = float(status.status == "running" and not stale)
    ends = {key: float(key == status.status) for key in _ENDS}
    latest = moment(status.updated).timestamp()
    refused = {kind: status.refused.get(kind, 0) for kind in KINDS}
    table: list[tuple[str, str, str, str, _Samples]] = [
        ("up", "gauge", "1 while the run's process is at work.", "", up),
        ("status", "gauge", "1 for what the run is.", "status", ends),
        ("phase_info", "gauge", "1 for the phase.", "phase", {status.phase: 1}),
        ("blocks_done", "gauge", "Pruned blocks, all rounds together.", "", status.blocks_done),
        ("blocks_total", "gauge", "Blocks to prune, all rounds.", "", status.blocks_total),
        ("round", "gauge", "The round over all blocks.", "", status.round),
        ("messages_answered", "gauge", "Answers in this exchange.", "", status.answered),
        ("messages_asked", "gauge", "Messages of this exchange.", "", status.asked),
        ("clients", "gauge", "Clients by state.", "state", dict(status.states)),
        ("nodes_alive", "gauge", "Nodes that are connected.", "", status.nodes_alive),
        ("bytes_up_total", "counter", "Bytes from clients.", "", status.bytes_up),
        ("bytes_down_total", "counter", "Bytes to clients.", "", status.bytes_down),
        ("model_bytes_total", "counter", "Bytes of the model sent.", "", status.model_bytes),
        ("refused_total", "counter", "Replies not used, by reason.", "reason", refused),
        ("starts_total", "counter", "Processes that worked on the run.", "", status.starts),
        ("seconds", "gauge", "Seconds of work so far.", "", status.seconds),
        ("eta_seconds", "gauge", "Seconds that the pruning may take.", "", status.eta_seconds),
        ("updated_timestamp_seconds", "gauge", "Latest news.", "", latest),
    ]
    return "".join(_family(status.run, *row) for row in table)


def _family(run: str, name: str, kind: str, text: str, label: str, values: _Samples) -> str:
    """Return a metric's lines; none without a value."""
    samples = values if isinstance(values, Mapping) else {"": values}
    found = [(key, value) for key, value in samples.items() if value is not None]
    if not found:
        return ""
    name = f"fedprune_{name}"
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    for key, value in found:
        more = f',{label}="{_escaped(key)}"' if label else ""
        lines.append(f'{name}{{run="{_escaped(run)}"{more}}} {value!r}')
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    text = printable(text).replace("\\", r"\\").replace('"', r"\"")
    return text.replace("\n", r"\n")
