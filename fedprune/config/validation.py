"""From plain values to a checked `RunConfig` and back to YAML; all problems are told at once.

A user who made three mistakes reads three lines, each with the key, the value, what was expected
and the closest right key. No file and no network is touched, so that a configuration means the
same on every machine.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import yaml  # type: ignore[import-untyped]
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fedprune.config.keys import all_keys, bounds, owners, value_type
from fedprune.config.pattern import Pattern
from fedprune.config.relations import RELATIONS, Relation, told
from fedprune.config.schema import DISCRIMINATORS, SECTIONS, RunConfig, section_type
from fedprune.config.suggest import did_you_mean, show
from fedprune.errors import ConfigError

MAX_CHARACTERS = 32_768
"""Longest text that `from_yaml` reads; a real one has some 1,500 characters."""

MAX_PROBLEMS = 100
"""More than a configuration has keys are counted, not listed."""

_MAX_DEPTH = 3
_NOUNS: Mapping[type, str] = {
    str: "text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


@lru_cache(maxsize=8)  # a run writes the same in every request
def to_yaml(config: RunConfig) -> str:
    """Return the configuration as YAML that `from_yaml` turns into an equal one."""
    plain = config.model_dump(mode="json")
    ordered = {key: value for key, value in plain.items() if key not in SECTIONS} | plain
    return str(yaml.safe_dump(ordered, sort_keys=False, width=1_000_000))


def from_yaml(text: str) -> RunConfig:
    """Read and check a configuration that may come from anywhere.

    Plain YAML values only: no tags, no aliases; ``${...}`` is text like any other.

    Raises ConfigError if the text is too long, is no YAML, or holds keys or values that are not
    right; all problems at once.
    """
    return checked(plain_yaml(text))


def plain_yaml(text: str) -> object:
    """Return what a configuration's YAML holds, unchecked; errors of form as :func:`from_yaml`."""
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(
            f"A configuration must be at most {MAX_CHARACTERS} characters of YAML, got {len(text)}."
        )
    try:
        _refuse_tricks(text)
        found: object = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        detail = str(error).partition("\n")[0][:200]
        raise ConfigError(f"A configuration must be YAML of plain values: {detail}.") from error
    return found


def _refuse_tricks(text: str) -> None:
    """Refuse what lets a short text cost much: aliases stand for copies, nesting for recursion."""
    depth = 0
    for event in yaml.parse(text):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > _MAX_DEPTH:
            raise yaml.YAMLError("it has aliases, or is nested too deep")


def checked(data: object, earlier: Sequence[str] = (), more: Sequence[Relation] = ()) -> RunConfig:
    """Return the typed configuration of nested plain mappings.

    `data`: what YAML or Hydra made: mappings of mappings of values. Nothing about it is taken on
    trust. `more`: relations to hold besides those of every configuration. Raises ConfigError if
    there is any problem; it carries all of them.
    """
    problems = list(earlier)
    details: list[ErrorDetails] = []
    try:
        run = RunConfig.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        run = _right_part(data, {_key(detail) for detail in details})
    wrong = {_key(detail) for detail in details}
    for detail in details:
        problems.extend(_sentences(detail, data, wrong))
    relations = (*RELATIONS, *more, lambda run: run.strategy.check(run))
    problems.extend(told(run, relations))
    raise_problems(problems)
    return run


def raise_problems(problems: Sequence[str]) -> None:
    """Raise one `ConfigError` that carries all problems; return if there are none."""
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        lines = [f"- {problem}" for problem in problems[:MAX_PROBLEMS]]
        if len(problems) > MAX_PROBLEMS:
            lines.append(f"- and {len(problems) - MAX_PROBLEMS} more.")
        raise ConfigError("\n".join([f"The configuration has {len(problems)} problems:", *lines]))


def _key(detail: ErrorDetails) -> str:
    return ".".join(map(str, detail["loc"]))


