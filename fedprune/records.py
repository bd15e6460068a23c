"""Domain objects to and from Flower's records: the only module of the package that knows Flower.

Names in records are kebab-case. Everything read here may come from a stranger: types and ranges
are checked, nothing is unpickled.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fedprune.errors import ReplyRefusedError

MASK_FORMAT = "fedprune.masks.v1"
UPDATE_FORMAT = "fedprune.update.v1"
_NLL_OF = "nll-of-"


@dataclass(frozen=True)
class NodeReport:
    """What a node says of itself in the handshake; no private text, only counts and hashes.

    Attributes
    ----------
    partition_id, num_partitions : int
        Which share of the data the node holds, and of how many.
    site : str
        The name its operator gave it (``site`` in the node's configuration), or "".
    config_hash, weights_hash : str
        Fingerprint of its model (hex sha256).
    code_hash : str
        Digest of the fedprune sources it runs (hex sha256).
    samples, tokens : int
        Calibration samples it offers and the tokens in them.
    device : str
        Where it will compute, for example "cpu" or "cuda:0".
    memory_bytes : int
        Memory of that device.
    versions : str
        Versions of the libraries that decide about results.
    problem : str
        Why it cannot take part; "" if it can.
    sample_ids : str
        Where its samples were taken, as hashes separated by commas; "" if the texts are its own.
    """

    partition_id: int
    num_partitions: int
    site: str
    config_hash: str
    weights_hash: str
    code_hash: str
    samples: int
    tokens: int
    device: str
    memory_bytes: int
    versions: str
    problem: str
    sample_ids: str = ""

    @property
    def name(self) -> str:
        """How messages call the node: its site's name and its partition."""
        label = f"partition {self.partition_id}"
        return f"'{self.site}' ({label})" if self.site else label


@dataclass(frozen=True)
class PruneReply:
    """Masks of consecutive blocks from one node, still encoded.

    Attributes
    ----------
    blocks : dict[int, bytes]
        Block index -> bytes of :func:`fedprune.wire.block.encode_block`.
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


@dataclass(frozen=True)
class LocalResult:
    """How well a node's own pruned model predicts; only these numbers leave the node.

    Attributes
    ----------
    nll : float
        Mean negative log-likelihood of a token on the held-out part of `data`, in nats.
    tokens : int
        Tokens predicted there.
    others : Mapping[str, float]
        The same on each of `evaluation.datasets`, by label.
    """

    nll: float
    tokens: int
    others: Mapping[str, float] = field(default_factory=dict)


def request(config_yaml: str, update: bytes | None = None, **values: int | str) -> RecordDict:
    """Return the content of a request: the run's configuration and a few settings.

    Keyword names become kebab-case keys of the record ``config``; ``update`` (bytes of
    :func:`fedprune.wire.update.encode_update`) travels as an array beside it.
    """
    content: dict[str, int | str] = {"config-yaml": config_yaml}
    content.update({_kebab(key): value for key, value in values.items()})
    records = RecordDict({"config": ConfigRecord(content)})  # type: ignore[arg-type]
    if update is not None:
        array = Array("uint8", (len(update),), UPDATE_FORMAT, update)
        records["arrays"] = ArrayRecord({"update": array})
    return records


def requested_update(message: Message) -> bytes | None:
    """Return the update that a request brings, still encoded; None if it brings none.

    Raises
    ------
    ReplyRefusedError
        If the request holds other arrays, or the update is of another format.
    """
    if "arrays" not in message.content:
        return None
    arrays = message.content.array_records.get("arrays")
    if arrays is None or set(arrays) != {"update"}:
        raise ReplyRefusedError("the request's record 'arrays' must hold one array, 'update'.")
    array = arrays["update"]
    shape = (len(array.data),)
    if array.stype != UPDATE_FORMAT or array.dtype != "uint8" or array.shape != shape:
        raise ReplyRefusedError(
            f"the update must be a uint8 array of format '{UPDATE_FORMAT}' with its true length."
        )
    return array.data


def requested(message: Message, key: str, kind: type[int] | type[str]) -> int | str:
    """Return one setting of a request, checked for its type."""
    record = message.content.config_records.get("config")
    if record is None:
        raise ReplyRefusedError("the request has no record 'config'.")
    return cast(int | str, _typed(record, _kebab(key), kind))


def report_record(report: NodeReport) -> RecordDict:
    """Return a handshake reply's content."""
    values = {_kebab(key): value for key, value in asdict(report).items()}
    return RecordDict({"report": ConfigRecord(values)})


def read_report(message: Message) -> NodeReport:
    """Read a handshake reply.

    Raises
    ------
    ReplyRefusedError
        If a key is missing or has the wrong type.
    """
    record = message.content.config_records.get("report")
    if record is None:
        raise ReplyRefusedError("the handshake has no record 'report'.")
    values: dict[str, int | str] = {}
    for entry in fields(NodeReport):
        kind: type[int] | type[str] = int if entry.type is int else str
        values[entry.name] = cast(int | str, _typed(record, _kebab(entry.name), kind))
    return NodeReport(**values)  # type: ignore[arg-type]


def prune_record(reply: PruneReply) -> RecordDict:
    """Return a prune reply's content: masks as the only tensors, and a few figures."""
    arrays = ArrayRecord(
        {
            _block_key(index): Array("uint8", (len(data),), MASK_FORMAT, data)
            for index, data in reply.blocks.items()
        }
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


def read_prune(message: Message, blocks: range, most_bytes: Mapping[int, int]) -> PruneReply:
    """Read a prune reply.

    Parameters
    ----------
    message : Message
        The reply.
    blocks : range
        The blocks that were asked for; exactly these must be there.
    most_bytes : Mapping[int, int]
        Block index -> largest size its bytes can have, known from the model.

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
    if set(arrays) != {_block_key(index) for index in blocks}:
        raise ReplyRefusedError(
            f"asked for blocks {blocks.start}-{blocks.stop - 1}, got {len(arrays)} arrays "
            "that are not exactly these."
        )
    data = {index: _mask_bytes(arrays[_block_key(index)], most_bytes[index]) for index in blocks}
    return PruneReply(
        blocks=data,
        seconds=_figure(metrics, "seconds"),
        peak_rss_bytes=int(_figure(metrics, "peak-rss-bytes")),
        peak_device_bytes=int(_figure(metrics, "peak-device-bytes")),
        num_examples=int(_figure(metrics, "num-examples")),
    )


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
    others = {
        key.removeprefix(_NLL_OF): _figure(metrics, key)
        for key in metrics
        if key.startswith(_NLL_OF)
    }
    return LocalResult(_figure(metrics, "nll"), int(_figure(metrics, "num-tokens")), others)


def message_bytes(message: Message) -> int:
    """Return the size of a message as Flower serialises it, headers included."""
    return sum(len(item.deflate()) for item in get_all_nested_objects(message).values())


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _block_key(index: int) -> str:
    return f"block-{index:05d}"


def _typed(record: ConfigRecord, key: str, kind: type[int] | type[str]) -> object:
    value = record.get(key)
    if type(value) is not kind:
        raise ReplyRefusedError(f"'{key}' must be {kind.__name__}, got {type(value).__name__}.")
    return value


def _mask_bytes(array: Array, most: int) -> bytes:
    if array.stype != MASK_FORMAT or array.dtype != "uint8" or array.shape != (len(array.data),):
        raise ReplyRefusedError(
            f"masks travel as uint8 arrays of format '{MASK_FORMAT}' with their true length."
        )
    if len(array.data) > most:
        raise ReplyRefusedError(
            f"a block's masks take at most {most} bytes, got {len(array.data)}."
        )
    return array.data


def _figure(metrics: MetricRecord, key: str) -> float:
    value = metrics.get(key)
    if not isinstance(value, int | float) or not 0 <= value < 2**62:
        raise ReplyRefusedError(f"'{key}' must be a finite number of at least 0.")
    return float(value)
