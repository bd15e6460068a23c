"""Messages of secure sums: what the protocol made, as named bytes, and what else it must know."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedprune.errors import ReplyRefusedError
from fedprune.records.fields import array_bytes, byte_array, shown, typed
from fedprune.records.requests import request, requested

FORM = "fedprune.secure.v1"
_ARRAYS, _CONFIG = "arrays", "config"
_LONGEST_NAME = 64
_MOST_INPUTS = 1 << 24  # characters that list which linears share an input

Inputs = tuple[tuple[tuple[str, ...], ...], ...]
"""Block -> the linears that share an input, a tuple for each distinct input."""


@dataclass(frozen=True)
class KeysOrder:
    """A request for the keys of a run's secure sums."""

    plan: bytes
    clients: int  # how many are asked; words have room for the sum of so many
    # block -> inputs, as the server sees the model; empty where no statistics are sent
    inputs: Inputs = ()


@dataclass(frozen=True)
class Keys:
    """A node's keys for a run's secure sums."""

    advert: bytes
    name: str  # what the protocol calls the node: its site's in the roster, if it has one
    roster: str  # SHA-256 of the roster by which it trusts the others; "" if it trusts anybody


def keys_request(config_yaml: str, order: KeysOrder) -> RecordDict:
    """Return the content of a request for keys."""
    inputs = json.dumps(order.inputs)
    records = request(config_yaml, None, clients=order.clients, inputs=inputs)
    records[_ARRAYS] = _arrays({"plan": order.plan})
    return records


def read_keys_request(message: Message) -> KeysOrder:
    """Read a request for keys; ReplyRefusedError if it is malformed."""
    clients, text = int(requested(message, "clients", int)), str(requested(message, "inputs", str))
    try:
        found: list[list[list[object]]] = json.loads(text[:_MOST_INPUTS])
        inputs = tuple(tuple(tuple(map(_text, one)) for one in block) for block in found)
    except (ValueError, TypeError, RecursionError):
        raise ReplyRefusedError("'inputs' must list the linears that share an input.") from None
    if not 2 <= clients < 2**31:
        raise ReplyRefusedError(f"'clients' must be at least 2, got {clients}.")
    return KeysOrder(read_parts(message, ["plan"])["plan"], clients, inputs)


def keys_record(keys: Keys) -> RecordDict:
    """Return the content of a reply with a node's keys."""
    told = ConfigRecord({"name": keys.name, "roster": keys.roster})
    return RecordDict({_ARRAYS: _arrays({"advert": keys.advert}), _CONFIG: told})


def read_keys(message: Message) -> Keys:
    """Read a node's keys; ReplyRefusedError if the reply is malformed."""
    record = message.content.config_records.get(_CONFIG)
    if record is None:
        raise ReplyRefusedError("a reply with keys has a record 'config'.")
    name, roster = str(typed(record, "name", str)), str(typed(record, "roster", str))
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise ReplyRefusedError(f"'name' must be 1 to {_LONGEST_NAME} printable characters.")
    if len(roster) > _LONGEST_NAME or not all(digit in "0123456789abcdef" for digit in roster):
        raise ReplyRefusedError("'roster' must be a hash in hexadecimal digits.")
    return Keys(read_parts(message, ["advert"])["advert"], name, roster)


def parts_request(config_yaml: str, parts: Mapping[str, bytes]) -> RecordDict:
    """Return the content of a request that brings named bytes."""
    records = request(config_yaml)
    records[_ARRAYS] = _arrays(parts)
    return records


def parts_record(parts: Mapping[str, bytes]) -> RecordDict:
    """Return the content of a reply that brings named bytes."""
    return RecordDict({_ARRAYS: _arrays(parts)})


def read_parts(message: Message, names: Sequence[str] | None = None) -> dict[str, bytes]:
    """Return the named bytes of a message.

    `names`: exactly these must be there; None: at least one of any name. Raises ReplyRefusedError
    if others are there, or they are malformed.
    """
    arrays = message.content.array_records.get(_ARRAYS)
    found = () if arrays is None else tuple(arrays)
    if arrays is None or not found or (names is not None and set(found) != set(names)):
        raise ReplyRefusedError(f"expected the arrays {_listed(names)}, got {_listed(found)}.")
    return {name: array_bytes(arrays[name], FORM) for name in names or found}


def _arrays(parts: Mapping[str, bytes]) -> ArrayRecord:
    return ArrayRecord({name: byte_array(data, FORM) for name, data in parts.items()})


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _listed(names: Iterable[str] | None) -> str:
    return "of some sums" if names is None else shown(", ".join(names), 200) or "none"
