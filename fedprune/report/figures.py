"""The figures of a sweep, drawn once for files and pages alike.

The plotting library is imported where something is drawn: it takes a second, which only sweeps
have to wait for. No pyplot: without it there is no display, no backend to choose and no state that
outlives a figure.
"""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup

from fedprune.report.series import (
    Cost,
    Point,
    Series,
    baseline_series,
    costs,
    frontier_series,
    is_numeric,
    matching,
    method_series,
    places,
    unbeaten,
    wide_range,
    within,
    x_axis,
)
from fedprune.report.svg import inline_svg
from fedprune.results import text
from fedprune.results.perplexity import DENSE, FEDERATED, GEOMETRIC_MEAN, SUMMARIES
from fedprune.results.sweep import (
    EXCESS,
    PRUNE_SECONDS,
    Axes,
    Row,
    by_seed,
    combinations,
    datasets,
    perplexity_key,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Panel
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision; greys are the baselines'.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
_LINES = ("-", "--", ":", "-.")
_BASELINES = (("#777777", ":"), ("#555555", "--"), ("#333333", "-."), ("#999999", "-"))
_BASELINE_MARKERS = ("o", "x", "*", "d", "1")
_EDGE = "#dde2e8"
_IN_PAGE: Mapping[str, str] = {
    **{colour: f"var(--k{place})" for place, colour in enumerate(COLOURS)},
    **{colour: "var(--other)" for colour, _ in _BASELINES},
    _EDGE: "var(--edge)",
    "#ffffff": "var(--card)",
}
_STYLE = {
    "text.parse_math": False,  # dollars in a name are dollars
    "axes.edgecolor": _EDGE,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": _EDGE,
    "xtick.major.pad": 6,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
}
_MOST_PANELS = 4  # data sets that are drawn one by one
_COLLAPSED = 10.0
# Share of the axis between two methods, where the axis has names and where it has numbers.
_DODGE = (0.03, 0.006)
_LEGEND_COLUMNS = 3
_LARGEST_PLAIN = 1e6
_LABEL_HEIGHT = 0.14  # inches
# From the middle of a label's left edge to its point.
_LEADER = {"arrowstyle": "-", "relpos": (0, 0.5), "alpha": 0.4, "lw": 0.7}
_CHARACTER = 0.6  # width, in heights
_SENT, _EXCESS = "megabytes sent by a client", "log-perplexity over the dense model's"

_Style = tuple[str, str, str]


# A figure on a page: pixels, methods in a line of the legend, characters in a line of a label.
@dataclass(frozen=True)
class _Shape:
    name: str
    width: int
    height: int
    columns: int
    characters: int


_SHAPES = (_Shape("wide", 840, 290, 3, 34), _Shape("narrow", 360, 300, 1, 46))
_PIXELS = 72.0  # of an inch, in the library's SVG
_FONT = 12.0

_Marks = dict[str, list[str]]
"""Group id of a series' markers -> what each of them says."""
_Say = Callable[[Point], str]


def perplexity_drawing(rows: Sequence[Row], axes: Axes, dataset: str, name: str) -> Markup:
    """Return perplexity along the swept axis for a page.

    `name`: begins its ids, which have to be the page's only ones. Returns a wide SVG and a narrow
    one for phones, of which the page shows one.
    """
    drawn = _Drawn.of(rows, axes, dataset)
    return _on_page(name, lambda panel: _along_axis(panel, drawn, text.figure))


def bytes_drawing(rows: Sequence[Row], axes: Axes, dataset: str, name: str) -> Markup:
    """Return perplexity against bytes for a page; as :func:`perplexity_drawing`."""
    drawn = _Drawn.of(rows, axes, dataset)
    return _on_page(name, lambda panel: _along_bytes(panel, drawn))


def frontier_drawing(rows: Sequence[Row], axes: Axes, name: str) -> Markup:
    """Return excess against what a client sends for a page; as :func:`perplexity_drawing`."""
    series = frontier_series(rows, axes)
    return _on_page(name, lambda panel: _along_sent(panel, series))


def time_drawing(rows: Sequence[Row], axes: Axes, name: str) -> Markup:
    """Return the seconds of pruning for a page; as :func:`perplexity_drawing`."""
    drawn = _Drawn.of_times(rows, axes)
    return _on_page(name, lambda panel: _times(panel, drawn))


def _on_page(name: str, draw: Callable[["Panel"], _Marks]) -> Markup:
    from matplotlib.figure import Figure

    found = Markup()
    for shape in _SHAPES:
        size = (shape.width / _PIXELS, shape.height / _PIXELS)
        with _styled({"font.size": _FONT, "legend.fontsize": _FONT}):
            figure = Figure(figsize=size, layout="constrained")
            panel = figure.subplots()
            marks = draw(panel)
            below = _legend(figure, panel, shape)
            figure.set_figheight((shape.height + below) / _PIXELS)
            drawn = inline_svg(figure, f"{name}-{shape.name}", _IN_PAGE, marks)
        found += Markup('<div class="{}">{}</div>').format(shape.name, drawn)
    return found


def _styled(more: Mapping[str, Any] | None = None) -> AbstractContextManager[None]:
    """Give what is drawn inside the `with` statement the look of all our figures."""
    from matplotlib import rc_context

    settings: Any = {**_STYLE, **(more or {})}
    return rc_context(settings)


def _legend(figure: "Figure", panel: "Panel", shape: _Shape) -> float:
    """Put the legend below the panel and return how many pixels it takes."""
    handles, labels = _entries(panel)
    wrapped = [textwrap.fill(label, shape.characters) for label in labels]
    columns = max(1, min(shape.columns, len(labels)))
    legend = figure.legend(handles, wrapped, loc="outside lower left", ncols=columns)
    # For now with more room than it can need: a panel without any has no layout.
    figure.set_figheight((shape.height + 6 * _FONT * len(labels)) / _PIXELS)
    figure.draw_without_rendering()
    return float(legend.get_window_extent().height) * _PIXELS / figure.dpi


def _entries(panel: "Panel") -> tuple[list[Any], list[str]]:
    """Return what a legend tells; the library's own would leave out names that begin with "_"."""
    handles = [one for one in panel.containers if one.get_label()]
    # Without the bars of the spread, which would cross the sample of a line.
    return [handle[0] for handle in handles], [str(handle.get_label()) for handle in handles]


def _thin_ticks(panel: "Panel") -> None:
    """Leave out the names of ticks that would overlap; a panel is about as wide as its figure."""
    width = panel.get_window_extent().width * _PIXELS / panel.figure.dpi
    low, high = panel.get_xlim()
    names = [label.get_text() for label in panel.get_xticklabels()]
    taken = low
    kept: dict[float, str] = {}
    for tick, name in sorted(zip(panel.get_xticks(), names, strict=True)):
        half = (high - low) * _CHARACTER * _FONT * (len(name) + 1) / 2 / width
        if tick - half >= taken or not kept:
            kept[tick], taken = name, tick + half
    panel.set_xticks([*kept], [*kept.values()])


def plot_sweep(rows: Sequence[Row], axes: Axes, title: str, folder: Path) -> list[Path]:
    """Draw a sweep into ``plot.png`` and ``plot.svg`` and return their paths.

    A row of panels for each data set: perplexity along the axis, the same without collapsed
    models if there are any, and perplexity against bytes. Of more than four, only the summaries
    have panels.
    """
    drawn = [_Drawn.of(rows, axes, dataset) for dataset in shown_datasets(datasets(rows))]
    columns = 3 if any(one.collapsed for one in drawn) else 2
    with _titled(title, 5.6 * columns, 4.8 * len(drawn)) as figure:
        panels = figure.subplots(len(drawn), columns, squeeze=False)
        for line, one in zip(panels, drawn, strict=True):
            _along_axis(line[0], one, text.figure)
            if columns == 3:
                line[1].set_title("without collapsed models", fontsize="small")
                _along_axis(line[1], one.without_collapsed(), text.figure)
            _along_bytes(line[-1], one)
            line[-1].set_title(f"beside each point its {one.x}", fontsize="small")
            for panel in line:
                panel.set_ylabel(f"perplexity ({one.dataset})")
        _file_legend(figure, panels[0][0], _LEGEND_COLUMNS)
        return _save(figure, folder, "plot")


def plot_time(rows: Sequence[Row], axes: Axes, title: str, folder: Path) -> list[Path]:
    """Draw ``time.png`` and ``time.svg``, the seconds of pruning; as :func:`plot_sweep`."""
    with _titled(title, 7.2, 4.8) as figure:
        panel = figure.subplots()
        _times(panel, _Drawn.of_times(rows, axes))
        panel.set_ylabel("seconds of federated pruning")
        _file_legend(figure, panel, 2)
        return _save(figure, folder, "time")


def plot_bytes(rows: Sequence[Row], axes: Axes, title: str, folder: Path) -> list[Path]:
    """Draw ``bytes.png`` and ``bytes.svg`` and return their paths.

    A panel for each column of the table, a point for each of its rows. Perplexity is the geometric
    mean over the data sets, where there are several.

    """
    measured = datasets(rows)
    dataset = GEOMETRIC_MEAN if GEOMETRIC_MEAN in measured else measured[0]

    def draw(panel: "Panel", here: Sequence[Row]) -> None:
        panel.set_ylabel(f"perplexity ({dataset})")
        dense = by_seed(here, perplexity_key(dataset, DENSE))
        _labelled(panel, costs(here, axes.rows, perplexity_key(dataset, FEDERATED)), dense)

    return _a_panel_a_column(rows, axes, title, folder / "bytes", draw)


def plot_frontier(rows: Sequence[Row], axes: Axes, title: str, folder: Path) -> list[Path]:
    """Draw ``frontier.png`` and ``frontier.svg`` and return their paths.

    As :func:`plot_bytes`, with what the settings leave of the dense model: log-perplexity over
    its, by which settings close to it can be told apart. A line joins those that no other beats
    with as few bytes.
    """

    def draw(panel: "Panel", here: Sequence[Row]) -> None:
        panel.set_ylabel(_EXCESS)
        points = costs(here, axes.rows, EXCESS)
        _labelled(panel, points, [])
        _join_unbeaten(panel, points)

    return _a_panel_a_column(rows, axes, title, folder / "frontier", draw)


def _a_panel_a_column(
    rows: Sequence[Row],
    axes: Axes,
    title: str,
    path: Path,
    draw: Callable[["Panel", Sequence[Row]], None],
) -> list[Path]:
    columns = combinations(rows, axes.columns)
    height = max(4.8, 1.2 + _LABEL_HEIGHT * len(combinations(rows, axes.rows)))
    with _titled(title, 11.0, height * len(columns)) as figure:
        panels = figure.subplots(len(columns), 1, squeeze=False)[:, 0]
        for panel, column in zip(panels, columns, strict=True):
            names = zip(axes.columns, column, strict=True)
            panel.set_title(", ".join(f"{key} {value}" for key, value in names), fontsize="small")
            panel.set_xlabel(_SENT)
            draw(panel, matching(rows, axes.columns, column))
        return _save(figure, path.parent, path.name)


@contextmanager
def _titled(title: str, width: float, height: float) -> Iterator["Figure"]:
    """Give an empty figure of so many inches for a file."""
    from matplotlib.figure import Figure

    with _styled():
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.suptitle(title, fontsize="medium")
        yield figure


def _file_legend(figure: "Figure", panel: "Panel", columns: int) -> None:
    handles, labels = _entries(panel)
    columns = max(1, min(columns, len(labels)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="small")


def _save(figure: "Figure", folder: Path, stem: str) -> list[Path]:
    """Write a figure as PNG and SVG, the same bytes every time, and return their paths."""
    from matplotlib import rc_context

    paths = [folder / f"{stem}.png", folder / f"{stem}.svg"]
    with rc_context({"svg.hashsalt": "fedprune"}):
        figure.savefig(paths[0], dpi=150)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def shown_datasets(names: Sequence[str]) -> list[str]:
    """Return the data sets that have panels: all of a few, of many those that sum them up."""
    summed = [name for name in names if name in SUMMARIES]
    return summed if summed and len(names) - len(summed) > _MOST_PANELS else list(names)


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
        methods = method_series(rows, axes, perplexity_key(dataset, FEDERATED))
        baselines = baseline_series(rows, axes, dataset)
        return cls(dataset, x_axis(rows, axes), methods, baselines, _styles(methods))

    @classmethod
    def of_times(cls, rows: Sequence[Row], axes: Axes) -> "_Drawn":
        methods = method_series(rows, axes, PRUNE_SECONDS)
        return cls("", x_axis(rows, axes), methods, [], _styles(methods))

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


def _along_axis(panel: "Panel", one: _Drawn, write: Callable[[float], str]) -> _Marks:
    everything = (*one.methods, *one.baselines)
    values = list(dict.fromkeys(p.x for series in everything for p in series.points))
    numeric, place = is_numeric(values), places(values)
    width = max(place.values(), default=0.0) - min(place.values(), default=0.0) or 1.0
    marks: _Marks = {}

    def say(p: Point) -> str:
        return f"{write(p.mean)} at {one.x} {p.x}"

    for number, series in enumerate(one.methods):
        # Methods often agree to the last digit: side by side all of them can be seen.
        shift = (number - (len(one.methods) - 1) / 2) * _DODGE[numeric] * width
        colour, marker, line = one.styles[series.values]
        xs = [place[p.x] + shift for p in series.points]
        _draw(panel, series, xs, (colour, marker, line if numeric else ""), marks, say)
    for series, style in zip(one.baselines, _baseline_styles(one), strict=True):
        _draw(panel, series, [place[p.x] for p in series.points], style, marks, say)
    panel.set_xticks(list(place.values()), values)
    _thin_ticks(panel)
    panel.set_xlabel(one.x)
    _scale_y(panel, everything)
    return marks


def _along_bytes(panel: "Panel", one: _Drawn) -> _Marks:
    sizes = [p.megabytes for series in one.methods for p in series.points]
    marks: _Marks = {}
    for series in one.methods:
        colour, marker, _ = one.styles[series.values]

        def say(p: Point) -> str:
            return f"{text.figure(p.mean)} at {one.x} {p.x}"

        xs = [p.megabytes for p in series.points]
        _draw(panel, series, xs, (colour, marker, ""), marks, say)
        _annotate(panel, series.points)
    if wide_range(sizes):
        _scale_logarithmically(panel, "x")
    elif sizes:
        panel.set_xlim(0, 1.25 * max(sizes) or 1.0)
        panel.locator_params(axis="x", nbins=4)
    panel.set_xlabel("megabytes sent and received by a client")
    _scale_y(panel, one.methods)
    return marks


def _along_sent(panel: "Panel", series: Sequence[Series]) -> _Marks:
    """Draw excess against what a client sends; of several columns each point says its own."""
    styles = _styles(series)
    columns = list(dict.fromkeys(point.x for one in series for point in one.points))
    marks: _Marks = {}
    for one in series:
        colour, marker, _ = styles[one.values]

        def say(p: Point) -> str:
            return f"{p.mean:.4f} for {p.megabytes:.3g} MB {p.x}".strip()

        _draw(panel, one, [p.megabytes for p in one.points], (colour, marker, ""), marks, say)
        if len(columns) > 1:
            _annotate(panel, one.points)
    _scale_costs(panel, [point for one in series for point in one.points])
    for column in columns:
        found = [p for one in series for p in one.points if p.x == column]
        _join_unbeaten(panel, found)
    panel.set_xlabel(_SENT)
    panel.set_ylabel(_EXCESS)
    return marks


def _annotate(panel: "Panel", points: Iterable[Point]) -> None:
    """Write beside each point where it is on the axis."""
    for point in points:
        place = (point.megabytes, point.mean)
        panel.annotate(point.x, place, xytext=(8, 0), textcoords="offset points", va="center")


def _join_unbeaten(panel: "Panel", points: Sequence[Point]) -> None:
    """Join the points that no other beats with as few bytes."""
    best = unbeaten(points)
    colour = _BASELINES[0][0]
    xs, ys = [one.megabytes for one in best], [one.mean for one in best]
    # In steps: what so many bytes give is what the setting before gives until the next is paid for.
    panel.plot(xs, ys, color=colour, linewidth=1, linestyle=":", drawstyle="steps-post", zorder=1)


def _scale_costs(panel: "Panel", points: Sequence[Point], *means: float) -> None:
    if wide_range([one.mean for one in points] + list(means)):
        _scale_logarithmically(panel, "y")
    if wide_range([one.megabytes for one in points]):
        _scale_logarithmically(panel, "x")


def _times(panel: "Panel", one: _Drawn) -> _Marks:
    marks = _along_axis(panel, one, text.seconds)
    if not wide_range([p.mean for series in one.methods for p in series.points]):
        panel.set_ylim(bottom=0)
    return marks


def _draw(  # noqa: PLR0913 - what is drawn, where, how, and what it says
    panel: "Panel",
    series: Series,
    xs: Sequence[float],
    style: _Style,
    marks: _Marks,
    say: _Say,
) -> None:
    """Draw a series, and note what its markers say to who points at them."""
    name = f"points{len(marks)}"
    marks[name] = [f"{series.label}: {say(p)}" for p in series.points]
    colour, marker, line = style
    baseline = colour not in COLOURS
    container = panel.errorbar(
        xs,
        [p.mean for p in series.points],
        yerr=_bars(series.points),
        color=colour,
        linestyle=line,
        marker=marker,
        markersize=4 if baseline else 6,
        markerfacecolor="#ffffff" if line == "--" and not baseline else colour,
        linewidth=1.2 if baseline else 1.6,
        elinewidth=1,
        capsize=2.5,
        zorder=2 if baseline else 3,
        label=series.label,
    )
    container[0].set_gid(name)


def _bars(points: Sequence[Point]) -> list[list[float]]:
    """Return how far points reach down and up: the mean of equal numbers can lie beyond them."""
    down = [max(0.0, point.mean - point.low) for point in points]
    return [down, [max(0.0, point.high - point.mean) for point in points]]


def _baseline_styles(one: _Drawn) -> list[_Style]:
    """Return styles for baselines: the line says which, the marker which of several.

    They are grey, or of the method's colour where each method has its own.
    """
    kinds: dict[str, int] = {}
    counts: dict[str, int] = {}
    styles = []
    for series in one.baselines:
        colour, line = _BASELINES[kinds.setdefault(series.kind, len(kinds)) % len(_BASELINES)]
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
            chosen = [found.index(v) for found, v in zip(keys, series.values, strict=True)]
        else:
            turn = number // len(COLOURS)
            chosen = [number % len(COLOURS), (number + turn) % len(MARKERS), turn % len(_LINES)]
        chosen += [0] * (len(wheels) - len(chosen))
        styles[series.values] = (COLOURS[chosen[0]], MARKERS[chosen[1]], _LINES[chosen[2]])
    return styles


def _scale_y(panel: "Panel", drawn: Sequence[Series]) -> None:
    if wide_range([p.mean for series in drawn for p in series.points]):
        _scale_logarithmically(panel, "y")
    else:
        panel.locator_params(axis="y", nbins=6)


def _scale_logarithmically(panel: "Panel", axis: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with round numbers at a few places only."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.set(**{f"{axis}scale": "log"})
    found = panel.xaxis if axis == "x" else panel.yaxis
    found.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    plain = FuncFormatter(lambda v, _: f"{v:,g}" if v < _LARGEST_PLAIN else f"{v:g}")
    found.set_major_formatter(plain)
    found.set_minor_formatter(NullFormatter())


def _labelled(panel: "Panel", points: Sequence[Cost], dense: Sequence[float]) -> None:
    """Draw what settings cost and give, each with its label beside the panel."""
    styles = _cost_styles(points)
    for point, (colour, marker) in zip(points, styles, strict=True):
        panel.errorbar(
            [point.megabytes],
            [point.mean],
            yerr=_bars([point]),
            color=colour,
            marker=marker,
            capsize=2.5,
        )
    grey = _BASELINES[0][0]
    if dense:
        panel.axhline(fmean(dense), color=grey, linestyle=":")
    _scale_costs(panel, points, *dense)
    labels = [
        _Label(point.label, (point.megabytes, point.mean), colour)
        for point, (colour, _) in zip(points, styles, strict=True)
    ]
    if dense:
        labels.append(_Label(DENSE, (panel.get_xlim()[1], fmean(dense)), grey))
    _write_labels(panel, labels)


@dataclass(frozen=True)
class _Label:
    """A text, the point that it belongs to, and its colour."""

    text: str
    place: tuple[float, float]
    colour: str


def _write_labels(panel: "Panel", labels: Sequence[_Label]) -> None:
    """Write the labels into a column beside the panel, in the order of height, a line to each."""
    panel.get_xlim(), panel.get_ylim()  # fixes the limits that the transformation needs
    to_axes = panel.transData + panel.transAxes.inverted()
    found = sorted((float(to_axes.transform(one.place)[1]), n) for n, one in enumerate(labels))
    shown = spread_out([height for height, _ in found], 1 / max(len(labels), 24))
    for (_, number), height in zip(found, shown, strict=True):
        one = labels[number]
        panel.annotate(
            one.text,
            one.place,
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            fontsize="x-small",
            color=one.colour,
            arrowprops={**_LEADER, "color": one.colour},
            annotation_clip=False,
        )


def spread_out(heights: Sequence[float], gap: float) -> list[float]:
    """Return ascending heights moved apart to be at least ``gap`` apart within 0 to 1."""
    shown: list[float] = []
    for height in heights:
        shown.append(max(height, shown[-1] + gap) if shown else max(height, 0.0))
    ceiling = 1.0
    for place in reversed(range(len(shown))):
        shown[place] = min(shown[place], ceiling)
        ceiling = shown[place] - gap
    return shown


def _cost_styles(points: Sequence[Cost]) -> list[tuple[str, str]]:
    """Return colour and marker: the first key that varies chooses one, the second the other."""
    keys = [list(dict.fromkeys(found)) for found in zip(*(p.values for p in points), strict=True)]
    keys = [*keys, [], []][:2]
    styles = []
    for point in points:
        chosen = [found.index(v) for found, v in zip(keys, point.values, strict=False) if found]
        colour, marker = [*chosen, 0, 0][:2]
        styles.append((COLOURS[colour % len(COLOURS)], MARKERS[marker % len(MARKERS)]))
    return styles
