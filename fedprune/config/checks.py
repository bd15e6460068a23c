"""What every value must be: types, ranges, names, and which values go together.

Nothing here stops at the first problem: a user who made three mistakes reads three lines. No file
and no network is touched, so that a configuration means the same on every machine.
"""

import math
import unicodedata
from collections.abc import Mapping, Sequence

from fedprune.config.pattern import Pattern
from fedprune.config.relations import RELATIONS
from fedprune.config.rules import BOUNDS, CHOICES, EMPTY_ALLOWED, PATTERNED, choices
from fedprune.config.schema import LEAVES, SECTIONS, Leaf, RunConfig, Value, build
from fedprune.config.strategy_relations import Relation
from fedprune.config.suggest import did_you_mean, show
from fedprune.errors import ConfigError

_NOUNS = {
    str: "text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Pattern: "text in quotes",
}

MAX_PROBLEMS = 100
"""More than a configuration has keys are counted, not listed."""


def raise_problems(problems: Sequence[str]) -> None:
    """Raise one `ConfigError` that carries all problems; return if there are none."""
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        lines = [f"- {problem}" for problem in problems[:MAX_PROBLEMS]]
        if len(problems) > MAX_PROBLEMS:
            lines.append(f"- and {len(problems) - MAX_PROBLEMS} more.")
        raise ConfigError("\n".join([f"The configuration has {len(problems)} problems:", *lines]))


def checked(data: object, earlier: Sequence[str] = (), more: Sequence[Relation] = ()) -> RunConfig:
    """Return the typed configuration of nested plain mappings.

    Parameters
    ----------
    data : object
        What YAML or Hydra made: mappings of mappings of values. Nothing about it is taken on
        trust.
    earlier : sequence of str
        Problems found before, reported with those found here.
    more : sequence of Relation
        Relations to hold besides `RELATIONS`.

    Raises
    ------
    ConfigError
        If there is any problem; it carries all of them.
    """
    problems = list(earlier)
    values: dict[str, Value] = {}
    for key, value in _leaves(data, problems).items():
        leaf = LEAVES[key]
        problem = _type_problem(key, leaf, value) or _value_problem(key, value)
        if problem:
            problems.append(problem)
        else:
            _store(values, key, leaf, value, problems)
    for relation in (*RELATIONS, *more):
        problems.extend(relation(values))
    raise_problems(problems)
    return build(values)


def _leaves(data: object, problems: list[str]) -> dict[str, object]:
    """Return key -> value in the order of `LEAVES`; report keys too many and too few."""
    found: dict[str, object] = {}
    _collect("", data, found, problems)
    for key in LEAVES:
        # What should be a mapping and is none has been reported: its keys are not also missing.
        above = ("", key.rpartition(".")[0])
        if key not in found and not any(section in found for section in above):
            problems.append(f"`{key}` is missing. Add it.")
    return {key: found[key] for key in LEAVES if key in found}


def _collect(key: str, data: object, found: dict[str, object], problems: list[str]) -> None:
    if not isinstance(data, Mapping):
        where = f"`{key}`" if key else "The configuration"
        problems.append(f"{where} must be a mapping of keys to values, got {show(data)}.")
        found[key] = data
        return
    for name, value in data.items():
        inner = f"{key}.{name}" if key else str(name)
        if isinstance(name, str) and inner in SECTIONS:
            _collect(inner, value, found, problems)
        elif isinstance(name, str) and inner in LEAVES:
            found[inner] = value
        else:
            hint = did_you_mean(inner, [*LEAVES, *SECTIONS])
            problems.append(f"{show(inner)} is not a configuration key.{hint}")


def _type_problem(key: str, leaf: Leaf, value: object) -> str | None:
    """Return what is wrong with the type; a bool is no number, a number no text."""
    if value is None and leaf.optional:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        str: isinstance(value, str),
        Pattern: isinstance(value, str),
        bool: isinstance(value, bool),
        int: number and isinstance(value, int),
        float: number,
    }
    if not fits[leaf.kind]:
        noun = _NOUNS[leaf.kind] + (" or null" if leaf.optional else "")
        return f"`{key}` must be {noun}, got {show(value)} ({type(value).__name__})."
    if isinstance(value, float) and not math.isfinite(value):
        return f"`{key}` must be a finite number, got {value}."
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return f"`{key}` must fit in 64 bits, got {show(value)}."
    if isinstance(value, str) and any(unicodedata.category(c) in ("Cc", "Cs") for c in value):
        return f"`{key}` must be text without control characters, got {show(value)}."
    return None


def _value_problem(key: str, value: object) -> str | None:
    """Return what is wrong with a value of the right type."""
    if value is None:
        return None
    if key in CHOICES and value not in choices(key):
        hint = did_you_mean(str(value), choices(key))
        names = ", ".join(repr(name) for name in choices(key))
        return f"`{key}` must be one of {names}, got {show(value)}.{hint}"
    if key in BOUNDS and isinstance(value, int | float) and not BOUNDS[key].hold(value):
        return f"`{key}` must be {BOUNDS[key].text}, got {show(value)}."
    if key in PATTERNED and isinstance(value, str):
        pattern, expected = PATTERNED[key]
        if not pattern.fullmatch(value):
            return f"`{key}` must be {expected}, got {show(value)}."
    if value == "" and key not in EMPTY_ALLOWED:
        way_out = "Write null to leave it out." if LEAVES[key].optional else "Give a value."
        return f"`{key}` must not be empty. {way_out}"
    return None


def _store(
    values: dict[str, Value], key: str, leaf: Leaf, value: object, problems: list[str]
) -> None:
    if isinstance(value, str) and leaf.kind is Pattern:
        try:
            values[key] = Pattern.parse(value)
        except ConfigError as error:
            problems.append(str(error))
    elif isinstance(value, int) and leaf.kind is float:
        values[key] = float(value)
    elif value is None or isinstance(value, str | int | float):
        values[key] = value
