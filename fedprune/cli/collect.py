"""`fedprune sweep --collect FOLDER`: runs that somebody else has started become one table."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fedprune.cli.sweep_plan import baseline_key
from fedprune.cli.sweep_report import Finished, Story, report_sweep
from fedprune.config.schema import flatten
from fedprune.errors import ConfigError
from fedprune.reporting.run_folder import read_config
from fedprune.reporting.sweep import SEED, SPARSITY, Axes

_NAME = ".name"
_NO_SETTING = ("output_dir", "evaluation.local_only", "evaluation.centralized")


def run_collection(folder: str) -> int:
    """Collect the runs in a folder that the command line names; return the exit code."""
    command = shlex.join(["fedprune", "sweep", "--collect", folder])
    return collect_runs(Console(), Path(folder).expanduser().absolute(), command)


def collect_runs(screen: Console, folder: Path, command: str, seconds: float = 0.0) -> int:
    """Write the tables, plots and the page of all runs in a folder; return the exit code.

    Parameters
    ----------
    screen : Console
        Where the tables go.
    folder : Path
        Holds the runs' folders, at any depth.
    command : str
        What the page says of how the runs were made.
    seconds : float
        How long they took together, where that is known.

    Returns
    -------
    int
        0 when every run is done, 1 when one failed.

    Raises
    ------
    FedpruneError
        There is no run, or one was made by another version of fedprune.
    """
    runs = [_Run(path) for path in _folders(folder)]
    if not any(run.results for run in runs):
        raise ConfigError(
            f"--collect needs a folder with finished runs, there is none in '{folder}'."
        )
    keys = _telling([run.values for run in runs])
    columns = tuple(key for key in keys if key == SPARSITY)
    rows = tuple(key for key in keys if key not in (*columns, SEED))
    settings = [{_short(key): run.values[key] for key in keys} for run in runs]
    carriers = _carriers(runs)
    jobs = [
        Finished(
            settings=found,
            label=" ".join(f"{key}={value}" for key, value in found.items()) or run.folder.name,
            folder=run.folder,
            results=run.results,
            baseline=carriers.get(baseline_key(run.config)),
            failure=run.failure,
        )
        for run, found in zip(runs, settings, strict=True)
    ]
    axes = Axes(tuple(map(_short, rows)), columns)
    report_sweep(screen, folder, Story(folder.name, command, axes, seconds), jobs)
    return 1 if any(job.results is None for job in jobs) else 0


class _Run:
    """A run's folder, read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_config(folder)
        plain = flatten(self.config).items()
        self.values = {key: _text(value) for key, value in plain if key not in _NO_SETTING}
        self.results: Mapping[str, Any] | None = _json(folder / "results.json")
        failure = _json(folder / "failure.json") or {"reason": "it has not ended."}
        self.failure = "" if self.results else str(failure.get("reason"))


def _folders(folder: Path) -> Iterator[Path]:
    """Yield the runs' folders, `2` before `10`."""
    found = [path.parent for path in folder.rglob("config.yaml")]
    ours = [path for path in found if ".hydra" not in path.parts and _is_run(path)]
    yield from sorted(ours, key=lambda path: (len(path.name), str(path)))


def _is_run(folder: Path) -> bool:
    names = ("results.json", "failure.json", "run.log")
    return any((folder / name).is_file() for name in names)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _telling(runs: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys that tell the runs apart, without those that follow from others.

    The choice of a group changes many keys at once; its name is enough.
    """
    varying = [key for key in runs[0] if len({run[key] for run in runs}) > 1]
    first = [SPARSITY, SEED, *(key for key in varying if key.endswith(_NAME))]
    order = dict.fromkeys([*(key for key in first if key in varying), *varying])
    kept: list[str] = []
    groups = 1
    for key in order:
        told = len({tuple(run[name] for name in (*kept, key)) for run in runs})
        if told > groups:
            kept.append(key)
            groups = told
    return sorted(kept, key=lambda key: key == SEED)


def _carriers(runs: Sequence[_Run]) -> dict[tuple[object, ...], Mapping[str, Any]]:
    """Return baseline key -> the results of a run that measured those baselines."""
    found: dict[tuple[object, ...], Mapping[str, Any]] = {}
    for run in runs:
        if run.results is not None:
            found.setdefault(baseline_key(run.config), run.results)
    return found


def _short(key: str) -> str:
    return key.removesuffix(_NAME)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return (
        str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    )
