"""What a node sends of consecutive blocks: masks, weights, sums or moments, still encoded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fedprune.errors import ReplyRefusedError
from fedprune.records.fields import array_bytes, byte_array, figure

MASKS = "fedprune.masks.v1"
WEIGHTS = "fedprune.weights.v1"
SUMS = "fedprune.sums.v1"
MOMENTS = "fedprune.moments.v1"
FORMS: Mapping[str, str] = {
    "fedprllm": MASKS,
    "fedspallm": WEIGHTS,
    "fedstats": SUMS,
    "fedhessian": MOMENTS,
}
"""Strategy -> the format of what its clients send."""


@dataclass(frozen=True)
class PruneReply:
    """Blocks from one node, still encoded.

    Attributes
    ----------
    blocks : dict[int, bytes]
        Block index -> bytes of the codec that the format names.
    seconds : float
        Time the node worked.
    peak_rss_bytes, peak_device_bytes : int
        Peak memory of the node's process and of its accelerator (0 without one).
    num_examples : int
        Calibration samples used.
    """

    blocks: dict[int, bytes]
    seconds: float
    peak_rss_bytes: int
    peak_device_bytes: int
    num_examples: int


def prune_record(reply: PruneReply, form: str = MASKS) -> RecordDict:
    """Return a prune reply's content: the blocks as the only tensors, and a few figures.

    Parameters
    ----------
    reply : PruneReply
        What the node made.
    form : str
        What its bytes are: :data:`MASKS`, :data:`WEIGHTS`, :data:`SUMS` or :data:`MOMENTS`.
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
    return RecordDict({"arrays": arrays, "metrics": metrics})


def read_prune(
    message: Message, blocks: Sequence[int], most_bytes: Mapping[int, int], form: str = MASKS
) -> PruneReply:
    """Read a prune reply.

    Parameters
    ----------
    message : Message
        The reply.
    blocks : Sequence[int]
        The blocks that were asked for; exactly these must be there.
    most_bytes : Mapping[int, int]
        Block index -> largest size its bytes can have, known from the model.
    form : str
        The format that was asked for.

    Raises
    ------
    ReplyRefusedError
        If blocks are missing, unasked, oversized or of another format, or a figure is wrong.
    """
    content = message.content
    if set(content) != {"arrays", "metrics"}:
        raise ReplyRefusedError("a prune reply holds the records 'arrays' and 'metrics' only.")
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
    )


def block_key(index: int) -> str:
    """Return the name of a block's array."""
    return f"block-{index:05d}"
