"""Server-side strategies: who is asked for what and when, and what becomes of the replies.

One course serves all methods (:class:`FederatedPruning`). The classes below are its Flower-facing
names: each holds the exchanges of one method and refuses the configuration of another.
"""

from strategies.course import FederatedPruning


class FedPrLLM(FederatedPruning):
    """Voting on masks, one-shot or block by block, with or without scaling (arXiv 2505.13547)."""

    method_name = "fedprllm"


class FedSpaLLM(FederatedPruning):
    """l0-norm aggregation, mask expansion and layer sampling (arXiv 2410.14852)."""

    method_name = "fedspallm"


class FedStats(FederatedPruning):
    """Pruning on summed column statistics, iterative (exact) or one-shot."""

    method_name = "fedstats"


class FedHessian(FederatedPruning):
    """Reconstruction on summed second moments, iterative or one-shot."""

    method_name = "fedhessian"


class Collect(FederatedPruning):
    """Statistics of the dense model, once; models are made of them without any client."""

    method_name = "collect"


class FedExperts(FederatedPruning):
    """A smaller mixture of experts, by sums of what each expert gives (arXiv 2510.13999)."""

    method_name = "fedexperts"


class Depth(FederatedPruning):
    """Fewer blocks, by summed cosines, and a linear map that stands in for them."""

    method_name = "depth"


_NAMED = (FedPrLLM, FedSpaLLM, FedStats, FedHessian, Collect, FedExperts, Depth)


def strategy_class(method: str) -> type[FederatedPruning]:
    """Return the class that runs a method: its Flower-facing one, or the course that all share."""
    named = {kind.method_name: kind for kind in _NAMED}
    return named.get(method, FederatedPruning)
