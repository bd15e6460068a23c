"""What logs, cards and pages say in the same words: of methods, of privacy, of models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MUCH_NOISE = 0.1
"""Of a sum: with more, part of the result is public text's."""


@dataclass(frozen=True)
class Words:
    """A method in words for people."""

    label: str
    does: str  # what clients send and the server makes of it, in a clause
    sends: str  # what a client sends of its texts; completes "each client sends ..."
    tells: str  # what can be read from that, in whole sentences


def guarantee_sentences(promise: Mapping[str, Any]) -> str:
    """Return in words what `strategy.privacy` of `results.json` says of each sample."""
    by = (
        "Noise that every client adds to its own sums"
        if promise["shares"] == 1
        else f"Noise that {promise['shares']} clients add together, of which one sees nothing"
    )
    return (
        f"{by} guarantees ({promise['epsilon']:g}, {promise['delta']:g})-differential privacy to "
        f"each calibration sample over all that is sent of it in the run, whether it is there or "
        f"not; that another is in its place, epsilon {promise['replaced_epsilon']:.3g}. Numbers of "
        "samples and tokens are not covered."
    )


def noise_sentences(promise: Mapping[str, Any]) -> str:
    """Return in words how much the noise leaves of the samples."""
    told = (
        f"The noise is {promise['relative_noise']:.0%} of a sum over "
        f"{promise['samples']:,} samples of {promise['clients']} clients"
    )
    if promise["relative_noise"] <= MUCH_NOISE:
        return f"{told}."
    return (
        f"{told}; for a tenth {promise['samples_for_a_tenth']:,} would do. As far as the noise "
        "hides the clients' texts the result follows public text. Raise "
        "`pruner.num_calibration_samples` or `privacy.epsilon`, or let more clients take part."
    )


def weight_sentences(figures: Mapping[str, Any], most: int = 8) -> str:
    """Return in words what `strategy.worst` of `results.json` says of clients' weights."""
    blocks, shares = figures["blocks"], figures["shares"]
    with_weights = sum(block["error"] for block in blocks) / len(blocks)
    without = sum(block["error_unweighed"] for block in blocks) / len(blocks)
    ranked = sorted(shares, key=lambda name: (-shares[name], name))
    shown = ", ".join(f"{name} {shares[name]:.1%}" for name in ranked[:most])
    rest = f", {len(ranked) - most} more" if len(ranked) > most else ""
    return (
        "Clients' sums were weighed so that the one which loses most of a matrix's outputs loses "
        f"as little as can be: {with_weights:.3%} on average over the blocks, {without:.3%} where "
        f"every token counts the same. Shares in the sums: {shown}{rest}."
    )


def secure_sentences(figures: Mapping[str, Any]) -> str:
    """Return what secure sums kept from the server, and against whom.

    `figures`: `strategy.secure` of the results.
    """
    trusted = "Sites trusted each other's keys by one signed roster."
    if not figures["authenticated"]:
        trusted = (
            "The sites had no roster in common: that holds against a server that follows the "
            "protocol and is curious, not against one that makes up sites."
        )
    return (
        "What is summed was sent under masks that cancel: the server learned sums over at least "
        f"{figures['min_cohort']} of {figures['clients']} sites, each opened by "
        f"{figures['threshold']} of them, and no single answer. {trusted}"
    )


def left_as_stored(results: Mapping[str, Any]) -> str:
    """Return the parts that were left alone, with their sizes, as text; "" if there are none."""
    parts = results["model"].get("unread") or ()
    return ", ".join(f"{one['name']} ({one['kind']}, {one['parameters']:,})" for one in parts)


def left_dense(coverage: Mapping[str, Any]) -> list[str]:
    """Return the matrices in the blocks that stayed dense, each with the reason if it is known."""
    why = coverage.get("why", {})
    return [f"{name} ({why[name]})" if name in why else name for name in coverage["dense"]]


_CAUSAL = "AutoModelForCausalLM"


def loading_code(results: Mapping[str, Any], folder: str) -> str:
    """Return Python that loads a run's model with what turns its inputs to numbers.

    `results`: the content of `results.json`. `folder`: the folder, or what a reader replaces by it.
    """
    auto = results["model"].get("loads_with", _CAUSAL)
    sees = auto != _CAUSAL
    what, kind = ("processor", "AutoProcessor") if sees else ("tokenizer", "AutoTokenizer")
    return (
        f"from transformers import {auto}, {kind}\n\n"
        f"folder = {folder!r}\n"
        f"model = {auto}.from_pretrained(folder)\n"
        f"{what} = {kind}.from_pretrained(folder)"
    )
