"""The final model to the clients, and what each of them measures of it on its own texts.

The changes of all blocks, one after the other, are cut into parcels. All but the last are
deliveries named :data:`FINAL`; the last comes with the request, which lists the blocks' sizes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedprune.errors import ReplyRefusedError
from fedprune.evaluation.own_texts import OwnTextResult
from fedprune.records.fields import figure
from fedprune.records.parcels import read_sizes
from fedprune.records.requests import read_bundle, request, requested

FINAL = "final"
"""Name of the deliveries."""


@dataclass(frozen=True)
class FinalOrder:
    """A request to measure the final model.

    Attributes
    ----------
    sizes : Mapping[int, int]
        Block -> bytes of what became of it, in the order of the parcels; others stay dense.
    start : int
        How many bytes came in parcels before.
    parcel : bytes
        The last one, which comes with the request; empty if every block stays dense.
    """

    sizes: Mapping[int, int]
    start: int
    parcel: bytes


def final_record(config_yaml: str, order: FinalOrder) -> RecordDict:
    """Return the content of a request to measure the final model."""
    records = request(config_yaml, {"parcel": order.parcel}, start=order.start)
    listed = {"blocks": list(order.sizes), "sizes": list(order.sizes.values())}
    records["parcels"] = ConfigRecord(listed)  # type: ignore[arg-type]
    return records


def read_final(message: Message) -> FinalOrder:
    """Read a request to measure the final model.

    Raises
    ------
    ReplyRefusedError
        If it is malformed.
    """
    sizes, bundle = read_sizes(message), read_bundle(message)
    start = int(requested(message, "start", int))
    if sizes is None or set(bundle) != {"parcel"} or start < 0:
        raise ReplyRefusedError(
            "a request to measure the final model brings the array 'parcel', its start and the "
            "record 'parcels'."
        )
    return FinalOrder(sizes, start, bundle["parcel"])


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
