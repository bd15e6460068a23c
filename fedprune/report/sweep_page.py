"""The page of a sweep: its curves and tables, and the way to the report of every run."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from fedprune.report.charts import chart
from fedprune.report.curves import CURVES_STYLE, Curve, Dot, Plane, Scale
from fedprune.report.markup import Content, Html, join, tag
from fedprune.report.page import document, sections
from fedprune.report.series import (
    Point,
    Series,
    baseline_series,
    method_series,
    places,
    time_series,
    x_axis,
)
from fedprune.report.tables import folded, table
from fedprune.report.usage import code
from fedprune.results import text
from fedprune.results.perplexity import FEDERATED, SUMMARIES
from fedprune.results.sweep import (
    PRUNE_SECONDS,
    SEED,
    UP,
    Axes,
    Pivot,
    Row,
    datasets,
    perplexity_key,
)

_MOST_CHARTS = 4  # data sets that are drawn one by one
_MEGABYTE = 1e6


@dataclass(frozen=True)
class Run:
    """One job of the sweep.

    Attributes
    ----------
    label : str
        Its settings.
    link : str
        Its report, relative to the page; "" where there is none.
    row : Row or None
        Its figures, once it is done.
    failure : str
        Why it failed; "" if it did not.
    """

    label: str
    link: str
    row: Row | None
    failure: str = ""


@dataclass(frozen=True)
class SweepFacts:
    """What the page tells.

    Attributes
    ----------
    title : str
        What was swept.
    command : str
        How to do it again.
    axes : Axes
        Which keys were swept.
    runs : sequence of Run
        All jobs; at least one is done.
    pivots : sequence of Pivot
        The tables.
    seconds : float
        How long the command took; 0 where nothing was run.
    version : str
        Of fedprune.
    """

    title: str
    command: str
    axes: Axes
    runs: Sequence[Run]
    pivots: Sequence[Pivot]
    seconds: float
    version: str

    @property
    def rows(self) -> list[Row]:
        """The figures of all runs that are done."""
        return [run.row for run in self.runs if run.row is not None]


def render_sweep(facts: SweepFacts) -> str:
    """Return the page of a sweep."""
    measured = datasets(facts.rows)
    quality = [
        join(
            [
                (name in _shown(measured) and _perplexity_chart(facts, name))
                or tag("h3", pivot.title),
                _table(pivot),
            ]
        )
        for name, pivot in zip(measured, facts.pivots, strict=False)
    ]
    parts: dict[str, Html] = {}
    failed = [run for run in facts.runs if run.failure]
    if failed:
        parts["Failed jobs"] = tag("ul", *map(_failure, failed), class_="notes")
    parts["Perplexity"] = join(quality)
    parts["Cost"] = _cost(facts, measured)
    parts["Runs"] = _runs(facts, measured)
    parts["Do it again"] = code("Command", facts.command)
    return document(facts.title, *_frame(facts, parts), style=CURVES_STYLE)


def _frame(facts: SweepFacts, parts: Mapping[str, Html]) -> list[Html]:
    done, planned = len(facts.rows), len(facts.runs)
    seeds = len({row[SEED] for row in facts.rows})
    told = [
        text.count(done, "run") if done == planned else f"{done} of {planned} runs",
        text.count(seeds, "seed"),
    ]
    if facts.seconds:
        told.append(f"{text.seconds(facts.seconds)} this time")
    header = tag(
        "header",
        tag("p", "fedprune · sweep", class_="over-title"),
        tag("h1", facts.title),
        tag("p", " · ".join(told), class_="under-title"),
    )
    skip = tag("a", "Skip to the results", href="#results", class_="skip")
    footer = tag("footer", f"Written by fedprune {facts.version}.")
    navigation, contents = sections(parts)
    return [skip, header, navigation, tag("main", *contents, id="results"), footer]


def _failure(run: Run) -> Html:
    detail = tag("div", tag("strong", run.label), tag("p", run.failure))
    return tag("li", tag("span", "Failed", class_="level"), detail, class_="problem")


def _shown(names: Sequence[str]) -> list[str]:
    """Return the data sets that have charts: all of a few, of many those that sum them up."""
    summed = [name for name in names if name in SUMMARIES]
    return summed if summed and len(names) - len(summed) > _MOST_CHARTS else list(names)


def _perplexity_chart(facts: SweepFacts, dataset: str) -> Html | None:
    methods = method_series(facts.rows, facts.axes, dataset)
    if not methods:
        return None
    others = baseline_series(facts.rows, facts.axes, dataset)
    aid = "Lower is better. Points are means over seeds, bars reach from the least to the largest."
    what = _Figure(f"Perplexity ({dataset})", aid, text.figure)
    curves = [*((series, False) for series in methods), *((series, True) for series in others)]
    return _along(facts, what, curves)


@dataclass(frozen=True)
class _Figure:
    """What a chart along the swept axis shows."""

    title: str
    aid: str
    written: Callable[[float], str]
    from_zero: bool = False


def _along(facts: SweepFacts, what: _Figure, curves: Sequence[tuple[Series, bool]]) -> Html:
    """Return a chart of curves along the swept axis, each with whether it is a baseline."""
    x = x_axis(facts.rows, facts.axes)
    ticks = places(list(dict.fromkeys(point.x for series, _ in curves for point in series.points)))

    def dot(point: Point) -> Dot:
        said = f"{what.written(point.mean)} at {x} {point.x}"
        return Dot(ticks[point.x], point.mean, point.low, point.high, said)

    drawn = [
        Curve(series.label, tuple(map(dot, series.points)), baseline) for series, baseline in curves
    ]
    plane = Plane(f"{what.title} by {x}", x, ticks, _plain, what.from_zero)
    return chart(what.title, what.aid, plane.draw(drawn))


def _cost(facts: SweepFacts, measured: Sequence[str]) -> Html:
    parts = []
    for name in _shown(measured)[:1]:
        methods = method_series(facts.rows, facts.axes, name)
        if methods:
            parts.append(_bytes_chart(methods, name, x_axis(facts.rows, facts.axes)))
    times = time_series(facts.rows, facts.axes)
    if times:
        parts.append(_along(facts, _TIME, [(series, False) for series in times]))
    traffic = facts.pivots[len(measured) :]
    parts += [folded(pivot.title, _table(pivot)) for pivot in traffic]
    return join(parts)


def _bytes_chart(methods: Sequence[Series], dataset: str, x: str) -> Html:
    """Return what every setting costs and gives, a point each."""
    scale = Scale.over([point.megabytes for series in methods for point in series.points])
    place = math.log2 if scale.logarithmic else float
    curves = []
    for series in methods:
        dots = [
            Dot(place(p.megabytes), p.mean, p.low, p.high, f"{text.figure(p.mean)} at {p.x}", p.x)
            for p in series.points
        ]
        curves.append(Curve(series.label, tuple(dots), joined=False))
    ticks = {text.size(tick * _MEGABYTE): place(tick) for tick in scale.ticks}
    title = f"Perplexity ({dataset}) against bytes"
    plane = Plane(title, "sent and received by a client", ticks, _plain)
    return chart(title, f"Left and low is better; beside each point its {x}.", plane.draw(curves))


_TIME = _Figure(
    "Seconds",
    "Federated pruning without loading and evaluation; runs side by side slow each other.",
    text.seconds,
    from_zero=True,
)


def _plain(value: float) -> str:
    return f"{value:,g}"


def _table(pivot: Pivot) -> Html:
    rows = [
        [" · ".join(filter(None, line[: pivot.labels])), *line[pivot.labels :]]
        for line in pivot.lines
    ]
    return table(pivot.title, ["Model", *pivot.header[pivot.labels :]], rows)


def _runs(facts: SweepFacts, measured: Sequence[str]) -> Html:
    plain = [name for name in measured if name not in SUMMARIES]
    header = ["Run", *(f"Perplexity ({name})" for name in plain)]
    header += ["Sparsity", "Sent by a client", "Pruning"]
    return table("Runs", header, [_run(run, plain) for run in facts.runs])


def _run(run: Run, measured: Sequence[str]) -> list[Content]:
    name: Content = tag("a", run.label, href=quote(run.link)) if run.link else run.label
    if run.row is None:
        return [name, *["failed" if run.failure else "not yet"] * (len(measured) + 3)]
    row = run.row
    return [
        name,
        *(text.figure(_number(row, perplexity_key(data, FEDERATED))) for data in measured),
        text.percent(_number(row, "sparsity.overall")),
        text.size(_number(row, UP)),
        text.seconds(_number(row, PRUNE_SECONDS)),
    ]


def _number(row: Row, key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else None
