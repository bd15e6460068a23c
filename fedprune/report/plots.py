"""Plots of a sweep: perplexity and time against sparsity or what else was swept, and bytes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedprune.report.drawing import COLOURS, MARKERS, save_figure, scale_logarithmically
from fedprune.report.series import (
    Series,
    baseline_series,
    is_numeric,
    method_series,
    places,
    time_series,
    wide_range,
    within,
    x_axis,
)
from fedprune.results.perplexity import DENSE, SUMMARIES
from fedprune.results.sweep import Axes, Row, datasets

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Panel

_MOST_PANELS = 4  # data sets that are drawn one by one
_LINES = ("-", "--", ":", "-.")
_BASELINE_STYLES = (("#777777", ":"), ("#444444", "--"), ("#000000", "-."))
_BASELINE_MARKERS = ("", "x", "*", "d", "1")
_COLLAPSED = 10.0
# Share of the axis between two methods, where the axis has names and where it has numbers.
_DODGE = (0.03, 0.006)
_LEGEND_COLUMNS = 3

_Style = tuple[str, str, str]


def plot_sweep(rows: Sequence[Row], axes: Axes, title: str, folder: Path) -> list[Path]:
    """Draw a sweep into ``plot.png`` and ``plot.svg`` and return their paths.

    A row of panels for each data set: perplexity along the axis, the same without collapsed
    models if there are any, and perplexity against bytes. Of more than four, only the summaries
    have panels.

    Parameters
    ----------
    rows : sequence of Row
        One a run.
    axes : Axes
        Which keys were swept.
    title : str
        Stands above all.
    folder : Path
        Where the files go.
    """
    # Here, because it takes a second that only sweeps have to wait for. No pyplot: without it
    # there is no display, no backend to choose and no state that outlives the figure.
    from matplotlib.figure import Figure

    drawn = [_Drawn.of(rows, axes, dataset) for dataset in _shown(datasets(rows))]
    columns = 3 if any(one.collapsed for one in drawn) else 2
    figure = Figure(figsize=(5.6 * columns, 4.8 * len(drawn)), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    panels = figure.subplots(len(drawn), columns, squeeze=False)
    for line, one in zip(panels, drawn, strict=True):
        _along_axis(line[0], one)
        if columns == 3:
            line[1].set_title("without collapsed models", fontsize="small")
            _along_axis(line[1], one.without_collapsed())
        _along_bytes(line[-1], one)
        for panel in line:
            panel.set_ylabel(f"perplexity ({one.dataset})")
            panel.grid(alpha=0.3)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(_LEGEND_COLUMNS, len(labels)),
        fontsize="small",
    )
    return save_figure(figure, folder, "plot")


def plot_time(rows: Sequence[Row], axes: Axes, title: str, folder: Path) -> list[Path]:
    """Draw ``time.png`` and ``time.svg``, the seconds of pruning, and return their paths.

    Parameters
    ----------
    rows, axes, title, folder
        As for :func:`plot_sweep`.
    """
    from matplotlib.figure import Figure

    methods = time_series(rows, axes)
    drawn = _Drawn("", x_axis(rows, axes), methods, [], _styles(methods))
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    panel = figure.subplots()
    _along_axis(panel, drawn)
    if not wide_range([p.mean for series in methods for p in series.points]):
        panel.set_ylim(bottom=0)
    panel.set_ylabel("seconds of federated pruning")
    panel.grid(alpha=0.3)
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small")
    return save_figure(figure, folder, "time")


@dataclass(frozen=True)
class _Drawn:
    """What one data set's panels show."""

    dataset: str
    x: str
    methods: list[Series]
    baselines: list[Series]
    styles: dict[tuple[str, ...], _Style]

    @classmethod
    def of(cls, rows: Sequence[Row], axes: Axes, dataset: str) -> "_Drawn":
        methods = method_series(rows, axes, dataset)
        baselines = baseline_series(rows, axes, dataset)
        return cls(dataset, x_axis(rows, axes), methods, baselines, _styles(methods))

    @property
    def collapsed(self) -> bool:
        return self.without_collapsed().methods != self.methods

    def without_collapsed(self) -> "_Drawn":
        dense = [series for series in self.baselines if series.kind == DENSE]
        others = [series for series in self.baselines if series.kind != DENSE]
        # At a high sparsity every model is far from the dense one: only their kind is a measure.
        kept = within([*self.methods, *others], _COLLAPSED)
        names = {series.label for series in others}
        return replace(
            self,
            methods=[series for series in kept if series.label not in names],
            baselines=[*dense, *(series for series in kept if series.label in names)],
        )


