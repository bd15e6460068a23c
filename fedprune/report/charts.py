"""Charts as inline SVG: columns and heat maps. Text is never scaled, so phones can read it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedprune.report.markup import Content, Html, join, tag
from fedprune.report.tables import scrolling
from fedprune.results.text import short

STEPS = 7  # colours of a heat map

_TOP, _FLOOR, _HEIGHT = 22, 150, 172  # of a column chart, pixels
_MOST_LABELS = 12
_MOST_TEXTS, _PHONE_TEXTS = 8, 4  # columns that still have room for their figures
_LONGEST_NAME = 22
_CHARACTER = 7.0  # width, pixels
_LEAST_RANGE = 0.02  # of a heat map's shares
_ROW, _NUMBERED = 26, 42  # height of a row; width from which cells show their figure


@dataclass(frozen=True)
class Column:
    """One column: what stands below it, its height, and what stands above it."""

    label: str
    value: float
    text: str
    kind: str = ""


def chart(title: str, aid: str, drawing: Html, *more: Content) -> Html:
    """Return a chart below its title and one line that says how to read it."""
    caption = tag("figcaption", tag("h3", title), tag("p", aid, class_="aid"))
    return tag("figure", caption, drawing, *more)


def column_chart(
    label: str,
    columns: Sequence[Column],
    tick: Callable[[float], str],
    line: float | None = None,
) -> Html:
    """Return columns on a common scale from zero, as wide as the page lets them be.

    Parameters
    ----------
    label : str
        What is seen, for those who do not see it.
    columns : sequence of Column
        From left to right.
    tick : Callable[[float], str]
        Writes a value of the scale.
    line : float, optional
        A value to compare with.
    """
    top = max([column.value for column in columns] + ([line] if line else []))
    ticks = _ticks(top)
    scale = (_FLOOR - _TOP) / ticks[-1]
    axis = [tag("text", tick(value), x="52", y=_FLOOR - value * scale + 4) for value in ticks]
    area = [
        tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid")
        for y in (_FLOOR - value * scale for value in ticks)
    ]
    slot = 100 / len(columns)
    every = math.ceil(len(columns) / _MOST_LABELS)
    texts: list[Html] = []
    for place, column in enumerate(columns):
        height, middle = column.value * scale, f"{(place + 0.5) * slot:.2f}%"
        x, width = f"{(place + 0.14) * slot:.2f}%", f"{0.72 * slot:.2f}%"
        box = tag("title", f"{column.label}: {column.text}")
        y = _FLOOR - height
        area.append(
            tag("rect", box, x=x, y=y, width=width, height=height, class_=column.kind or None)
        )
        if place % every == 0:
            texts.append(tag("text", column.label, x=middle, y=_HEIGHT - 6.0, class_="under"))
        if len(columns) <= _MOST_TEXTS:
            texts.append(tag("text", column.text, x=middle, y=y - 5, class_="over"))
    if line:
        y = _FLOOR - line * scale
        area.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_="goal"))
    drawn = join(
        [
            tag("svg", *axis, class_="axis", aria_hidden="true"),
            tag("svg", *area, *texts, class_="area", aria_hidden="true"),
        ]
    )
    kind = "columns crowded" if len(columns) > _PHONE_TEXTS else "columns"
    return tag("div", drawn, class_=kind, role="img", aria_label=label)


@dataclass(frozen=True)
class HeatMap:
    """Shares by row and column; None is an empty cell.

    Attributes
    ----------
    label : str
        What is seen, for those who do not see it.
    rows, columns : sequence of str
        Their names.
    cells : sequence of sequences
        Row by row.
    text : Callable[[float], str]
        Writes a value.
    across : str
        What the columns are.
    """

    label: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[float | None]]
    text: Callable[[float], str]
    across: str = ""

    def draw(self) -> Html:
        """Return the map and its legend."""
        low, high = self._range()
        left = 12 + _CHARACTER * max(len(short(name, _LONGEST_NAME)) for name in self.rows)
        wide = min(max(600 / len(self.columns), 10.0), 80.0)
        numbered = wide >= _NUMBERED
        tall = _ROW if numbered else min(float(_ROW), max(wide, 16.0))
        every = max(1, math.ceil(24 / wide))
        parts: list[Html] = []
        for place, name in enumerate(self.columns):
            if place % every == 0:
                x = left + (place + 0.5) * wide
                parts.append(tag("text", name, x=x, y="12", class_="under"))
        for row, (name, cells) in enumerate(zip(self.rows, self.cells, strict=True)):
            y = 20 + row * tall
            parts.append(tag("text", short(name, _LONGEST_NAME), x=left - 8, y=y + tall / 2 + 4))
            for column, value in enumerate(cells):
                if value is None:
                    continue
                shade, x = _shade(value, low, high), left + column * wide
                title = tag("title", f"{name}, {self.columns[column]}: {self.text(value)}")
                sizes = {"width": wide - 1, "height": tall - 1}
                parts.append(tag("rect", title, x=x, y=y, class_=f"s{shade}", **sizes))
                if numbered:
                    middle = {"x": x + wide / 2, "y": y + tall / 2 + 4}
                    parts.append(
                        tag("text", self.text(value).rstrip("%"), class_=f"on t{shade}", **middle)
                    )
        width, height = left + wide * len(self.columns), 22 + tall * len(self.rows)
        drawing = tag("svg", *parts, width=width, height=height, aria_hidden="true")
        image = tag("div", drawing, class_="heat", role="img", aria_label=self.label)
        return join([scrolling(self.label, image), self._legend(low, high)])

    def _range(self) -> tuple[float, float]:
        found = [value for row in self.cells for value in row if value is not None]
        low, high = min(found, default=0.0), max(found, default=0.0)
        # Colours of all but equal figures should be all but equal.
        return (low, high) if low == high else (min(low, high - _LEAST_RANGE), high)

    def _legend(self, low: float, high: float) -> Html:
        if low == high:
            return tag("p", f"All {self.text(low)}", class_="legend")
        strip = [
            tag("rect", x=18 * step, width=17, height=12, class_=f"s{step}")
            for step in range(STEPS)
        ]
        drawn = tag("svg", *strip, width=18 * STEPS, height="12", aria_hidden="true")
        return tag("p", self.text(low), " ", drawn, " ", self.text(high), class_="legend")


def _shade(value: float, low: float, high: float) -> int:
    if low == high:
        return STEPS // 2
    return min(int((value - low) / (high - low) * STEPS), STEPS - 1)


def _ticks(top: float) -> list[float]:
    """Return two to five round values from zero to beyond ``top``."""
    if top <= 0:
        return [0.0, 1.0]
    unit = 10.0 ** math.floor(math.log10(top))
    step = next(s * unit for s in (0.25, 0.5, 1.0, 2.0, 2.5) if top / (s * unit) <= 4)
    return [step * place for place in range(math.ceil(top / step - 1e-9) + 1)]
