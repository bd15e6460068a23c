"""The configuration as YAML text: what a run keeps beside its results and sends to its nodes."""

import yaml  # type: ignore[import-untyped]

from fedprune.config.checks import checked
from fedprune.config.schema import SECTIONS, RunConfig, flatten, section_keys
from fedprune.errors import ConfigError

MAX_CHARACTERS = 32_768
"""Longest text that `from_yaml` reads; a real one has some 1,000 characters."""

_MAX_DEPTH = 3


def to_yaml(config: RunConfig) -> str:
    """Return the configuration as YAML that `from_yaml` turns into an equal one."""
    flat = flatten(config)
    nested: dict[str, object] = {key: value for key, value in flat.items() if "." not in key}
    for section in SECTIONS:
        nested[section] = {key.partition(".")[2]: flat[key] for key in section_keys(section)}
    return str(yaml.safe_dump(nested, sort_keys=False, width=1_000_000))


def from_yaml(text: str) -> RunConfig:
    """Read and check a configuration that may come from anywhere.

    Plain YAML values only: no tags, no aliases; ``${...}`` is text like any other.

    Raises
    ------
    ConfigError
        If the text is too long, is no YAML, or holds keys or values that are not right; all
        problems at once.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(
            f"A configuration must be at most {MAX_CHARACTERS} characters of YAML, got {len(text)}."
        )
    try:
        _refuse_tricks(text)
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        detail = str(error).partition("\n")[0][:200]
        raise ConfigError(f"A configuration must be YAML of plain values: {detail}.") from error
    return checked(data)


def _refuse_tricks(text: str) -> None:
    """Refuse what lets a short text cost much: aliases stand for copies, nesting for recursion."""
    depth = 0
    for event in yaml.parse(text):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > _MAX_DEPTH:
            raise yaml.YAMLError("it has aliases, or is nested too deep")
