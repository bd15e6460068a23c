"""From what a user sets to a checked `RunConfig`, through the Hydra groups in `conf/`.

Hydra keeps one global state per process, and Flower runs apps in threads: composition happens
under a lock and puts back what it found, so that it also works inside another Hydra program.
Hydra is imported when something is composed: a node only reads what the server has composed.
"""

import shlex
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import cast

from fedprune.config.keys import flatten, leaves
from fedprune.config.overrides import (
    CONF,
    OPTION_GROUPS,
    dataset_names,
    for_hydra,
    hydra_override,
    is_task_file,
    literal,
    path_label,
    presets,
)
from fedprune.config.relations import Relation, enough_simulated_clients
from fedprune.config.schema import DataConfig, RunConfig, replace
from fedprune.config.suggest import did_you_mean, show, spelled
from fedprune.config.validation import checked, from_yaml, plain_yaml, raise_problems
from fedprune.errors import ConfigError

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
_RESUME = "resume"
_FREE_ON_RESUME = (
    "strategy.timeout",
    "strategy.rejoin",
    "strategy.wait",
    "strategy.window",
    "strategy.min_clients",
    "model.source",
)


def compose_config(run_config: Mapping[str, str | int | float | bool]) -> RunConfig:
    """Return the checked configuration of Flower's run-config.

    `run_config`: the keys of `SHORTCUTS`, and `overrides`: Hydra overrides separated by spaces,
    quoted as in a shell. An empty text leaves a key at its default; `overrides` have the last word.
    Raises ConfigError: with every problem found.
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
            overrides.append(f"{SHORTCUTS[key]}={spelled(value)}")
    try:
        overrides += shlex.split(str(run_config.get("overrides", "")))
    except ValueError as error:
        problems.append(f"`overrides` must be quoted as in a shell: {error}.")
    return overrides


def config_from_overrides(overrides: str | Sequence[str]) -> RunConfig:
    """Return the checked configuration of Hydra overrides typed in the current folder.

    Relative paths of a model or of texts that exist here become absolute, because Flower's
    processes run elsewhere.

    `overrides`: for example ``["sparsity=0.6", "data=texts/mine.jsonl"]``; one text is one
    override. Raises ConfigError: with every problem found.
    """
    listed = [overrides] if isinstance(overrides, str) else overrides
    return _absolute(_composed(listed, [], [enough_simulated_clients]))


def config_from_mapping(data: object) -> RunConfig:
    """Return the checked configuration of what another Hydra program has composed from ``conf``.

    Relative paths are made absolute as in :func:`config_from_overrides`.

    Raises ConfigError: with every problem found.
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
            first = path_label(name)
            labels = chain([first], (f"{first}-{number}" for number in count(2)))
            label = next(one for one in labels if one not in found)
            data = _composed(paths, []).data
            own = {"joiner": config.data.joiner, "text_key": config.data.text_key}
            found[label] = replace(data, name=label, **own)
    return found


def to_overrides(config: RunConfig) -> list[str]:
    """Return overrides from which any machine composes this very configuration."""
    return [_override(key, value) for key, value in flatten(config).items()]


def from_earlier_yaml(text: str) -> RunConfig:
    """Read a configuration that an earlier release may have written: later keys have defaults.

    Raises ConfigError as :func:`fedprune.config.validation.from_yaml`, but for keys that are
    missing.
    """
    found = plain_yaml(text)
    if not isinstance(found, Mapping):
        return checked(found)
    return _composed([_override(key, value) for key, value in leaves(found)], [])


def _override(key: str, value: object) -> str:
    return literal(key, value) if isinstance(value, str) else f"{key}={spelled(value)}"


def _composed(
    overrides: Sequence[str], problems: list[str], more: Sequence[Relation] = ()
) -> RunConfig:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    accepted = for_hydra(overrides, problems)
    try:
        data = _compose(accepted, problems)
    except (HydraException, OmegaConfBaseException) as error:
        detail = str(error).partition("\n")[0]
        problems.append(f"Hydra cannot compose {shlex.join(accepted)}: {detail}")
        raise_problems(problems)
        raise
    return checked(data, problems, more)


