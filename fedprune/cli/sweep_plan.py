"""The jobs of a sweep: their configurations and folders, which measures baselines, what is done."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedprune.cli.sweep_spec import Settings, Sweep
from fedprune.config import RunConfig, config_from_overrides, from_yaml
from fedprune.config.schema import flatten
from fedprune.errors import ConfigError
from fedprune.reporting.sources import source_digest

_UNSAFE = re.compile(r"[^A-Za-z0-9._=,:+-]")
_LONGEST_FOLDER = 150
# What a client would do alone, and what one would do with all samples, knows nothing of the
# server: of its settings only those count that choose who takes part.
_SERVER = ("strategy.", "schedule.", "federation.")
_WHO_TAKES_PART = ("strategy.fraction", "strategy.min_clients", "federation.num_clients")
_BASELINES = ("evaluation.local_only", "evaluation.centralized")


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep.

    Attributes
    ----------
    settings : Mapping
        Swept key -> value.
    config : RunConfig
        Its configuration.
    folder : Path
        Its own folder.
    baseline : int
        Place of the job that measures its baselines; maybe its own.
    """

    settings: Settings
    config: RunConfig
    folder: Path
    baseline: int

    @property
    def label(self) -> str:
        """What a person calls it."""
        return " ".join(f"{key}={value}" for key, value in self.settings.items())


def plan_sweep(sweep: Sweep, folder: Path) -> list[SweepJob]:
    """Return the jobs of a sweep, all checked.

    Baselines are measured once for all jobs that share them, if possible in one whose clients
    prune by themselves from the first block to the last: in an iterative one, for example, they
    see the inputs of a globally pruned model.

    Parameters
    ----------
    sweep : Sweep
        What to run.
    folder : Path
        Where the jobs' folders go.

    Raises
    ------
    ConfigError
        A job's configuration is wrong; the message names the job.
    """
    points = sweep.points()
    configs = [_config(sweep, settings) for settings in points]
    first = _first_of_each(configs)
    jobs = []
    for place, (settings, config) in enumerate(zip(points, configs, strict=True)):
        path = folder / _folder_name(settings)
        carrier = first[baseline_key(config)]
        if place != carrier:
            evaluation = dataclasses.replace(config.evaluation, local_only=False, centralized=False)
            config = dataclasses.replace(config, evaluation=evaluation)
        # The folder is this machine's, a connection's results are not.
        output_dir = "" if config.federation.connection else str(path)
        config = dataclasses.replace(config, output_dir=output_dir)
        jobs.append(SweepJob(settings, config, path, carrier))
    return jobs


def baseline_key(config: RunConfig) -> tuple[object, ...]:
    """Return what the baselines of a run depend on."""
    values = flatten(config)
    kept = [
        key
        for key in values
        if key != "output_dir" and (key in _WHO_TAKES_PART or not key.startswith(_SERVER))
    ]
    return tuple(values[key] for key in kept)


def finished(job: SweepJob) -> dict[str, Any] | None:
    """Return a job's results if an earlier sweep has left them.

    None also if they lack baselines that this sweep needs from the job.

    Raises
    ------
    ConfigError
        The folder holds the results of other settings.
    """
    try:
        text = (job.folder / "results.json").read_text(encoding="utf-8")
        done = from_yaml((job.folder / "config.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ConfigError:
        raise ConfigError(
            f"'{job.folder}' holds a run whose configuration another version of fedprune wrote. "
            "Delete it or choose another `output_dir`."
        ) from None
    there, wanted = _decisive(done), _decisive(job.config)
    baselines = [(there.pop(key), wanted.pop(key)) for key in _BASELINES]
    different = [key for key in wanted if there[key] != wanted[key]]
    if different:
        raise ConfigError(
            f"'{job.folder}' holds a run with another `{different[0]}` "
            f"({there[different[0]]}, not {wanted[different[0]]}). Delete it or choose another "
            "`output_dir`."
        )
    if any(asked and not had for had, asked in baselines):
        return None
    results: dict[str, Any] = json.loads(text)
    return results


def cut_off(job: SweepJob) -> bool:
    """Return whether a job was stopped in the middle and can go on from there.

    One that failed starts anew: whatever it failed of may be in what it has left. So does one
    that was begun by other sources of fedprune, which nobody but those can continue.
    """
    if any((job.folder / name).exists() for name in ("results.json", "failure.json")):
        return False
    try:
        begun = from_yaml((job.folder / "config.yaml").read_text(encoding="utf-8"))
        state = json.loads((job.folder / "state" / "run.json").read_text(encoding="utf-8"))
        code = state["identity"]["code"]
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return False
    return code == source_digest() and _decisive(begun) == _decisive(job.config)


def _decisive(config: RunConfig) -> dict[str, object]:
    """Return the values that decide about results: not where or how the run was carried out."""
    values: dict[str, object] = dict(flatten(config))
    for key in list(values):
        if key == "output_dir" or (key.startswith("federation.") and key not in _WHO_TAKES_PART):
            del values[key]
    return values


def _config(sweep: Sweep, settings: Settings) -> RunConfig:
    given = {text.partition("=")[0] for text in (*sweep.fixed, *settings)}
    local = not given & {"federation.backend", "federation.connection"}
    usual = ["federation.backend=inline"] if local else []
    overrides = [*usual, *sweep.fixed, *(f"{key}={value}" for key, value in settings.items())]
    try:
        return config_from_overrides(overrides)
    except ConfigError as error:
        label = " ".join(overrides)
        raise ConfigError(f"The job {label} cannot run. {error}") from None


def _first_of_each(configs: Sequence[RunConfig]) -> dict[tuple[object, ...], int]:
    """Return baseline key -> place of the job that measures them."""
    first: dict[tuple[object, ...], int] = {}
    for place, config in enumerate(configs):
        key = baseline_key(config)
        if key not in first or _unfit(config) < _unfit(configs[first[key]]):
            first[key] = place
    return first


def _unfit(config: RunConfig) -> tuple[bool, ...]:
    """Return why a run's clients know less of what each would do alone, the worst reason first."""
    strategy, schedule = config.strategy, config.schedule
    return (
        strategy.name not in ("fedprllm", "fedspallm"),  # the others' clients send statistics
        schedule.name != "one_shot",
        schedule.prefix != "local",
        strategy.rounds > 1,
        strategy.layer_fraction < 1,
    )


def _folder_name(settings: Settings) -> str:
    plain = ",".join(f"{key}={value}" for key, value in settings.items())
    name = _UNSAFE.sub("-", plain)
    if name == plain and len(name) <= _LONGEST_FOLDER:
        return name
    # What was cut off or replaced still tells two jobs apart.
    return f"{name[:_LONGEST_FOLDER]}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"
