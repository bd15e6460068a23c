"""What a user types, `key=value`, made safe for Hydra: shortcuts for paths, literal texts, hints.

Hydra reads a value by its own grammar, in which commas, brackets and quotes mean something. A key
that holds text takes what it is given instead, so that any path can be typed as it is.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from fedprune.config.keys import all_keys, value_type
from fedprune.config.schema import (
    DISCRIMINATORS,
    SECTIONS,
    strategy_names,
    strategy_type,
)
from fedprune.config.suggest import did_you_mean, show
from fedprune.plugins import PRUNERS, plugin_names

if TYPE_CHECKING:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override

CONF = Path(__file__).resolve().parents[2] / "conf"
"""The folder of Hydra's groups, found beside this package and not by name: `conf` is a common
name."""

OPTION_GROUPS = (*SECTIONS, "experiment")
"""Hydra's groups: the folders in ``conf``."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TEXT_SUFFIXES = (".txt", ".md", ".jsonl", ".json")
_INCOMPLETE = ("files", "hub", "node")  # options of `data` that need a path
_BASE = "_base_"


@cache
def group_options(group: str) -> tuple[str, ...]:
    """Return the names of the options of a group, sorted; '_base_' and its like are none."""
    return tuple(sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem[0] != "_"))


def literal(key: str, text: str) -> str:
    """Return the Hydra override that sets ``key`` to exactly this text."""
    from hydra.core.override_parser.types import Quote, QuotedString

    # Hydra's quotes keep the grammar away, a backslash keeps OmegaConf from interpolating.
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return f"{key}={QuotedString(escaped, Quote.single).with_quotes()}"


def for_hydra(overrides: Iterable[str], problems: list[str]) -> list[str]:
    """Return overrides that Hydra composes, and report those that cannot be meant.

    `overrides`: as typed, for example ``["model=/my models/a=b", "pruner.seq_len=64"]``. Where a
    key occurs twice the last one counts. `problems`: gets a message for each override that is left
    out.
    """
    chosen: dict[str, str] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.strip()
        if not equals:
            problems.append(f"{show(override)} is not an override. Write key=value.")
            continue
        chosen.pop(key, None)
        chosen[key] = value.strip()
    return [
        line
        for key, value in _with_groups(chosen).items()
        for line in _translate(key, value, problems)
    ]


def _with_groups(chosen: dict[str, str]) -> dict[str, str]:
    """Return overrides in which a choice by its key, `strategy.name=...`, brings its group along.

    Groups come first: they decide which other keys there are.
    """
    found = {key: value for key, value in chosen.items() if key in OPTION_GROUPS}
    for section, discriminator in DISCRIMINATORS.items():
        name = _unquoted(chosen.get(f"{section}.{discriminator}", ""))
        known = name in group_options(section) or (name and name in _without_file(section))
        if known and (section != "data" or section not in found):
            found[section] = name
    return found | {key: value for key, value in chosen.items() if key not in found}


def _without_file(section: str) -> tuple[str, ...]:
    """Return the choices that other packages bring, which have no file in ``conf``."""
    names: tuple[str, ...] = ()
    if section == "strategy":
        names = strategy_names()
    elif section == "pruner":
        names = plugin_names(PRUNERS)
    return tuple(name for name in names if name not in group_options(section))


def _translate(key: str, value: str, problems: list[str]) -> Iterator[str]:
    if key in OPTION_GROUPS:
        yield from _group(key, _unquoted(value), problems)
    elif key in (keys := all_keys()):
        yield from _leaf(key, value, problems)
    elif key.lstrip("+~") in (*OPTION_GROUPS, *keys):
        problems.append(
            f"`{key}`: keys can be set, neither added nor removed. Write {key.lstrip('+~')}=..."
        )
    else:
        hint = did_you_mean(key, [*keys, *OPTION_GROUPS])
        problems.append(f"{show(key)} is not a configuration key.{hint}")


