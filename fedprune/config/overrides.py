"""What a user types, `key=value`, made safe for Hydra: shortcuts for paths, literal texts, hints.

Hydra reads a value by its own grammar, in which commas, brackets and quotes mean something. A key
that holds text takes what it is given instead, so that any path can be typed as it is.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from fedprune.config.pattern import Pattern
from fedprune.config.schema import LEAVES, SECTIONS
from fedprune.config.suggest import did_you_mean, show

CONF = Path(__file__).resolve().parents[2] / "conf"
"""The folder of groups, found beside this package and not by name: `conf` is a common name."""

GROUPS = (*SECTIONS, "experiment")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TEXT_SUFFIXES = (".txt", ".md", ".jsonl", ".json")


@cache
def group_options(group: str) -> tuple[str, ...]:
    """Return the names of the options of a group, sorted; '_base_' and its like are none."""
    return tuple(sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem[0] != "_"))


def literal(key: str, text: str) -> str:
    """Return the Hydra override that sets ``key`` to exactly this text."""
    # Hydra's quotes keep the grammar away, a backslash keeps OmegaConf from interpolating.
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return f"{key}={QuotedString(escaped, Quote.single).with_quotes()}"


def for_hydra(overrides: Iterable[str], problems: list[str]) -> list[str]:
    """Return overrides that Hydra composes, and report those that cannot be meant.

    Parameters
    ----------
    overrides : iterable of str
        As typed, for example ``["model=/my models/a=b", "pruner.seq_len=64"]``. Where a key
        occurs twice the last one counts.
    problems : list of str
        Gets a message for each override that is left out.
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
    return [line for key, value in chosen.items() for line in _translate(key, value, problems)]


def _translate(key: str, value: str, problems: list[str]) -> Iterator[str]:
    if key in GROUPS:
        yield from _group(key, _unquoted(value), problems)
    elif key in LEAVES:
        yield from _leaf(key, value, problems)
    elif key.lstrip("+~") in (*GROUPS, *LEAVES):
        problems.append(
            f"`{key}`: keys can be set, neither added nor removed. Write {key.lstrip('+~')}=..."
        )
    else:
        hint = did_you_mean(key, [*LEAVES, *GROUPS])
        problems.append(f"{show(key)} is not a configuration key.{hint}")


def _group(key: str, value: str, problems: list[str]) -> Iterator[str]:
    options = group_options(key)
    if value in options:
        yield f"{key}={value}"
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
        names = ", ".join(repr(option) for option in options)
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
    if LEAVES[key].kind in (str, Pattern):
        # A commit such as 12345678, or a path with a comma, is text although Hydra sees more in it.
        plain = parsed is not None and not parsed.is_sweep_override()
        if plain and parsed is not None and isinstance(parsed.value(), str | None):
            yield f"{key}={value}"
        else:
            yield literal(key, value)
    elif parsed is None:
        problems.append(f"`{key}`: {show(value)} cannot be read as a value.")
    elif parsed.is_sweep_override():
        problems.append(f"`{key}` takes one value in a run, got {show(value)}.")
    else:
        yield f"{key}={value}"


def _parse(key: str, value: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException:
        return None


def _unquoted(value: str) -> str:
    """Return the text inside Hydra's quotes, for those who typed them."""
    if len(value) < 2 or value[0] not in "'\"" or value[-1] != value[0]:
        return value
    parsed = _parse("key", value)
    text = None if parsed is None or parsed.is_sweep_override() else parsed.value()
    return text if isinstance(text, str) else value
