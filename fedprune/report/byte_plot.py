"""One plot of what every setting costs and gives: perplexity against bytes sent by a client."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from fedprune.report.drawing import COLOURS, MARKERS, save_figure, scale_logarithmically
from fedprune.report.series import is_numeric, short_names, wide_range
from fedprune.results.perplexity import DENSE, FEDERATED, GEOMETRIC_MEAN
from fedprune.results.sweep import UP, Axes, Row, by_seed, combinations, datasets, perplexity_key

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Panel

_BYTES_PER_MEGABYTE = 1e6
_PANEL_WIDTH = 11.0
_LABEL_HEIGHT = 0.14  # inches
_HEIGHT = 4.8
_DENSE_COLOUR = "#777777"
# From the middle of a label's left edge to its point.
_LEADER = {"arrowstyle": "-", "relpos": (0, 0.5), "alpha": 0.4, "lw": 0.7}


@dataclass(frozen=True)
class Cost:
    """What one setting costs and gives.

    Attributes
    ----------
    label : str
        Its row in the table, told by the keys that vary.
    values : tuple of str
        Its value of each of these keys.
    megabytes : float
        What a client sends, mean over the seeds.
    mean, low, high : float
        Perplexity: mean, least and largest over the seeds.
    """

    label: str
    values: tuple[str, ...]
    megabytes: float
    mean: float
    low: float
    high: float


def costs(rows: Sequence[Row], keys: Sequence[str], dataset: str) -> list[Cost]:
    """Return cost and perplexity for each combination of keys that has both.

    Parameters
    ----------
    rows : sequence of Row
        One a run.
    keys : sequence of str
        What tells settings apart; those that never vary are not in the labels.
    dataset : str
        A data set or a summary over several.
    """
    varying = [key for key in keys if len(combinations(rows, [key])) > 1]
    found = []
    for values in combinations(rows, varying):
        here = [row for row in rows if tuple(str(row.get(key, "")) for key in varying) == values]
        sent = by_seed(here, UP)
        figures = by_seed(here, perplexity_key(dataset, FEDERATED))
        figures = [figure for figure in figures if math.isfinite(figure)]
        if sent and figures:
            megabytes = fmean(sent) / _BYTES_PER_MEGABYTE
            spread = (fmean(figures), min(figures), max(figures))
            found.append(Cost(_label(varying, values), values, megabytes, *spread))
    return found


def plot_bytes(rows: Sequence[Row], axes: Axes, title: str, folder: Path) -> list[Path]:
    """Draw ``bytes.png`` and ``bytes.svg`` and return their paths.

    A panel for each column of the table, a point for each of its rows. Perplexity is the geometric
    mean over the data sets, where there are several.

    Parameters
    ----------
    rows : sequence of Row
        One a run; at least one of them has a perplexity.
    axes : Axes
        Which keys were swept.
    title : str
        Stands above all.
    folder : Path
        Where the files go.
    """
    from matplotlib.figure import Figure

    measured = datasets(rows)
    dataset = GEOMETRIC_MEAN if GEOMETRIC_MEAN in measured else measured[0]
    columns = combinations(rows, axes.columns)
    lines = len(combinations(rows, axes.rows))
    height = max(_HEIGHT, 1.2 + _LABEL_HEIGHT * lines)
    figure = Figure(figsize=(_PANEL_WIDTH, height * len(columns)), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    panels = figure.subplots(len(columns), 1, squeeze=False)[:, 0]
    for panel, column in zip(panels, columns, strict=True):
        here = [r for r in rows if tuple(str(r.get(key, "")) for key in axes.columns) == column]
        names = zip(axes.columns, column, strict=True)
        panel.set_title(", ".join(f"{key} {value}" for key, value in names), fontsize="small")
        panel.set_xlabel("megabytes sent by a client")
        panel.set_ylabel(f"perplexity ({dataset})")
        panel.grid(alpha=0.3)
        _draw(panel, costs(here, axes.rows, dataset), by_seed(here, perplexity_key(dataset, DENSE)))
    return save_figure(figure, folder, "bytes")


def _draw(panel: "Panel", points: Sequence[Cost], dense: Sequence[float]) -> None:
    styles = _styles(points)
    for point, (colour, marker) in zip(points, styles, strict=True):
        # The mean of equal numbers can be an ulp beyond them, and bars may not be negative.
        bars = [[max(0.0, point.mean - point.low)], [max(0.0, point.high - point.mean)]]
        panel.errorbar(
            [point.megabytes], [point.mean], yerr=bars, color=colour, marker=marker, capsize=2.5
        )
    if dense:
        panel.axhline(fmean(dense), color=_DENSE_COLOUR, linestyle=":")
    if wide_range([point.mean for point in points] + list(dense)):
        scale_logarithmically(panel, "y")
    if wide_range([point.megabytes for point in points]):
        scale_logarithmically(panel, "x")
    labels = [
        _Label(point.label, (point.megabytes, point.mean), colour)
        for point, (colour, _) in zip(points, styles, strict=True)
    ]
    if dense:
        labels.append(_Label(DENSE, (panel.get_xlim()[1], fmean(dense)), _DENSE_COLOUR))
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


def _styles(points: Sequence[Cost]) -> list[tuple[str, str]]:
    """Return colour and marker: the first key that varies chooses one, the second the other."""
    keys = [list(dict.fromkeys(found)) for found in zip(*(p.values for p in points), strict=True)]
    keys = [*keys, [], []][:2]
    styles = []
    for point in points:
        places = [found.index(v) for found, v in zip(keys, point.values, strict=False) if found]
        colour, marker = [*places, 0, 0][:2]
        styles.append((COLOURS[colour % len(COLOURS)], MARKERS[marker % len(MARKERS)]))
    return styles


def _label(keys: Sequence[str], values: Sequence[str]) -> str:
    """Return values in words; numbers, truths and nothings only say something with their key."""
    parts = []
    for name, value in zip(short_names(keys), values, strict=True):
        bare = is_numeric([value]) or value in ("true", "false", "null", "")
        parts.append(f"{name}={value}" if bare else value)
    return " ".join(parts) or "all"