def _shown(names: Sequence[str]) -> list[str]:
    """Return the data sets that have panels: all of a few, of many those that sum them up."""
    summed = [name for name in names if name in SUMMARIES]
    return summed if summed and len(names) - len(summed) > _MOST_PANELS else list(names)


def _along_axis(panel: "Panel", one: _Drawn) -> None:
    everything = (*one.methods, *one.baselines)
    values = list(dict.fromkeys(p.x for series in everything for p in series.points))
    numeric, place = is_numeric(values), places(values)
    width = max(place.values(), default=0.0) - min(place.values(), default=0.0) or 1.0
    for series, style in zip(one.baselines, _baseline_styles(one), strict=True):
        _draw(panel, series, [place[p.x] for p in series.points], style)
    for number, series in enumerate(one.methods):
        # Methods often agree to the last digit: side by side all of them can be seen.
        shift = (number - (len(one.methods) - 1) / 2) * _DODGE[numeric] * width
        colour, marker, line = one.styles[series.values]
        xs = [place[p.x] + shift for p in series.points]
        _draw(panel, series, xs, (colour, marker, line if numeric else ""))
    panel.set_xticks(list(place.values()), values)
    panel.set_xlabel(one.x)
    _scale_y(panel, everything)


def _along_bytes(panel: "Panel", one: _Drawn) -> None:
    sizes = [p.megabytes for series in one.methods for p in series.points]
    for series in one.methods:
        colour, marker, line = one.styles[series.values]
        numeric = is_numeric(p.x for p in series.points)
        xs = [p.megabytes for p in series.points]
        _draw(panel, series, xs, (colour, marker, line if numeric else ""))
    for point in one.methods[0].points if one.methods else ():
        panel.annotate(
            f"{one.x.rpartition('.')[2]} {point.x}",
            (point.megabytes, point.mean),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize="x-small",
            color="#555555",
        )
    if wide_range(sizes):
        scale_logarithmically(panel, "x")
    elif sizes:
        panel.set_xlim(0, 1.35 * max(sizes))
    panel.set_xlabel("megabytes sent and received by a client")
    _scale_y(panel, one.methods)


def _draw(panel: "Panel", series: Series, xs: Sequence[float], style: _Style) -> None:
    colour, marker, line = style
    panel.errorbar(
        xs,
        [p.mean for p in series.points],
        yerr=(
            # The mean of equal numbers can be an ulp beyond them, and bars may not be negative.
            [max(0.0, p.mean - p.low) for p in series.points],
            [max(0.0, p.high - p.mean) for p in series.points],
        ),
        color=colour,
        linestyle=line,
        marker=marker,
        markersize=5,
        markerfacecolor="white" if line == "--" else colour,
        linewidth=1.4,
        capsize=2.5,
        label=series.label,
    )


def _baseline_styles(one: _Drawn) -> list[_Style]:
    """Return styles for baselines: the line says which, the marker which of several.

    They are grey, or of the method's colour where each method has its own.
    """
    kinds: dict[str, int] = {}
    counts: dict[str, int] = {}
    styles = []
    for series in one.baselines:
        colour, line = _BASELINE_STYLES[kinds.setdefault(series.kind, len(kinds))]
        number = counts[series.kind] = counts.get(series.kind, -1) + 1
        if series.values:
            colour = one.styles.get(series.values, (colour,))[0]
        styles.append((colour, _BASELINE_MARKERS[number % len(_BASELINE_MARKERS)], line))
    return styles


def _styles(methods: Sequence[Series]) -> dict[tuple[str, ...], _Style]:
    """Return colour, marker and line of every method.

    The first key that tells methods apart chooses the colour, the second the marker, the third
    the line; where that is not enough, colours and markers are dealt out one after another.
    """
    wheels = (COLOURS, MARKERS, _LINES)
    keys = [list(dict.fromkeys(found)) for found in zip(*(s.values for s in methods), strict=True)]
    enough = all(len(found) <= len(wheel) for found, wheel in zip(keys, wheels, strict=False))
    styles: dict[tuple[str, ...], _Style] = {}
    for number, series in enumerate(methods):
        if 1 < len(keys) <= len(wheels) and enough:
            places = [found.index(v) for found, v in zip(keys, series.values, strict=True)]
        else:
            lap = number // len(COLOURS)
            places = [number % len(COLOURS), (number + lap) % len(MARKERS), lap % len(_LINES)]
        places += [0] * (len(wheels) - len(places))
        styles[series.values] = (COLOURS[places[0]], MARKERS[places[1]], _LINES[places[2]])
    return styles


def _scale_y(panel: "Panel", drawn: Sequence[Series]) -> None:
    values = [p.mean for series in drawn for p in series.points]
    if wide_range(values):
        scale_logarithmically(panel, "y")
