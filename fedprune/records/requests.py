"""What a server asks for: the configuration, an order, and bytes that go with it."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedprune.errors import ReplyRefusedError
from fedprune.records.fields import array_bytes, byte_array, kebab, typed

BUNDLE_FORMAT = "fedprune.changes.v3"
_NAMES = re.compile(r"update|start-\d{5}|public-\d{5}|segment|shares")
_DELIVERED = re.compile(r"update|start-\d{5}|public-\d{5}|shares")
_AHEAD = "ahead"
_LEAST_SEGMENT = 1 << 16


@dataclass(frozen=True)
class Order:
    """Which blocks a node is to work on, and where it goes on from."""

    # increasing indices; blocks between them are only passed through, dense
    blocks: tuple[int, ...]
    resume: int  # the block whose inputs the node kept after its last order; 0 starts anew
    last: bool  # whether nothing follows in this run, so that the node need keep nothing
    segment_bytes: int  # longer replies come in segments of this many bytes
    # what is asked about the blocks: the name of an exchange that the configuration asks for
    exchange: str = "prune"
    round: int = 1  # the round over all blocks, from 1
    step: int = 0  # which of several such exchanges about the blocks, from 0

    def __post_init__(self) -> None:
        """Refuse orders that nobody can follow."""
        rising = all(a < b for a, b in zip(self.blocks, self.blocks[1:], strict=False))
        if not self.blocks or not rising or not 0 <= self.resume <= self.blocks[0]:
            raise ReplyRefusedError(
                f"an order must name increasing blocks at or after block {self.resume}, "
                f"got {list(self.blocks)[:8]}."
            )
        if self.round < 1:
            raise ReplyRefusedError(f"'round' must be at least 1, got {self.round}.")
        if self.step < 0:
            raise ReplyRefusedError(f"'step' must be at least 0, got {self.step}.")
        if self.segment_bytes < _LEAST_SEGMENT:
            raise ReplyRefusedError(
                f"'segment-bytes' must be at least {_LEAST_SEGMENT}, got {self.segment_bytes}."
            )


def request(
    config_yaml: str, bundle: Mapping[str, bytes] | None = None, **values: int | str
) -> RecordDict:
    """Return the content of a request: the run's configuration and a few settings.

    Keyword names become kebab-case keys of the record ``config``; ``bundle`` (names -> bytes of
    :func:`fedprune.wire.changes.encode_update`, or a segment of such) travels as arrays beside it.
    """
    content: dict[str, int | str] = {"config-yaml": config_yaml}
    content.update({kebab(key): value for key, value in values.items()})
    records = RecordDict({"config": ConfigRecord(content)})  # type: ignore[arg-type]
    if bundle:
        records["arrays"] = ArrayRecord(
            {name: byte_array(data, BUNDLE_FORMAT) for name, data in bundle.items()}
        )
    return records


def order_record(
    config_yaml: str,
    order: Order,
    bundle: Mapping[str, bytes] | None = None,
    ahead: Mapping[str, int] | None = None,
) -> RecordDict:
    """Return the content of a request to prune.

    ``bundle`` as for :func:`request`; ``ahead`` says what was delivered before, name -> bytes.
    """
    records = request(config_yaml, bundle)
    if ahead:
        records[_AHEAD] = ConfigRecord(dict(ahead))
    values = {kebab(key): value for key, value in asdict(order).items()}
    values["blocks"] = list(order.blocks)
    records["order"] = ConfigRecord(values)
    return records


def read_order(message: Message) -> Order:
    """Return the order of a request to prune.

    Raises ReplyRefusedError if a key is missing, of the wrong type or out of range.
    """
    record = message.content.config_records.get("order")
    if record is None:
        raise ReplyRefusedError("the request has no record 'order'.")
    blocks = record.get("blocks")
    if not isinstance(blocks, list) or not all(type(block) is int for block in blocks):
        raise ReplyRefusedError("'blocks' must be a list of whole numbers.")
    kinds = {"last": bool, "exchange": str} | dict.fromkeys(
        ("resume", "segment_bytes", "round", "step"), int
    )
    values = {key: typed(record, kebab(key), kind) for key, kind in kinds.items()}
    return Order(tuple(blocks), **values)  # type: ignore[arg-type]


def read_ahead(message: Message) -> dict[str, int]:
    """Return name -> bytes of what was delivered before an order; empty if nothing was.

    Raises ReplyRefusedError if it is malformed.
    """
    record = message.content.config_records.get(_AHEAD) or ConfigRecord()
    found = {name: size for name, size in record.items() if type(size) is int and size > 0}
    if len(found) != len(record) or not all(_DELIVERED.fullmatch(name) for name in found):
        raise ReplyRefusedError(
            "the record 'ahead' lists 'update', 'start-NNNNN', 'public-NNNNN' and 'shares' with "
            "their bytes only."
        )
    return found


def read_bundle(message: Message) -> dict[str, bytes]:
    """Return the named bytes that a request brings, still encoded; empty if it brings none.

    Raises ReplyRefusedError if the record holds something else, or bytes of another format.
    """
    if "arrays" not in message.content:
        return {}
    arrays = message.content.array_records.get("arrays")
    if arrays is None or not all(_NAMES.fullmatch(name) for name in arrays):
        raise ReplyRefusedError(
            "the request's record 'arrays' may hold 'update', 'start-NNNNN', 'public-NNNNN', "
            "'shares' and 'segment' only."
        )
    return {name: array_bytes(array, BUNDLE_FORMAT) for name, array in arrays.items()}


def requested(message: Message, key: str, kind: type[int] | type[str]) -> int | str:
    """Return one setting of a request, checked for its type."""
    record = message.content.config_records.get("config")
    if record is None:
        raise ReplyRefusedError("the request has no record 'config'.")
    value = typed(record, kebab(key), kind)
    return value if isinstance(value, int | str) else ""
