"""Column charts and heat maps of a run's page: where everything stands, for a template to write.

They are drawn by hand: a run's page then waits for no plotting library, which takes longer than
the rest of the report, and text is never scaled, so that phones can read it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Bar:
    """A drawn column: its box, x in per cent and y in pixels, and its texts, "" for none."""

    column: Column
    x: float
    width: float
    middle: float
    y: float
    height: float
    under: str
    over: str


@dataclass(frozen=True)
class ColumnChart:
    """Columns on a common scale from zero, as wide as the page lets them be."""

    label: str  # what is seen, for those who do not see it
    columns: Sequence[Column]
    write: Callable[[float], str]  # writes a value of the scale
    line: float | None = None  # a value to compare with

    @property
    def scale(self) -> float:
        """Pixels of a unit."""
        return (_FLOOR - _TOP) / self._values[-1]

    @property
    def ticks(self) -> list[tuple[str, float]]:
        """The values of the scale and where they stand, pixels from the top."""
        return [(self.write(tick), _FLOOR - tick * self.scale) for tick in self._values]

    @property
    def goal(self) -> float | None:
        """Where the line stands, pixels from the top."""
        return _FLOOR - self.line * self.scale if self.line else None

    @property
    def under(self) -> float:
        """Where the columns' names stand, pixels from the top."""
        return _HEIGHT - 6.0

    @property
    def _values(self) -> list[float]:
        return _ticks(max([column.value for column in self.columns] + [self.line or 0.0]))

    @property
    def crowded(self) -> bool:
        """Whether a phone has no room for the figures above the columns."""
        return len(self.columns) > _PHONE_TEXTS

    @property
    def bars(self) -> list[Bar]:
        """The columns as they are drawn."""
        count, scale = len(self.columns), self.scale
        slot, every = 100 / count, math.ceil(count / _MOST_LABELS)
        return [
            Bar(
                column=column,
                x=(place + 0.14) * slot,
                width=0.72 * slot,
                middle=(place + 0.5) * slot,
                y=_FLOOR - column.value * scale,
                height=column.value * scale,
                under=column.label if place % every == 0 else "",
                over=column.text if count <= _MOST_TEXTS else "",
            )
            for place, column in enumerate(self.columns)
        ]


@dataclass(frozen=True)
class Cell:
    """A drawn cell of a heat map: its corner, its colour's number, and its texts."""

    x: float
    y: float
    shade: int
    title: str
    number: str


@dataclass(frozen=True)
class HeatMap:
    """Shares by row and column; None is an empty cell."""

    label: str  # what is seen, for those who do not see it
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[float | None]]
    write: Callable[[float], str]

    @property
    def steps(self) -> int:
        """Colours of the legend."""
        return STEPS

    @property
    def ends(self) -> tuple[float, float]:
        """The values of the weakest and the strongest colour; equal where all cells are."""
        found = [value for row in self.cells for value in row if value is not None]
        low, high = min(found, default=0.0), max(found, default=0.0)
        # Colours of all but equal figures should be all but equal.
        return (low, high) if low == high else (min(low, high - _LEAST_RANGE), high)

    @property
    def left(self) -> float:
        """Where the first column begins, pixels."""
        return 12 + _CHARACTER * max(len(short(name, _LONGEST_NAME)) for name in self.rows)

    @property
    def wide(self) -> float:
        """Width of a column, pixels."""
        return min(max(600 / len(self.columns), 10.0), 80.0)

    @property
    def tall(self) -> float:
        """Height of a row, pixels."""
        return float(_ROW) if self.wide >= _NUMBERED else min(float(_ROW), max(self.wide, 16.0))

    @property
    def width(self) -> float:
        """Of the whole, pixels."""
        return self.left + self.wide * len(self.columns)

    @property
    def height(self) -> float:
        """Of the whole, pixels."""
        return 22 + self.tall * len(self.rows)

    @property
    def names(self) -> list[tuple[str, float]]:
        """The names of the columns that have room, and where they stand."""
        every = max(1, math.ceil(24 / self.wide))
        return [
            (name, self.left + (place + 0.5) * self.wide)
            for place, name in enumerate(self.columns)
            if place % every == 0
        ]

    @property
    def drawn(self) -> list[tuple[str, float, list[Cell]]]:
        """The rows: name, where it stands, and cells."""
        low, high = self.ends
        found = []
        for row, (name, cells) in enumerate(zip(self.rows, self.cells, strict=True)):
            y = 20 + row * self.tall
            drawn = [
                Cell(
                    x=self.left + column * self.wide,
                    y=y,
                    shade=_shade(value, low, high),
                    title=f"{name}, {self.columns[column]}: {self.write(value)}",
                    number=self.write(value).rstrip("%") if self.wide >= _NUMBERED else "",
                )
                for column, value in enumerate(cells)
                if value is not None
            ]
            found.append((short(name, _LONGEST_NAME), y + self.tall / 2 + 4, drawn))
        return found


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
