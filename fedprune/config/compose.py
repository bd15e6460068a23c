"""From what a user sets to a checked `RunConfig`, through the Hydra groups in `conf/`.

Hydra keeps one global state per process, and Flower runs apps in threads: composition happens
under a lock and puts back what it found, so that it also works inside another Hydra program.
"""

import shlex
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedprune.config.checks import checked, raise_problems
from fedprune.config.datasets import dataset_names, is_task_file, path_label, presets
from fedprune.config.overrides import CONF, GROUPS, for_hydra, literal
from fedprune.config.relations import enough_simulated_clients
from fedprune.config.schema import DataConfig, RunConfig, flatten
from fedprune.config.strategy_relations import Relation
from fedprune.config.suggest import did_you_mean, show

SHORTCUTS: Mapping[str, str] = {
    "model": "model",
    "data": "data",
    "pruner": "pruner",
    "strategy": "strategy",
    "schedule": "schedule",
    "experiment": "experiment",
    "sparsity": "sparsity",
    "seed": "seed",
    "min-clients": "strategy.min_clients",
    "output-dir": "output_dir",
}
"""Key of Flower's run-config -> key of the configuration; `overrides` comes on top."""

_SWEEP = "sweep"  # of an experiment: what `fedprune sweep` makes of it, and no setting of a run

_LOCK = threading.Lock()


def compose_config(run_config: Mapping[str, str | int | float | bool]) -> RunConfig:
    """Return the checked configuration of Flower's run-config.

    Parameters
    ----------
    run_config : Mapping
        The keys of `SHORTCUTS`, and `overrides`: Hydra overrides separated by spaces, quoted as
        in a shell. An empty text leaves a key at its default; `overrides` have the last word.

    Raises
    ------
    ConfigError
        With every problem found.
    """
    problems: list[str] = []
    return _composed(typed_overrides(run_config, problems), problems)


def typed_overrides(
    run_config: Mapping[str, str | int | float | bool], problems: list[str]
) -> list[str]:
    """Return the Hydra overrides of Flower's run-config; ``problems`` gets what is wrong."""
    overrides: list[str] = []
    for key, value in run_config.items():
        if key not in SHORTCUTS and key != "overrides":
            hint = did_you_mean(key, [*SHORTCUTS, "overrides"])
            problems.append(
                f"{show(key)} is not a key of the run-config.{hint} "
                "Any key of the configuration can be set in `overrides`."
            )
        elif key != "overrides" and value != "":
            text = str(value).lower() if isinstance(value, bool) else str(value)
            overrides.append(f"{SHORTCUTS[key]}={text}")
    try:
        overrides += shlex.split(str(run_config.get("overrides", "")))
    except ValueError as error:
        problems.append(f"`overrides` must be quoted as in a shell: {error}.")
    return overrides


def config_from_overrides(overrides: Sequence[str]) -> RunConfig:
    """Return the checked configuration of Hydra overrides typed in the current folder.

    Relative paths of a model or of texts that exist here become absolute, because Flower's
    processes run elsewhere.

    Parameters
    ----------
    overrides : sequence of str
        For example ``["sparsity=0.6", "data=texts/mine.jsonl"]``.

    Raises
    ------
    ConfigError
        With every problem found.
    """
    return _absolute(_composed(overrides, [], [enough_simulated_clients]))


def config_from_mapping(data: object) -> RunConfig:
    """Return the checked configuration of what another Hydra program has composed from ``conf``.

    Relative paths are made absolute as in :func:`config_from_overrides`.

    Parameters
    ----------
    data : mapping
        Plain values, section by section.

    Raises
    ------
    ConfigError
        With every problem found.
    """
    if isinstance(data, Mapping):
        data = {key: value for key, value in data.items() if key != _SWEEP}
    return _absolute(checked(data, [], [enough_simulated_clients]))


def sweep_of(experiment: str) -> object:
    """Return what an experiment's file says of a sweep, see docs/sweeps.md; None if nothing."""
    return _composed_groups((f"experiment={experiment}",)).get(_SWEEP)


def evaluation_data(config: RunConfig) -> dict[str, DataConfig]:
    """Return label -> section of every data set to evaluate on, the run's own first.

    A preset that has the label of the run's own data is the same text and is not added.
    """
    found = {config.data.name: config.data}
    for name in dataset_names(config.evaluation.datasets):
        if name in presets():
            data = _composed([f"data={name}"], []).data
            found.setdefault(data.name, data)
        else:
            paths = ["data=files", f"data.path={name}", f"data.heldout_path={name}"]
            label = _unused(path_label(name), found)
            found[label] = replace(_composed(paths, []).data, name=label)
    return found


def _unused(label: str, used: Collection[str]) -> str:
    numbered = (f"{label}-{number}" for number in count(2))
    return next(name for name in chain([label], numbered) if name not in used)


def to_overrides(config: RunConfig) -> list[str]:
    """Return overrides from which any machine composes this very configuration."""
    words = {None: "null", True: "true", False: "false"}
    found = []
    for key, value in flatten(config).items():
        if isinstance(value, str):
            found.append(literal(key, value))
        else:
            plain = words[value] if value is None or isinstance(value, bool) else repr(value)
            found.append(f"{key}={plain}")
    return found


def _composed(
    overrides: Sequence[str], problems: list[str], more: Sequence[Relation] = ()
) -> RunConfig:
    accepted = for_hydra(overrides, problems)
    try:
        data = _compose(accepted)
    except (HydraException, OmegaConfBaseException) as error:
        detail = str(error).partition("\n")[0]
        problems.append(f"Hydra cannot compose {shlex.join(accepted)}: {detail}")
        raise_problems(problems)
        raise
    return checked(data, problems, more)


def _compose(overrides: list[str]) -> object:
    groups = tuple(text for text in overrides if text.partition("=")[0] in GROUPS)
    config = OmegaConf.create(
        {key: value for key, value in _composed_groups(groups).items() if key != _SWEEP}
    )
    parser = OverridesParser.create()
    for override in overrides:
        if override not in groups:
            parsed = parser.parse_override(override)
            OmegaConf.update(config, parsed.key_or_group, parsed.value())
    return OmegaConf.to_container(config, resolve=True)


@cache
def _composed_groups(overrides: tuple[str, ...]) -> dict[str, object]:
    """Return what Hydra makes of the choice of groups, which takes most of the time.

    The jobs of a sweep often share it, and differ by single values.
    """
    with _LOCK:
        outer = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(CONF), version_base="1.3", job_name="fedprune"):
                config = compose("config", overrides=list(overrides))
        finally:
            GlobalHydra.instance().hydra = outer
    return cast(dict[str, object], OmegaConf.to_container(config))


def _absolute(config: RunConfig) -> RunConfig:
    model, data = config.model, config.data
    if model.path:
        model = replace(model, path=_absolute_path(model.path))
    if data.path:
        data = replace(data, path=_absolute_path(data.path))
    if data.heldout_path is not None:
        data = replace(data, heldout_path=_absolute_path(data.heldout_path))
    names = dataset_names(config.evaluation.datasets)
    absolute = ",".join(name if name in presets() else _absolute_path(name) for name in names)
    tasks = ",".join(
        _absolute_path(name) if is_task_file(name) else name
        for name in dataset_names(config.evaluation.tasks)
    )
    evaluation = replace(config.evaluation, datasets=absolute, tasks=tasks)
    return replace(config, model=model, data=data, evaluation=evaluation)


def _absolute_path(text: str) -> str:
    path = Path(text).expanduser()
    return str(path.absolute()) if path.exists() else text
