"""What the page of a sweep shows: its curves and tables, and the way to the report of every run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from fedprune.report.figures import (
    bytes_drawing,
    frontier_drawing,
    perplexity_drawing,
    shown_datasets,
    time_drawing,
)
from fedprune.report.series import method_series, x_axis
from fedprune.results.perplexity import FEDERATED, SUMMARIES
from fedprune.results.sweep import (
    EXCESS,
    PRUNE_SECONDS,
    SEED,
    UP,
    Axes,
    Pivot,
    Row,
    datasets,
    perplexity_key,
)


@dataclass(frozen=True)
class Run:
    """One job of the sweep."""

    label: str
    link: str  # its report, relative to the page; "" where there is none
    row: Row | None  # its figures, once it is done
    failure: str = ""  # why it failed; "" if it did not


@dataclass(frozen=True)
class Story:
    """What is said of a sweep as a whole."""

    title: str
    command: str  # how to do it again
    axes: Axes
    seconds: float  # how long the command took; 0 where nothing was run


@dataclass(frozen=True)
class SweepFacts:
    """What the page tells."""

    story: Story
    runs: Sequence[Run]  # all jobs; at least one is done
    pivots: Sequence[Pivot]
    version: str

    @property
    def rows(self) -> list[Row]:
        """The figures of all runs that are done."""
        return [run.row for run in self.runs if run.row is not None]


def sweep_view(facts: SweepFacts) -> dict[str, Any]:
    """Return what the template needs."""
    rows, axes = facts.rows, facts.story.axes
    measured = datasets(rows)
    drawn = [
        name
        for name in shown_datasets(measured)
        if method_series(rows, axes, perplexity_key(name, FEDERATED))
    ]
    tables = list(enumerate(zip(measured, facts.pivots, strict=False)))
    tables.sort(key=lambda one: one[1][0] not in drawn)
    compared = any(row.get(EXCESS) is not None for row in rows)
    return {
        "facts": facts,
        "seeds": len({row[SEED] for row in rows}),
        "failed": [run for run in facts.runs if run.failure],
        "x": x_axis(rows, axes),
        "quality": [
            (name, pivot, _drawing(facts, name, place) if name in drawn else None)
            for place, (name, pivot) in tables
        ],
        "by_itself": bool(drawn),  # what has no drawing is folded below those that have one
        "bytes": bytes_drawing(rows, axes, drawn[0], "bytes") if drawn else None,
        "bytes_of": drawn[0] if drawn else "",
        "frontier": frontier_drawing(rows, axes, "frontier") if compared else None,
        "time": time_drawing(rows, axes, "time")
        if method_series(rows, axes, PRUNE_SECONDS)
        else None,
        "traffic": facts.pivots[len(measured) :],
        "plain": [name for name in measured if name not in SUMMARIES],
        "titles": [f"Perplexity ({name})" for name in measured if name not in SUMMARIES],
        "run_figures": _run_figures,
        "quote": quote,
    }


def _drawing(facts: SweepFacts, dataset: str, place: int) -> Markup:
    return perplexity_drawing(facts.rows, facts.story.axes, dataset, f"perplexity{place}")


def _run_figures(row: Row, measured: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a run that its line shows."""
    return {
        "perplexities": [_number(row, perplexity_key(name, FEDERATED)) for name in measured],
        "sparsity": _number(row, "sparsity.overall"),
        "bytes": _number(row, UP),
        "seconds": _number(row, PRUNE_SECONDS),
    }


def _number(row: Row, key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else None
