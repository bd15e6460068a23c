"""What all plots share: colours, markers, ticks and the files they are written to."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Panel
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision; black and grey are the baselines'.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
_LARGEST_PLAIN = 1e6


def plain_tick(value: float, position: float) -> str:
    """Return a tick's label as people write it."""
    return f"{value:,g}" if value < _LARGEST_PLAIN else f"{value:g}"


def scale_logarithmically(panel: "Panel", axis: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with round numbers at a few places only."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.set(**{f"{axis}scale": "log"})
    found = panel.xaxis if axis == "x" else panel.yaxis
    found.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    found.set_major_formatter(FuncFormatter(plain_tick))
    found.set_minor_formatter(NullFormatter())


def save_figure(figure: "Figure", folder: Path, stem: str) -> list[Path]:
    """Write a figure as PNG and SVG, the same bytes every time, and return their paths."""
    from matplotlib import rc_context

    paths = [folder / f"{stem}.png", folder / f"{stem}.svg"]
    with rc_context({"svg.hashsalt": "fedprune"}):
        figure.savefig(paths[0], dpi=150)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths
