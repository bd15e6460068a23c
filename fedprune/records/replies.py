"""What a node sends of consecutive blocks: masks, weights, sums or moments, still encoded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedprune.errors import ReplyRefusedError
from fedprune.evaluation.own_texts import OwnTextResult
from fedprune.privacy.signing import SIGNATURE_BYTES
from fedprune.records.fields import array_bytes, byte_array, figure
from fedprune.records.requests import read_bundle, request, requested

_SIGNATURE = "signature"


@dataclass(frozen=True)
class PruneReply:
    """Blocks from one node, still encoded."""

    blocks: dict[int, bytes]  # block index -> bytes of the codec that the format names
    seconds: float
    # peak_rss_bytes, peak_device_bytes: peak memory of the node's process and of its accelerator (0
    # without one)
    peak_rss_bytes: int
    peak_device_bytes: int
    num_examples: int
    # of the hashes of all blocks, by the node's site; b"" where that has no key
    signature: bytes = b""


def prune_record(reply: PruneReply, form: str) -> RecordDict:
    """Return a prune reply's content: the blocks as the only tensors, and a few figures.

    `form`: the format of its bytes (:attr:`fedprune.methods.exchange.BlockExchange.form`).
    """
    arrays = ArrayRecord(
        {block_key(index): byte_array(data, form) for index, data in reply.blocks.items()}
    )
    metrics = MetricRecord(
        {
            "seconds": reply.seconds,
            "peak-rss-bytes": reply.peak_rss_bytes,
            "peak-device-bytes": reply.peak_device_bytes,
            "num-examples": reply.num_examples,
        }
    )
    records = RecordDict({"arrays": arrays, "metrics": metrics})
    if reply.signature:
        records[_SIGNATURE] = ConfigRecord({_SIGNATURE: reply.signature})
    return records


def read_prune(
    message: Message, blocks: Sequence[int], most_bytes: Mapping[int, int], form: str
) -> PruneReply:
    """Read a prune reply.

    `blocks`: the blocks that were asked for; exactly these must be there. `most_bytes`: block index
    -> largest size its bytes can have, known from the model. Raises ReplyRefusedError if blocks are
    missing, unasked, oversized or of another format, or a figure is wrong.
    """
    content = message.content
    signed = content.config_records.get(_SIGNATURE) or ConfigRecord()
    signature = signed.get(_SIGNATURE, b"")
    if set(content) - {_SIGNATURE} != {"arrays", "metrics"} or not isinstance(signature, bytes):
        raise ReplyRefusedError(
            "a prune reply holds the records 'arrays' and 'metrics', maybe 'signature', only."
        )
    arrays = content.array_records.get("arrays")
    metrics = content.metric_records.get("metrics")
    if arrays is None or metrics is None:
        raise ReplyRefusedError("'arrays' must be an ArrayRecord and 'metrics' a MetricRecord.")
    if set(arrays) != {block_key(index) for index in blocks}:
        raise ReplyRefusedError(
            f"asked for blocks {blocks[0]}-{blocks[-1]}, got {len(arrays)} arrays "
            "that are not exactly these."
        )
    data = {}
    for index in blocks:
        try:
            data[index] = array_bytes(arrays[block_key(index)], form, most_bytes[index])
        except ReplyRefusedError as error:
            raise ReplyRefusedError(f"block {index}: {error}") from None
    return PruneReply(
        blocks=data,
        seconds=figure(metrics, "seconds"),
        peak_rss_bytes=int(figure(metrics, "peak-rss-bytes")),
        peak_device_bytes=int(figure(metrics, "peak-device-bytes")),
        num_examples=int(figure(metrics, "num-examples")),
        signature=signature[: SIGNATURE_BYTES + 1],
    )


def block_key(index: int) -> str:
    """Return the name of a block's array."""
    return f"block-{index:05d}"


_KEY = "segment"
_LIST = "segments"


def split_record(content: RecordDict, first: bytes, sizes: Mapping[int, int], form: str) -> None:
    """Turn a prune reply's content into the first message of several.

    `content`: from :func:`fedprune.records.replies.prune_record`, without blocks; changed in place.
    `first`: the first segment of all blocks' bytes, one after the other. `sizes`: block -> its
    bytes, in that order.
    """
    content["arrays"] = ArrayRecord({_KEY: byte_array(first, form)})
    content[_LIST] = ConfigRecord({"blocks": list(sizes), "sizes": list(sizes.values())})


def fetched_record(segment: bytes, form: str) -> RecordDict:
    """Return the content of a reply that brings a later segment."""
    return RecordDict({"arrays": ArrayRecord({_KEY: byte_array(segment, form)})})


def read_sizes(message: Message) -> dict[int, int] | None:
    """Return block -> bytes if more segments follow this reply, None if it is whole.

    Raises ReplyRefusedError if the list is malformed.
    """
    record = message.content.config_records.get(_LIST)
    if record is None:
        return None
    blocks, sizes = record.get("blocks"), record.get("sizes")
    if not isinstance(blocks, list) or not isinstance(sizes, list) or len(blocks) != len(sizes):
        raise ReplyRefusedError("'segments' must list as many blocks as sizes.")
    found = {}
    for block, size in zip(blocks, sizes, strict=True):
        if type(block) is not int or type(size) is not int or block < 0 or not 0 < size < 2**40:
            raise ReplyRefusedError("'segments' must list whole numbers: blocks and their bytes.")
        found[block] = size
    return found