def _compose(overrides: list[str], problems: list[str]) -> object:
    from omegaconf import OmegaConf

    groups = tuple(text for text in overrides if text.partition("=")[0] in OPTION_GROUPS)
    config = OmegaConf.create(
        {key: value for key, value in _composed_groups(groups).items() if key != _SWEEP}
    )
    for override in overrides:
        if override not in groups:
            parsed = hydra_override(override)
            OmegaConf.update(config, parsed.key_or_group, parsed.value())
    for key, value in _resolving(OmegaConf.to_container(config)):
        problems.append(
            f"`{key}` may take the value of another key, as in 'runs/s${{seed}}', and nothing "
            f"from outside the configuration, got {show(value)}. Write the value itself."
        )
        OmegaConf.update(config, key, "")
    return OmegaConf.to_container(config, resolve=True)


def _resolving(data: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values that call one of OmegaConf's resolvers, such as ``${oc.env:HOME}``.

    A server composes what others wrote; the environment it does that in is not theirs to read.
    """
    if isinstance(data, dict):
        for name, value in data.items():
            yield from _resolving(value, f"{key}.{name}".lstrip("."))
    elif isinstance(data, str) and "${" in data and _calls_resolver(data):
        yield key, data


def _calls_resolver(text: str) -> bool:
    from omegaconf.errors import GrammarParseError
    from omegaconf.grammar_parser import parse

    try:
        left = [parse(text)]
    except GrammarParseError:
        return False  # composing it tells what is wrong
    while left:
        node = left.pop()
        if type(node).__name__ == "InterpolationResolverContext":
            return True
        left += getattr(node, "children", None) or []
    return False


@cache
def _composed_groups(overrides: tuple[str, ...]) -> dict[str, object]:
    """Return what Hydra makes of the choice of groups, which takes most of the time.

    The jobs of a sweep often share it, and differ by single values.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

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


@dataclass(frozen=True)
class Resumption:
    """The wish to go on with a run."""

    folder: Path
    overrides: tuple[str, ...]  # what shall be different from now on


def find_resumption(overrides: Sequence[str]) -> Resumption | None:
    """Return what ``resume=FOLDER`` among overrides asks for, None if there is none.

    Raises ConfigError if it names no folder, or comes with a key that would change the result:
    these follow from the run's own configuration.
    """
    found = [text for text in overrides if text.partition("=")[0].strip() == _RESUME]
    if not found:
        return None
    others = tuple(text for text in overrides if text not in found)
    path = found[-1].partition("=")[2].strip()
    if not path:
        raise ConfigError("`resume` must be the folder of a run, got ''.")
    keys = [text.partition("=")[0].strip() for text in others]
    fixed = [
        key for key in keys if not key.startswith("federation.") and key not in _FREE_ON_RESUME
    ]
    if fixed:
        listed = ", ".join(f"`{key}`" for key in _FREE_ON_RESUME)
        raise ConfigError(
            f"`resume` goes on with the configuration of the run: {', '.join(fixed)} cannot be "
            f"changed now. Leave it out; {listed} and `federation.*` can be set."
        )
    return Resumption(Path(path).expanduser().absolute(), others)


def resumption(run_config: Mapping[str, str | int | float | bool]) -> Resumption | None:
    """Return what Flower's run-config asks for, as :func:`find_resumption`."""
    problems: list[str] = []
    overrides = typed_overrides(run_config, problems)
    found = find_resumption(overrides)
    if found is not None:
        raise_problems(problems)
    return found


def resumed_config(text: str, resumed: Resumption) -> RunConfig:
    """Return the configuration to go on with.

    `text`: the run's ``config.yaml``. Raises ConfigError if the text is no configuration, or a
    value is wrong.
    """
    stored = [*to_overrides(from_yaml(text)), f"output_dir={resumed.folder}"]
    return compose_config({"overrides": shlex.join([*stored, *resumed.overrides])})
