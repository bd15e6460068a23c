"""What masks cost a whole run: the demo's federation with FedStats, plain and under masks.

Both take public text as the first block's inputs, so that they do the same but for the masks, and
must end with the same masks of weights. CPU seconds are of the command and all its processes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.measure import NO_BASELINES, report
from fedprune.models.export import SIDECAR

_BYTES = ("bytes_up", "bytes_down")
_RUNS = {
    "plain": ("privacy.first_input=public",),
    "secure": ("privacy.secure=true", "strategy.min_clients=3"),
}


_JOB = ("experiment=demo", "strategy=fedstats", *NO_BASELINES)

Run = Callable[[Sequence[str], Path], float]
"""Runs a job into a folder and returns its CPU seconds."""


def by_command(overrides: Sequence[str], folder: Path) -> float:
    """Run the job as it is typed, in one process."""
    command = [sys.executable, "-m", "fedprune", "run", *overrides, f"output_dir={folder}"]
    command += ["federation.backend=inline"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}.")
    return used.ru_utime + used.ru_stime


def measured(run: Run, overrides: Sequence[str], folder: Path) -> dict[str, float]:
    """Return a run's seconds, and bytes a client."""
    start = time.monotonic()
    seconds = run([*_JOB, *overrides], folder)
    wall = time.monotonic() - start
    entries = json.loads((folder / "results.json").read_text())["ledger"]["entries"]
    clients = len({entry["client"] for entry in entries})
    return {
        "CPU, s": seconds,
        "wall, s": wall,
        **{key: sum(entry[key] for entry in entries) / clients for key in _BYTES},
    }


def main(rounds: int = 3, run: Run = by_command) -> None:
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in _RUNS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            masks = set()
            for name, overrides in _RUNS.items():
                place = Path(folder) / f"{name}-{turn}"
                rows[name].append(measured(run, overrides, place))
                masks.add((place / "model" / SIDECAR).read_bytes())
            if len(masks) > 1:
                raise RuntimeError("Under masks the run ended with other masks of weights.")
    least = {
        name: {key: min(row[key] for row in found) for key in found[0]}
        for name, found in rows.items()
    }
    ratio = {key: least["secure"][key] / least["plain"][key] for key in least["plain"]}
    table = [{"run": name, **row} for name, row in {**least, "times": ratio}.items()]
    report("secure_runs", f"The demo's run with FedStats, least of {rounds} each", table)


if __name__ == "__main__":
    main()
