"""Curves with the spread over seeds, as inline SVG whose width follows the page."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedprune.report.markup import Html, tag

_TOP, _FLOOR, _HEIGHT = 14, 226, 250  # pixels
_LEFT, _RIGHT = 6.0, 94.0  # where the first and the last value of the axis stand, per cent
_CHARACTER = 3.2  # width of a character on a phone, per cent
_COLOURS = 6
_ASIDE = 5.0  # pixels between methods
_DASHES = (None, "7 4", "2 3", "8 3 2 3")
_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)
_LOG_RANGE = 10.0

_LIGHT = """
  --k0: #0b62a8; --k1: #b8480f; --k2: #00765c; --k3: #a03d7c; --k4: #7d6000; --k5: #5a4fcf;
"""
_DARK = """
  --k0: #64aeee; --k1: #ff9a5c; --k2: #43cfa6; --k3: #f09bd0; --k4: #e6c04a; --k5: #aaa4ff;
"""
CURVES_STYLE = f"""
:root {{ {_LIGHT} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
.curves {{ display: flex; height: {_HEIGHT}px; margin: .5rem 0; }}
.curves .axis {{ flex: none; width: 60px; height: {_HEIGHT}px; }}
.curves .axis text {{ text-anchor: end; }}
.curves .plane {{ flex: 1; min-width: 0; height: {_HEIGHT}px; }}
.plane .grid {{ stroke: var(--edge); }}
.plane line {{ stroke-width: 1.8; }} .plane .grid, .plane .spread {{ stroke-width: 1; }}
.keys {{ list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 0 0 .75rem;
  padding: 0; color: var(--soft); font-size: .85rem; }}
.keys li {{ display: flex; align-items: center; gap: .4rem; min-width: 0; }}
.keys svg {{ flex: none; }} .keys line {{ stroke-width: 2; }}
.across {{ margin: 0 0 .5rem; padding-left: 60px; text-align: center; color: var(--soft);
  font-size: .8rem; }}
{"".join(f".k{n} {{ stroke: var(--k{n}); fill: var(--k{n}); }}" for n in range(_COLOURS))}
svg text {{ stroke: none; }}
.kb {{ stroke: var(--other); fill: var(--other); }}
"""


@dataclass(frozen=True)
class Dot:
    """One point.

    Attributes
    ----------
    x : float
        Its place on the axis.
    mean, low, high : float
        Over the seeds.
    text : str
        What it says of itself to who points at it.
    name : str
        What stands beside it, if anything.
    """

    x: float
    mean: float
    low: float
    high: float
    text: str
    name: str = ""


@dataclass(frozen=True)
class Curve:
    """One curve; a baseline is grey."""

    label: str
    dots: tuple[Dot, ...]
    baseline: bool = False
    joined: bool = True


@dataclass(frozen=True)
class Plane:
    """Where curves are drawn.

    Attributes
    ----------
    label : str
        What is seen, for those who do not see it.
    across : str
        Name of the horizontal axis.
    ticks : Mapping[str, float]
        Text -> place of each labelled value on it.
    tick : Callable[[float], str]
        Writes a value of the vertical axis.
    from_zero : bool
        Whether the vertical axis begins at zero.
    """

    label: str
    across: str
    ticks: Mapping[str, float]
    tick: Callable[[float], str]
    from_zero: bool = False

    def draw(self, curves: Sequence[Curve]) -> Html:
        """Return the curves, the axes and a key to the curves."""
        seen = [value for curve in curves for dot in curve.dots for value in (dot.low, dot.high)]
        scale = Scale.over([*seen, 0.0] if self.from_zero else seen)
        axis = [
            tag("text", self.tick(tick), x="52", y=scale.height(tick) + 4) for tick in scale.ticks
        ]
        plane = [_grid(scale.height(tick)) for tick in scale.ticks]
        plane += [
            tag("text", text, x=f"{at:.2f}%", y=_HEIGHT - 6.0, class_="under")
            for text, at in self._labels()
        ]
        styles = _styles(curves)
        aside = _aside(curves)
        drawn = zip(curves, styles, aside, strict=True)
        # Methods lie over baselines.
        for curve, style, shift in sorted(drawn, key=lambda one: not one[0].baseline):
            parts = self._curve(curve, scale, *style)
            plane.append(tag("g", *parts, transform=f"translate({shift:g} 0)" if shift else None))
        drawing = [
            tag("svg", *axis, class_="axis", aria_hidden="true"),
            tag("svg", *plane, class_="plane", aria_hidden="true"),
        ]
        keys = [_key(curve, *style) for curve, style in zip(curves, styles, strict=True)]
        return tag(
            "div",
            tag("div", *drawing, class_="curves", role="img", aria_label=self.label),
            tag("p", self.across, class_="across"),
            tag("ul", *keys, class_="keys"),
        )

    def _labels(self) -> list[tuple[str, float]]:
        """Return the ticks that have room for their text on a phone, and where they stand."""
        kept: list[tuple[str, float]] = []
        taken = -math.inf
        for text, x in sorted(self.ticks.items(), key=lambda item: item[1]):
            at, half = self._at(x), _CHARACTER * len(text) / 2
            if at - half > taken:
                kept.append((text, at))
                taken = at + half
        return kept

    def _at(self, x: float) -> float:
        low, high = min(self.ticks.values()), max(self.ticks.values())
        if low == high:
            return (_LEFT + _RIGHT) / 2
        return _LEFT + (x - low) / (high - low) * (_RIGHT - _LEFT)

    def _curve(self, curve: Curve, scale: "Scale", colour: str, dash: str | None) -> list[Html]:
        parts = []
        spots = [(f"{self._at(dot.x):.2f}%", dot) for dot in curve.dots]
        for (x1, one), (x2, other) in zip(spots, spots[1:], strict=False):
            if curve.joined:
                y1, y2 = scale.height(one.mean), scale.height(other.mean)
                parts.append(
                    tag("line", x1=x1, x2=x2, y1=y1, y2=y2, class_=colour, stroke_dasharray=dash)
                )
        for x, dot in spots:
            if dot.low < dot.high:
                y1, y2 = scale.height(dot.low), scale.height(dot.high)
                parts.append(tag("line", x1=x, x2=x, y1=y1, y2=y2, class_=f"{colour} spread"))
            title = tag("title", f"{curve.label}: {dot.text}")
            circle: dict[str, str | float] = {
                "cx": x,
                "cy": scale.height(dot.mean),
                "r": "3" if curve.baseline else "4",
            }
            parts.append(tag("g", title, tag("circle", class_=colour, **circle)))
            if dot.name:
                parts.append(tag("text", dot.name, x=x, dx="8", y=scale.height(dot.mean) + 4))
        return parts


@dataclass(frozen=True)
class Scale:
    """A vertical axis with round ticks, logarithmic where values span a wide range."""

    ticks: tuple[float, ...]
    logarithmic: bool = False

    @classmethod
    def over(cls, values: Sequence[float]) -> "Scale":
        """Return the scale that suits some values."""
        low, high = min(values), max(values)
        if high > _LOG_RANGE * low > 0:
            return cls(_decades(low, high), True)
        return cls(_steps(low, high))

    def height(self, value: float) -> float:
        """Return where a value stands, in pixels from the top."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.logarithmic:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return _FLOOR - (value - low) / (high - low) * (_FLOOR - _TOP)


def _steps(low: float, high: float) -> tuple[float, ...]:
    """Return three to seven round values from at most ``low`` to at least ``high``."""
    span = (high - low) or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(unit * factor for factor in _ROUND if unit * factor >= span / 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(step * number for number in range(first, max(last, first + 1) + 1))


def _decades(low: float, high: float) -> tuple[float, ...]:
    """Return 1, 2 and 5 times powers of ten around the values, the powers alone where many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    coarse = [10.0**power for power in powers]
    for ticks in (fine, coarse):
        below = max(tick for tick in ticks if tick <= low)
        above = min((tick for tick in ticks if tick >= high), default=10 * ticks[-1])
        kept = tuple(tick for tick in (*ticks, 10 * ticks[-1]) if below <= tick <= above)
        if len(kept) <= 7:
            break
    return kept


def _styles(curves: Sequence[Curve]) -> list[tuple[str, str | None]]:
    """Return colour and dash of each curve, dealt out one after another."""
    counts = {True: -1, False: -1}
    found = []
    for curve in curves:
        number = counts[curve.baseline] = counts[curve.baseline] + 1
        if curve.baseline:
            found.append(("kb", _DASHES[(number + 1) % len(_DASHES)]))
        else:
            found.append((f"k{number % _COLOURS}", _DASHES[number // _COLOURS % len(_DASHES)]))
    return found


def _aside(curves: Sequence[Curve]) -> list[float]:
    """Return how many pixels each curve stands aside: methods often agree to the last digit."""
    methods = [place for place, curve in enumerate(curves) if not curve.baseline and curve.joined]
    middle = (len(methods) - 1) / 2
    shifts = {place: (number - middle) * _ASIDE for number, place in enumerate(methods)}
    return [shifts.get(place, 0.0) for place in range(len(curves))]


def _grid(y: float) -> Html:
    return tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid")


def _key(curve: Curve, colour: str, dash: str | None) -> Html:
    line = tag("line", x1="0", x2="26", y1="6", y2="6", class_=colour, stroke_dasharray=dash)
    circle = tag("circle", cx="13", cy="6", r="3" if curve.baseline else "4", class_=colour)
    parts = [line, circle] if curve.joined else [circle]
    swatch = tag("svg", *parts, width="26", height="12", aria_hidden="true")
    return tag("li", swatch, curve.label)
