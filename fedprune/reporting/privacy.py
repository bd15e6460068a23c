"""What a strategy's clients send, and what can be read from it, in words for people."""

from fedprune.config import RunConfig

_SENT = {
    "fedprllm": "which weights it would prune (masks, one bit a weight)",
    "fedspallm": "which weights it would keep (masks), and the values of those",
    "fedstats": "for each column of a matrix the sum of its squared inputs, and numbers of tokens",
    "fedhessian": "second moments of the matrices' inputs or sketches of them, and numbers of "
    "tokens",
}
_MASKS = (
    "A mask is as telling as the statistics it was made from: the norms of the inputs can be "
    "computed back from it to about three digits."
)
_TOLD = {
    "fedprllm": _MASKS,
    "fedspallm": f"{_MASKS} Values that pruning changed tell more of the inputs.",
    "fedstats": "The sums are exact statistics of each client's texts.",
    "fedhessian": "Second moments tell more than sums: they are to be treated like gradients.",
}
_WORDS = (
    "From the norms of the first block's inputs, words of a small calibration set can be "
    "recovered. The model itself is a function of all clients' texts."
)
_PUBLIC = (
    "Masks by magnitude follow from the public weights alone: neither they nor the model tell "
    "anything of the texts."
)
_END = (
    "Nothing of this is hidden from the server by encryption, or blurred by noise: there is no "
    "formal guarantee."
)


def privacy_statement(config: RunConfig) -> str:
    """Return what left the sites in a run and what it can reveal, for the strategy that was run.

    Parameters
    ----------
    config : RunConfig
        The run's configuration.
    """
    surveyed = config.allocation.name == "owl"
    sent = [_SENT[config.strategy.name]]
    if surveyed:
        sent.append("before that, sums of squared inputs of the dense model")
    if config.evaluation.local_only or config.evaluation.federated:
        sent.append("perplexities that it measured")
    sent.append("its name, numbers of samples and tokens, times, memory, versions and hashes")
    masks_only = config.strategy.name in ("fedprllm", "fedspallm") and not surveyed
    if config.pruner.name == "magnitude" and masks_only:
        told = _PUBLIC
    else:
        told = f"{_TOLD[config.strategy.name]} {_WORDS}"
    left = f"Each client sent the server: {'; '.join(sent)}."
    return f"{left} No text, token, hidden state or gradient left a client. {told} {_END}"