def _right_part(data: object, wrong: set[str]) -> RunConfig:
    """Return a configuration that lacks what is wrong, for the relations between the rest."""
    values = data if isinstance(data, dict) else {}
    right: dict[str, object] = {}
    for key, field in RunConfig.model_fields.items():
        value = values.get(key)
        if isinstance(value, dict) and key in SECTIONS:
            kind = section_type(key, value)
            right[key] = kind.model_construct(
                None,
                **{
                    name: _read(inner, value[name])
                    for name, inner in kind.model_fields.items()
                    if name in value and f"{key}.{name}" not in wrong
                },
            )
        elif key in values and key not in wrong:
            right[key] = _read(field, value)
    return RunConfig.model_construct(None, **right)


def _read(field: FieldInfo, value: object) -> object:
    """Return a right value as its type has it."""
    if field.annotation is Pattern:
        return Pattern.parse(str(value))
    is_float = value_type(field)[0] is float and isinstance(value, int)
    return float(value) if is_float and isinstance(value, int) else value


def _sentences(detail: ErrorDetails, data: object, wrong: set[str]) -> Iterator[str]:
    """Yield what a user reads of one of pydantic's findings."""
    key, kind, value = _key(detail), detail["type"], detail["input"]
    field = _field(key, data)
    if kind in ("extra_forbidden", "invalid_key"):
        yield from _no_key(key, data, wrong)
    elif kind == "missing":
        inner = [f"{key}.{name}" for name in SECTIONS[key].model_fields] if key in SECTIONS else []
        yield from (f"`{name}` is missing. Add it." for name in inner or [key])
    elif field is None:
        where = f"`{key}`" if key else "The configuration"
        yield f"{where} must be a mapping of keys to values, got {show(value)}."
    else:
        yield _wrong_value(key, field, detail)


def _field(key: str, data: object) -> FieldInfo | None:
    section, _, name = key.rpartition(".")
    kind = section_type(section, _values(section, data)) if section in SECTIONS else RunConfig
    return None if key in SECTIONS else kind.model_fields.get(name)


def _values(section: str, data: object) -> dict[str, object]:
    values = data.get(section) if isinstance(data, dict) else None
    return values if isinstance(values, dict) else {}


def _no_key(key: str, data: object, wrong: set[str]) -> Iterator[str]:
    """Yield why a key cannot be set: nobody has it, or another choice."""
    section, _, name = key.partition(".")
    having = owners(key)
    values = _values(section, data)
    if not having or name not in values:
        hint = did_you_mean(key, [*all_keys(), *SECTIONS])
        yield f"{show(key)} is not a configuration key.{hint}"
        return
    discriminator = DISCRIMINATORS[section]
    if f"{section}.{discriminator}" not in wrong:  # else nobody knows which keys there are
        chosen, common = values[discriminator], SECTIONS[section].model_fields
        own = [one for one in section_type(section, values).model_fields if one not in common]
        has = _listed([f"`{one}`" for one in own]) or "no key"
        yield (
            f"`{key}` is a key of {_listed(having)}; {chosen} has {has} besides those of all. "
            f"Leave it out, or set {section}={having[0]}."
        )


def _listed(names: Sequence[str]) -> str:
    """Return names as a sentence lists them."""
    return " and ".join([", ".join(names[:-1])] * (len(names) > 1) + list(names[-1:]))


def _wrong_value(key: str, field: FieldInfo, detail: ErrorDetails) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    plain, optional, choices = value_type(field)
    if kind == "sentence":
        return detail["msg"]
    if kind == "empty":
        way_out = "Write null to leave it out." if optional else "Give a value."
        return f"`{key}` must not be empty. {way_out}"
    if kind in ("literal_error", "choice"):
        names = context.get("choices", choices) or choices
        listed = ", ".join([*map(repr, names), *["null"] * optional])
        texts = [name for name in names if isinstance(name, str)]
        hint = did_you_mean(value, texts) if isinstance(value, str) else ""
        return f"`{key}` must be one of {listed}, got {show(value)}.{hint}"
    if kind == "value_error" and not (plain in (str, bool) and isinstance(value, int | float)):
        return f"`{key}` {context['error']}, got {show(value)}."
    if kind in _BOUNDS:
        return f"`{key}` must be {bounds(field)}, got {show(value)}."
    noun = _NOUNS[plain] + (" or null" if optional else "")
    return f"`{key}` must be {noun}, got {show(value)} ({type(value).__name__})."