def read_segment(message: Message, form: str, size: int) -> bytes:
    """Return the segment of a reply, which must have exactly ``size`` bytes.

    Raises ReplyRefusedError if there is none, or it is of another format or length.
    """
    arrays = message.content.array_records.get("arrays")
    if arrays is None or set(arrays) != {_KEY}:
        raise ReplyRefusedError("a reply in segments holds one array, 'segment'.")
    data = array_bytes(arrays[_KEY], form, size)
    if len(data) != size:
        raise ReplyRefusedError(f"this segment has {size} bytes, got {len(data)}.")
    return data


def joined(content: RecordDict, data: bytes, sizes: Mapping[int, int], form: str) -> RecordDict:
    """Return the first content of several as that of the prune reply that they are together."""
    arrays, start = {}, 0
    for block, size in sizes.items():
        arrays[block_key(block)] = byte_array(data[start : start + size], form)
        start += size
    content["arrays"] = ArrayRecord(arrays)
    del content[_LIST]
    return content


_NLL_OF = "nll-of-"
_LONGEST = 200


@dataclass(frozen=True)
class LocalResult:
    """How well a node's own pruned model predicts; only these numbers leave the node."""

    nll: float  # mean negative log-likelihood of a token on the held-out part of `data`, in nats
    tokens: int
    # the same on each of `evaluation.datasets`, by label
    others: Mapping[str, float] = field(default_factory=dict)


def local_record(result: LocalResult) -> RecordDict:
    """Return the content of a reply to a local evaluation."""
    metrics: dict[str, float] = {"nll": result.nll, "num-tokens": result.tokens}
    metrics |= {f"{_NLL_OF}{label}": nll for label, nll in result.others.items()}
    return RecordDict({"metrics": MetricRecord(metrics)})  # type: ignore[arg-type]


def read_local(message: Message) -> LocalResult:
    """Read a reply to a local evaluation; raises ReplyRefusedError when it is not one."""
    metrics = message.content.metric_records.get("metrics")
    if metrics is None:
        raise ReplyRefusedError("a local evaluation holds the record 'metrics'.")
    if any(len(key) > _LONGEST or not key.isprintable() for key in metrics):
        raise ReplyRefusedError(f"metrics have names of at most {_LONGEST} printable characters.")
    others = {
        key.removeprefix(_NLL_OF): figure(metrics, key)
        for key in metrics
        if key.startswith(_NLL_OF)
    }
    return LocalResult(figure(metrics, "nll"), int(figure(metrics, "num-tokens")), others)


FINAL = "final"
"""Name of the deliveries."""


@dataclass(frozen=True)
class FinalOrder:
    """A request to measure the final model."""

    # block -> bytes of what became of it, in the order of the segments; others stay dense
    sizes: Mapping[int, int]
    start: int  # how many bytes came in segments before
    segment: bytes  # the last one, which comes with the request; empty if every block stays dense


def final_record(config_yaml: str, order: FinalOrder) -> RecordDict:
    """Return the content of a request to measure the final model."""
    records = request(config_yaml, {"segment": order.segment}, start=order.start)
    listed = {"blocks": list(order.sizes), "sizes": list(order.sizes.values())}
    records["segments"] = ConfigRecord(listed)  # type: ignore[arg-type]
    return records


def read_final(message: Message) -> FinalOrder:
    """Read a request to measure the final model.

    Raises ReplyRefusedError if it is malformed.
    """
    sizes, bundle = read_sizes(message), read_bundle(message)
    start = int(requested(message, "start", int))
    if sizes is None or set(bundle) != {"segment"} or start < 0:
        raise ReplyRefusedError(
            "a request to measure the final model brings the array 'segment', its start and the "
            "record 'segments'."
        )
    return FinalOrder(sizes, start, bundle["segment"])


def own_text_record(result: OwnTextResult) -> RecordDict:
    """Return the content of a reply that says what a node measured."""
    metrics: dict[str, float] = {
        "dense-nll": result.dense_nll,
        "pruned-nll": result.pruned_nll,
        "num-tokens": result.tokens,
    }
    return RecordDict({"metrics": MetricRecord(metrics)})  # type: ignore[arg-type]


def read_own_text(message: Message) -> OwnTextResult:
    """Read what a node measured; raises ReplyRefusedError when it is not that."""
    metrics = message.content.metric_records.get("metrics")
    if metrics is None or set(message.content) != {"metrics"}:
        raise ReplyRefusedError("a measurement on own texts holds the record 'metrics' only.")
    return OwnTextResult(
        dense_nll=figure(metrics, "dense-nll"),
        pruned_nll=figure(metrics, "pruned-nll"),
        tokens=int(figure(metrics, "num-tokens")),
    )
