"""Replies too large for one message: a prune reply whose bytes come in several.

The first message is the prune reply with one array ``parcel`` in place of the blocks and a record
``parcels`` that lists their sizes; the others bring a parcel each. Put together they are again an
ordinary prune reply.
"""

from collections.abc import Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedprune.errors import ReplyRefusedError
from fedprune.records.fields import array_bytes, byte_array
from fedprune.records.replies import block_key

_KEY = "parcel"
_LIST = "parcels"


def split_record(content: RecordDict, first: bytes, sizes: Mapping[int, int], form: str) -> None:
    """Turn a prune reply's content into the first message of several.

    Parameters
    ----------
    content : RecordDict
        From :func:`fedprune.records.replies.prune_record`, without blocks; changed in place.
    first : bytes
        The first parcel of all blocks' bytes, one after the other.
    sizes : Mapping[int, int]
        Block -> its bytes, in that order.
    form : str
        The format of the blocks.
    """
    content["arrays"] = ArrayRecord({_KEY: byte_array(first, form)})
    content[_LIST] = ConfigRecord({"blocks": list(sizes), "sizes": list(sizes.values())})


def fetched_record(parcel: bytes, form: str) -> RecordDict:
    """Return the content of a reply that brings a later parcel."""
    return RecordDict({"arrays": ArrayRecord({_KEY: byte_array(parcel, form)})})


def read_sizes(message: Message) -> dict[int, int] | None:
    """Return block -> bytes if more parcels follow this reply, None if it is whole.

    Raises
    ------
    ReplyRefusedError
        If the list is malformed.
    """
    record = message.content.config_records.get(_LIST)
    if record is None:
        return None
    blocks, sizes = record.get("blocks"), record.get("sizes")
    if not isinstance(blocks, list) or not isinstance(sizes, list) or len(blocks) != len(sizes):
        raise ReplyRefusedError("'parcels' must list as many blocks as sizes.")
    found = {}
    for block, size in zip(blocks, sizes, strict=True):
        if type(block) is not int or type(size) is not int or block < 0 or not 0 < size < 2**40:
            raise ReplyRefusedError("'parcels' must list whole numbers: blocks and their bytes.")
        found[block] = size
    return found


def read_parcel(message: Message, form: str, size: int) -> bytes:
    """Return the parcel of a reply, which must have exactly ``size`` bytes.

    Raises
    ------
    ReplyRefusedError
        If there is none, or it is of another format or length.
    """
    arrays = message.content.array_records.get("arrays")
    if arrays is None or set(arrays) != {_KEY}:
        raise ReplyRefusedError("a reply in parcels holds one array, 'parcel'.")
    data = array_bytes(arrays[_KEY], form, size)
    if len(data) != size:
        raise ReplyRefusedError(f"this parcel has {size} bytes, got {len(data)}.")
    return data


def joined(message: Message, data: bytes, sizes: Mapping[int, int], form: str) -> None:
    """Turn the first message of several into the ordinary prune reply that they are together."""
    arrays, start = {}, 0
    for block, size in sizes.items():
        arrays[block_key(block)] = byte_array(data[start : start + size], form)
        start += size
    message.content["arrays"] = ArrayRecord(arrays)
    del message.content[_LIST]
