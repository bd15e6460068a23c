"""`resume=FOLDER`: what a run that goes on is configured by, and what may be different then."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedprune.config.checks import raise_problems
from fedprune.config.compose import compose_config, to_overrides, typed_overrides
from fedprune.config.schema import RunConfig
from fedprune.config.text import from_yaml
from fedprune.errors import ConfigError

KEY = "resume"
_FREE = (
    "strategy.timeout",
    "strategy.rejoin",
    "strategy.wait",
    "strategy.window",
    "strategy.min_clients",
    "model.source",
)


@dataclass(frozen=True)
class Resumption:
    """The wish to go on with a run.

    Attributes
    ----------
    folder : Path
        The run's folder, absolute.
    overrides : tuple of str
        What shall be different from now on.
    """

    folder: Path
    overrides: tuple[str, ...]


def find_resumption(overrides: Sequence[str]) -> Resumption | None:
    """Return what ``resume=FOLDER`` among overrides asks for, None if there is none.

    Raises
    ------
    ConfigError
        If it names no folder, or comes with a key that would change the result: these follow from
        the run's own configuration.
    """
    found = [text for text in overrides if text.partition("=")[0].strip() == KEY]
    if not found:
        return None
    others = tuple(text for text in overrides if text not in found)
    path = found[-1].partition("=")[2].strip()
    if not path:
        raise ConfigError("`resume` must be the folder of a run, got ''.")
    keys = [text.partition("=")[0].strip() for text in others]
    fixed = [key for key in keys if not key.startswith("federation.") and key not in _FREE]
    if fixed:
        listed = ", ".join(f"`{key}`" for key in _FREE)
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

    Parameters
    ----------
    text : str
        The run's ``config.yaml``.
    resumed : Resumption
        What shall be different.

    Raises
    ------
    ConfigError
        If the text is no configuration, or a value is wrong.
    """
    stored = [*to_overrides(from_yaml(text)), f"output_dir={resumed.folder}"]
    return compose_config({"overrides": shlex.join([*stored, *resumed.overrides])})
