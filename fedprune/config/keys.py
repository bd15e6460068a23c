"""The list of keys: what each takes, in the words of messages, and who has it."""

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic.fields import FieldInfo

from fedprune.config.pattern import Pattern
from fedprune.config.schema import SECTIONS, UNIONS, RunConfig

Plain = str | int | float | bool | None
"""A value as YAML and JSON have it."""


def all_keys() -> dict[str, FieldInfo]:
    """Return dotted key -> field of every value that some choice has, in the order of the types."""
    found: dict[str, FieldInfo] = {}
    for name, field in RunConfig.model_fields.items():
        if name not in SECTIONS:
            found[name] = field
            continue
        for kind in (SECTIONS[name], *UNIONS.get(name, {}).values()):
            for key, inner in kind.model_fields.items():
                found.setdefault(f"{name}.{key}", inner)
    return found


def owners(key: str) -> list[str]:
    """Return the choices of a union that have a key which not all of them have."""
    section, _, name = key.partition(".")
    if section not in UNIONS or name in SECTIONS[section].model_fields:
        return []
    return [choice for choice, kind in UNIONS[section].items() if name in kind.model_fields]


def value_type(field: FieldInfo) -> tuple[type, bool, tuple[Any, ...]]:
    """Return the plain type of a key's values, whether null is one, and the names it may have."""
    kind: Any = field.annotation
    optional = False
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
        optional = True
    if typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        return type(choices[0]), optional, choices
    return (str if kind is Pattern else kind), optional, ()


def bounds(field: FieldInfo) -> str:
    """Return the interval that a number must lie in, in words."""
    kind: Any = field.annotation
    rules = list(field.metadata)
    for part in typing.get_args(kind):
        for extra in getattr(part, "__metadata__", ()):
            rules += getattr(extra, "metadata", [extra])
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    ends = [
        f"{word} {getattr(rule, name):g}"
        for name, word in words.items()
        for rule in rules
        if getattr(rule, name, None) is not None
    ]
    return " and ".join(ends)


def flatten(config: RunConfig) -> dict[str, Plain]:
    """Return dotted key -> plain value of every key that the configuration has."""
    found: dict[str, Plain] = {}
    for section, value in config.model_dump(mode="json").items():
        inner = value if isinstance(value, dict) else {"": value}
        found |= {f"{section}.{key}".rstrip("."): plain for key, plain in inner.items()}
    return found


def leaves(table: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what stands in nested tables, each value behind its keys: ``outer.inner``."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
