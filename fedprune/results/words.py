"""What a method says of itself in reports."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """A method in words for people.

    Attributes
    ----------
    label : str
        What people call it.
    sends : str
        What a client sends of its texts; completes "each client sends ...".
    tells : str
        What can be read from that, in whole sentences.
    """

    label: str
    sends: str
    tells: str


_MASKS = (
    "A mask is as telling as the statistics it was made from: the norms of the inputs can be "
    "computed back from it to about three digits."
)
WORDS: Mapping[str, Words] = {
    "fedprllm": Words(
        "FedPrLLM",
        "which weights it would prune (masks, one bit a weight)",
        _MASKS,
    ),
    "fedspallm": Words(
        "FedSpaLLM",
        "which weights it would keep (masks), and the values of those",
        f"{_MASKS} Values that pruning changed tell more of the inputs.",
    ),
    "fedstats": Words(
        "FedStats",
        "for each column of a matrix the sum of its squared inputs, and numbers of tokens",
        "The sums are exact statistics of each client's texts.",
    ),
    "fedhessian": Words(
        "FedHessian",
        "second moments of the matrices' inputs or sketches of them, and numbers of tokens",
        "Second moments tell more than sums: they are to be treated like gradients.",
    ),
}
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "fedprllm": ("group", "scaling", "ties", "majority_floor", "client_weights", "decode"),
    "fedspallm": (
        *("average", "expansion", "rounding", "rounds", "ramp", "ties", "client_weights"),
        *("layer_fraction", "layer_resources", "layer_draw", "coverage", "layer_weights"),
    ),
    "fedstats": ("pooling", "downlink"),
    "fedhessian": ("pooling", "moments", "bits_per_weight", "max_width"),
}