def _group(key: str, value: str, problems: list[str]) -> Iterator[str]:
    options = group_options(key)
    if value in options:
        yield f"{key}={value}"
    elif value in _without_file(key):
        if key == "strategy":
            strategy_type(value)  # loads the package that brings it, so that its keys are known
        yield f"{key}={_BASE}"
        yield literal(f"{key}.{DISCRIMINATORS[key]}", value)
    elif key == "experiment" and value in ("", "null"):
        return
    elif key == "model" and (is_path(value) or _HUB_ID.fullmatch(value)):
        yield "model=hf"
        yield literal("model.path", value)
    elif key == "data" and is_path(value):
        yield "data=files"
        yield literal("data.path", value)
    elif key == "data" and _HUB_ID.fullmatch(value):
        yield "data=hub"
        yield literal("data.path", value)
    else:
        names = ", ".join(repr(option) for option in (*options, *_without_file(key)))
        takes_path = key in ("model", "data")
        more = ", a path (starting with '/', '.' or '~') or a hub id 'org/name'"
        problems.append(
            f"`{key}` must be one of {names}{more if takes_path else ''}, "
            f"got {show(value)}.{did_you_mean(value, options)}"
        )


def is_path(value: str) -> bool:
    """Return whether the value must mean a local path: by how it starts, ends or that it exists."""
    if value.startswith(("/", ".", "~")):
        return True
    try:
        if value and Path(value).exists():
            return True
    except (OSError, ValueError):  # too long, or a NUL: no path after all
        return False
    return "/" in value and (value.endswith(_TEXT_SUFFIXES) or not _HUB_ID.fullmatch(value))


def _leaf(key: str, value: str, problems: list[str]) -> Iterator[str]:
    parsed = _parse(key, value)
    if value_type(all_keys()[key])[0] is str:
        # A commit such as 12345678, or a path with a comma, is text although Hydra sees more in it.
        if parsed and not parsed[0] and isinstance(parsed[1], str | None):
            yield f"{key}={value}"
        else:
            yield literal(key, value)
    elif parsed is None:
        problems.append(f"`{key}`: {show(value)} cannot be read as a value.")
    elif parsed[0]:
        problems.append(f"`{key}` takes one value in a run, got {show(value)}.")
    else:
        yield f"{key}={value}"


@lru_cache(maxsize=10_000)
def hydra_override(line: str) -> "Override":
    """Return what Hydra reads in an override: slowly, and the runs of a sweep share most of them.

    Raises HydraException if it cannot be read.
    """
    return _parser().parse_override(line)


@cache
def _parser() -> "OverridesParser":
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def _parse(key: str, value: str) -> tuple[bool, object] | None:
    """Return whether Hydra would sweep over a value, and what else it reads; None if nothing."""
    from hydra.errors import HydraException

    try:
        parsed = hydra_override(f"{key}={value}")
    except HydraException:
        return None
    sweeps = parsed.is_sweep_override()
    return sweeps, None if sweeps else parsed.value()


def _unquoted(value: str) -> str:
    """Return the text inside Hydra's quotes, for those who typed them."""
    if len(value) < 2 or value[0] not in "'\"" or value[-1] != value[0]:
        return value
    parsed = _parse("key", value)
    return parsed[1] if parsed and isinstance(parsed[1], str) else value


def dataset_names(text: str) -> list[str]:
    """Return the names in `evaluation.datasets` or `.tasks`, without repetitions."""
    return list(dict.fromkeys(name.strip() for name in text.split(","))) if text else []


def is_task_file(name: str) -> bool:
    """Return whether a name in `evaluation.tasks` is a file that describes a task."""
    return name.endswith((".yaml", ".yml"))


def presets() -> list[str]:
    """Return the options of the group `data` that are data sets by themselves."""
    return [name for name in group_options("data") if name not in _INCOMPLETE]


def dataset_problems(text: str) -> Iterator[str]:
    """Yield a problem for each name in `evaluation.datasets` that is neither preset nor path."""
    known = presets()
    for name in dataset_names(text):
        if name not in known and not (name and is_path(name)):
            yield (
                f"`evaluation.datasets` must list {', '.join(repr(preset) for preset in known)} or "
                "paths (starting with '/', '.' or '~'), separated by commas, got "
                f"{show(name)}.{did_you_mean(name, known)}"
            )


def path_label(path: str) -> str:
    """Return what the results call the texts at a path: its last names in a label's letters."""
    pure = PurePath(path)
    names = [pure.parent.name, pure.stem] if pure.suffix else [pure.name]
    label = re.sub(r"[^A-Za-z0-9_-]+", "_", "-".join(name for name in names if name))
    return label.strip("_-")[:60] or "texts"
