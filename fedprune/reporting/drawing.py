"""What all plots share: colours, markers, ticks and the files they are written to."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision; black and grey are the baselines'.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
_LOG_RANGE = 10.0
_LARGEST_PLAIN = 1e6


def plain_tick(value: float, position: float) -> str:
    """Return a tick's label as people write it."""
    return f"{value:,g}" if value < _LARGEST_PLAIN else f"{value:g}"


def wide_range(values: Sequence[float]) -> bool:
    """Return whether values differ so much that their axis is better logarithmic."""
    return bool(values) and max(values) > _LOG_RANGE * min(values) > 0


def save_figure(figure: "Figure", folder: Path, stem: str) -> list[Path]:
    """Write a figure as PNG and SVG, the same bytes every time, and return their paths."""
    from matplotlib import rc_context

    paths = [folder / f"{stem}.png", folder / f"{stem}.svg"]
    with rc_context({"svg.hashsalt": "fedprune"}):
        figure.savefig(paths[0], dpi=150)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths
