"""What the plots of a sweep show: means and spreads along one axis, a curve for each method."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TypeVar

from fedprune.results.perplexity import FEDERATED, MODELS
from fedprune.results.sweep import (
    DOWN,
    EXCESS,
    SPARSITY,
    UP,
    Axes,
    Row,
    by_seed,
    combinations,
    perplexity_key,
    relevant,
    values_of,
)

BASELINES = ("dense", "local_only.mean", "centralized", "no_client")
_BYTES_PER_MEGABYTE = 1e6
_LOG_RANGE = 10.0


@dataclass(frozen=True)
class Point:
    """Mean, least and largest of a figure over the seeds, and what it cost."""

    x: str
    mean: float
    low: float
    high: float
    megabytes: float  # what a client sends and receives, mean over the seeds


@dataclass(frozen=True)
class Series:
    """One curve."""

    label: str
    kind: str  # whose perplexity it is, one of the words of `MODELS`
    values: tuple[str, ...]  # its value of each key that tells the curves apart
    points: tuple[Point, ...]  # in the order of the axis


def x_axis(rows: Sequence[Row], axes: Axes) -> str:
    """Return the key to plot against: sparsity, else the first number that varies, else any key."""
    varying = [key for key in (SPARSITY, *axes.columns, *axes.rows) if _varies(rows, key)]
    numeric = [key for key in varying if is_numeric(row.get(key) for row in rows)]
    return next(iter((*numeric, *varying)), SPARSITY)


def method_series(rows: Sequence[Row], axes: Axes, figure: str) -> list[Series]:
    """Return a curve of a figure of the runs for each combination of the other keys."""
    return _series(rows, _others(rows, axes), x_axis(rows, axes), figure, MODELS[FEDERATED])


def baseline_series(rows: Sequence[Row], axes: Axes, dataset: str) -> list[Series]:
    """Return the curves of what the methods are compared with, as few as there are different."""
    found: list[Series] = []
    x = x_axis(rows, axes)
    for path in BASELINES:
        figure = perplexity_key(dataset, path)
        keys = relevant(rows, Axes(tuple(_others(rows, axes)), (x,)), figure)
        found += _series(rows, keys, x, figure, MODELS[path], name_first=True)
    return found


def within(series: Sequence[Series], factor: float) -> list[Series]:
    """Return the curves without the points that exceed ``factor`` times the least at their x."""
    least: dict[str, float] = {}
    for point in (point for curve in series for point in curve.points):
        least[point.x] = min(point.mean, least.get(point.x, math.inf))
    kept = [
        replace(curve, points=tuple(p for p in curve.points if p.mean <= factor * least[p.x]))
        for curve in series
    ]
    return [curve for curve in kept if curve.points]


def is_numeric(values: Iterable[object]) -> bool:
    """Return whether all values can be read as finite numbers."""
    try:
        return all(math.isfinite(float(str(value))) for value in values)
    except ValueError:
        return False


def places(values: Sequence[str]) -> dict[str, float]:
    """Return where the values of an axis stand.

    Names stand side by side, numbers where they belong, by their logarithm if they span a wide
    range.
    """
    if not is_numeric(values):
        return {value: float(place) for place, value in enumerate(values)}
    numbers = {value: float(value) for value in values}
    if wide_range(list(numbers.values())):
        return {value: math.log2(number) for value, number in numbers.items()}
    return numbers


def wide_range(values: Sequence[float]) -> bool:
    """Return whether values differ so much that their axis is better logarithmic."""
    return bool(values) and max(values) > _LOG_RANGE * min(values) > 0


def _series(
    rows: Sequence[Row],
    keys: Sequence[str],
    x: str,
    figure: str,
    name: str,
    *,
    name_first: bool = False,
) -> list[Series]:
    found = []
    for values in combinations(rows, keys):
        here = matching(rows, keys, values)
        named = zip(short_names(keys), values, strict=True)
        parts = [f"{short}={v}" for short, v in named if v]  # another method's key says nothing
        if name_first or not parts:
            parts.insert(0, name)
        points = tuple(filter(None, (_point(here, x, value, figure) for (value,) in _xs(here, x))))
        if points:
            found.append(Series(", ".join(parts), name, values, points))
    return found


def _xs(rows: Sequence[Row], x: str) -> list[tuple[str, ...]]:
    found = combinations(rows, [x])
    numeric = is_numeric(value for (value,) in found)
    return sorted(found, key=lambda value: float(value[0])) if numeric else found


def _point(rows: Sequence[Row], x: str, value: str, figure: str) -> Point | None:
    here = [row for row in rows if str(row.get(x)) == value]
    found = [number for number in by_seed(here, figure) if math.isfinite(number)]
    if not found:
        return None
    traffic = [fmean(by_seed(here, key) or [0.0]) for key in (UP, DOWN)]
    megabytes = sum(traffic) / _BYTES_PER_MEGABYTE
    return Point(value, fmean(found), min(found), max(found), megabytes)


def short_names(keys: Sequence[str]) -> list[str]:
    """Return the last parts of dotted keys, whole where two would be the same."""
    last = [key.rpartition(".")[2] for key in keys]
    return [name if last.count(name) == 1 else key for name, key in zip(last, keys, strict=True)]


def _others(rows: Sequence[Row], axes: Axes) -> list[str]:
    x = x_axis(rows, axes)
    return [key for key in (*axes.rows, *axes.columns) if key != x and _varies(rows, key)]


def _varies(rows: Sequence[Row], key: str) -> bool:
    return len(combinations(rows, [key])) > 1


@dataclass(frozen=True)
class Cost(Point):
    """What one setting costs, in bytes that a client sends, and gives."""

    label: str = ""  # its row in the table, told by the keys that vary
    values: tuple[str, ...] = ()  # its value of each of these keys


P = TypeVar("P", bound=Point)


def unbeaten(points: Iterable[P]) -> list[P]:
    """Return those to which no other gives less for as few bytes, by their bytes."""
    found: list[P] = []
    for point in sorted(points, key=lambda one: (one.megabytes, one.mean)):
        if not found or point.mean < found[-1].mean:
            found.append(point)
    return found


def frontier_series(rows: Sequence[Row], axes: Axes) -> list[Series]:
    """Return for each row of the table its excess and what a client sends, by column."""
    by_row: dict[tuple[str, ...], list[Point]] = {}
    labels: dict[tuple[str, ...], str] = {}
    for column in combinations(rows, axes.columns):
        here = matching(rows, axes.columns, column)
        for cost in costs(here, _varying(rows, axes.rows), EXCESS):
            point = Point(" ".join(column), cost.mean, cost.low, cost.high, cost.megabytes)
            by_row.setdefault(cost.values, []).append(point)
            labels[cost.values] = cost.label
    return [
        Series(labels[values], MODELS[FEDERATED], values, tuple(points))
        for values, points in by_row.items()
    ]


def matching(rows: Sequence[Row], keys: Sequence[str], values: tuple[str, ...]) -> list[Row]:
    """Return the rows that have these values of some keys."""
    return [row for row in rows if values_of(row, keys) == values]


def costs(rows: Sequence[Row], keys: Sequence[str], figure: str) -> list[Cost]:
    """Return bytes and a figure for each combination of keys that has both.

    `keys`: what tells settings apart; those that never vary are not in the labels.
    """
    varying = _varying(rows, keys)
    found = []
    for values in combinations(rows, varying):
        here = matching(rows, varying, values)
        sent = by_seed(here, UP)
        figures = [one for one in by_seed(here, figure) if math.isfinite(one)]
        if sent and figures:
            spread = (fmean(figures), min(figures), max(figures))
            megabytes = fmean(sent) / _BYTES_PER_MEGABYTE
            found.append(Cost("", *spread, megabytes, _cost_label(varying, values), values))
    return found


def _varying(rows: Sequence[Row], keys: Sequence[str]) -> list[str]:
    return [key for key in keys if _varies(rows, key)]


def _cost_label(keys: Sequence[str], values: Sequence[str]) -> str:
    """Return values in words; numbers, truths and nothings only say something with their key.

    A key that a setting does not have, since another method's, says nothing of it.
    """
    parts = []
    for name, value in zip(short_names(keys), values, strict=True):
        if not value:
            continue
        bare = is_numeric([value]) or value in ("true", "false", "null", "none")
        parts.append(f"{name}={value}" if bare else value)
    return " ".join(parts) or "all"
