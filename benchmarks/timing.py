"""Side-by-side timing: every case in turn, many rounds, medians, one table and one JSON file."""

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

OUT = Path(__file__).parent / "out"


def alternate(cases: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median CPU seconds of each single-threaded case; each round runs every case.

    CPU time is wall time on an idle machine, and does not count the time that other programs
    take from this one. Alternating exposes all cases to the same disturbances, so that ratios can
    be trusted where absolute times cannot. A first, untimed round compiles and warms up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            start = time.thread_time()
            case()
            if turn:
                seconds[name].append(time.thread_time() - start)
    return {name: median(times) for name, times in seconds.items()}


def report(name: str, title: str, rows: Sequence[Mapping[str, str | float]]) -> None:
    """Show rows of equal keys as a table and write them to ``benchmarks/out/<name>.json``."""
    table = Table(title=title)
    for number, key in enumerate(rows[0]):
        table.add_column(key, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values()))
    Console().print(table)
    OUT.mkdir(exist_ok=True)
    machine = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("numpy", "numba", "torch")},
    }
    content = {"title": title, "versions": machine, "rows": list(rows)}
    (OUT / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
