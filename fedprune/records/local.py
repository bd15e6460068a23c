"""How well a node's own pruned model predicts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Message, MetricRecord, RecordDict

from fedprune.errors import ReplyRefusedError
from fedprune.records.fields import figure

_NLL_OF = "nll-of-"
_LONGEST = 200


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
