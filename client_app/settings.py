"""What a node's operator says in ``--node-config``: what the node has, and what it will not do.

`docs/data.md` lists the keys. What is wrong is told all at once, in the handshake, so that a node
is refused by the name of its site; a key that nobody knows is a warning, since a limit with a typo
is no limit.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Self

from fedprune.config import DataConfig
from fedprune.config.rules import PATTERNED
from fedprune.config.suggest import did_you_mean, show
from fedprune.data.texts import OwnTexts
from fedprune.errors import ConfigError

Value = str | int | float | bool

GIGABYTE = 1_000_000_000
PAYLOADS = ("masks", "weights", "sums", "moments")
"""What a job may ask a node to send, by how much of its texts that can tell: masks least."""

_WHERE = "in the node's --node-config"
_MOST_MODEL_GB = 50.0
_DEVICE = PATTERNED["pruner.device"]
_LONGEST_SITE = 64


@dataclass(frozen=True)
class Settings:
    """A node's settings, read from its ``--node-config``.

    Attributes
    ----------
    partition_id : int
        Which share of the data it holds; also what its seeds derive from.
    num_partitions : int
        Of how many; 0 if nobody said.
    site : str
        The name that messages and results call it by.
    data_path, text_key, glob : str or None
        Its own texts, and how to read them in place of what the job says.
    model_path : str or None
        The folder of its own copy of the model.
    max_model_gb : float
        The most that models from servers may take here, in GB; 0 takes none.
    min_samples, min_tokens : int
        It takes part only in jobs that calibrate on as many: the fewer, the more of each text.
    max_samples : int or None
        It calibrates on no more than these.
    may_send : tuple of str
        What may leave it, of :data:`PAYLOADS`.
    layer_fraction : float or None
        The share of blocks that it prunes at most.
    threads : int or None
        The processor's threads that it uses.
    device : str or None
        Where it computes, whatever the job says.
    problems : tuple of str
        What is wrong with the settings.
    warnings : tuple of str
        Keys that nobody knows.
    """

    partition_id: int
    num_partitions: int = 0
    site: str = ""
    data_path: str | None = None
    text_key: str | None = None
    glob: str | None = None
    model_path: str | None = None
    max_model_gb: float = _MOST_MODEL_GB
    min_samples: int = 1
    min_tokens: int = 1
    max_samples: int | None = None
    may_send: tuple[str, ...] = PAYLOADS
    layer_fraction: float | None = None
    threads: int | None = None
    device: str | None = None
    problems: tuple[str, ...] = field(default=(), compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def read(cls, values: Mapping[str, Value]) -> Self:
        """Read a node's configuration.

        Raises
        ------
        ConfigError
            If it has no proper ``partition-id``: without it a node has no name. Everything else
            that is wrong is among the ``problems``.
        """
        partition = values.get("partition-id")
        if not isinstance(partition, int) or not _whole(0)(partition):
            raise ConfigError(
                f"`partition-id` {_WHERE} must be a whole number of at least 0, "
                f"got {partition!r}. Start the SuperNode with --node-config 'partition-id=0', "
                "a different number for each node."
            )
        found: dict[str, object] = {}
        problems, warnings = [], []
        for key, value in values.items():
            rule = _RULES.get(key)
            if rule is None:
                hint = did_you_mean(key, _RULES)
                warnings.append(f"{show(key)} {_WHERE} is no key and does nothing.{hint}")
            elif not rule.holds(value):
                problems.append(f"`{key}` {_WHERE} must be {rule.expected}, got {show(value)}.")
            else:
                found[key.replace("-", "_")] = rule.read(value)
        read = cls(**found)  # type: ignore[arg-type]
        problems += read._contradictions()
        return cls(**found, problems=tuple(problems), warnings=tuple(warnings))  # type: ignore[arg-type]

    def texts(self, data: DataConfig) -> OwnTexts | None:
        """Return where this node's own texts are; None where all nodes read the same."""
        if data.source != "node":
            return None
        return OwnTexts(self.data_path, self.text_key, self.glob)

    @property
    def layer_permille(self) -> int:
        """The ``layer-fraction`` in thousandths, 0 if there is none."""
        return 0 if self.layer_fraction is None else max(1, round(self.layer_fraction * 1000))

    @property
    def most_model_bytes(self) -> int:
        """The ``max-model-gb`` in bytes."""
        return round(self.max_model_gb * GIGABYTE)

    def _contradictions(self) -> list[str]:
        found = []
        if self.max_samples is not None and self.max_samples < self.min_samples:
            found.append(
                f"`max-samples` {_WHERE} must be at least `min-samples`, {self.min_samples}, "
                f"got {self.max_samples}."
            )
        if 0 < self.num_partitions <= self.partition_id:
            found.append(
                f"`partition-id` {_WHERE} must be below `num-partitions`, {self.num_partitions}, "
                f"got {self.partition_id}."
            )
        return found


@dataclass(frozen=True)
class _Rule:
    """What a key's value must be, in words too, and what it is read as."""

    holds: Callable[[Value], bool]
    expected: str
    read: Callable[[Value], object] = lambda value: value


def _whole(least: int) -> Callable[[Value], bool]:
    return lambda value: type(value) is int and least <= value < 2**31


def _text(value: Value) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()


def _number(value: Value) -> bool:
    return not isinstance(value, bool | str) and math.isfinite(value)


def _site(value: Value) -> bool:
    name = str(value)
    return not isinstance(value, bool) and name.isprintable() and len(name) <= _LONGEST_SITE


def _glob(value: Value) -> bool:
    inside = _text(value) and ".." not in PurePosixPath(str(value)).parts
    return inside and not PurePosixPath(str(value)).is_absolute()


def _payloads(value: Value) -> tuple[str, ...]:
    return tuple(part.strip() for part in str(value).split(","))


_RULES: Mapping[str, _Rule] = {
    "partition-id": _Rule(_whole(0), "a whole number of at least 0"),
    "num-partitions": _Rule(_whole(1), "a whole number of at least 1"),
    "site": _Rule(_site, f"at most {_LONGEST_SITE} printable characters", str),
    "data-path": _Rule(_text, "the path of a file or folder, in quotes"),
    "text-key": _Rule(_text, "the name of a field, in quotes"),
    "glob": _Rule(_glob, "a relative pattern in quotes, such as '**/*.txt'"),
    "model-path": _Rule(_text, "the path of a model's folder, in quotes"),
    "max-model-gb": _Rule(
        lambda value: _number(value) and float(value) >= 0,
        "a number of at least 0, in GB; 0 takes no model from a server",
        float,
    ),
    "min-samples": _Rule(_whole(1), "a whole number of at least 1"),
    "min-tokens": _Rule(_whole(1), "a whole number of at least 1"),
    "max-samples": _Rule(_whole(1), "a whole number of at least 1"),
    "may-send": _Rule(
        lambda value: isinstance(value, str) and set(_payloads(value)) <= set(PAYLOADS),
        f"some of {', '.join(PAYLOADS)}, separated by commas, in quotes",
        _payloads,
    ),
    "layer-fraction": _Rule(
        lambda value: _number(value) and 0 < float(value) <= 1,
        "a number above 0 and at most 1, the share of blocks that it may prune",
        float,
    ),
    "threads": _Rule(_whole(1), "a whole number of at least 1"),
    "device": _Rule(
        lambda value: isinstance(value, str) and _DEVICE[0].fullmatch(value) is not None,
        _DEVICE[1],
    ),
}
