"""What a reader should know before trusting the figures, worst first."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from fedprune.errors import listing
from fedprune.report.clients import client_agreement
from fedprune.report.linears import reporters
from fedprune.results import text
from fedprune.results.perplexity import headline
from fedprune.results.words import (
    MUCH_NOISE,
    guarantee_sentences,
    left_as_stored,
    left_dense,
    noise_sentences,
    weight_sentences,
)

Level = Literal["problem", "warning", "hint"]

_LEVELS: tuple[Level, ...] = ("problem", "warning", "hint")
_MOST_REASONS = 8
_POOR = 0.5  # of the agreement beyond chance
_FAR = 2.0  # times the median disagreement
_MANY_TIED = 0.05  # of all weights, such that ties alone decided
_STRANGE = 0.01  # of a linear's weights that no Wanda mask would have so
_MUCH_DENSE = 0.1  # of the blocks' matrices
_OFF = 0.005  # from the target


@dataclass(frozen=True)
class Note:
    """One thing to know: how bad it is, what it is, and what it means or what to do."""

    level: Level
    title: str
    detail: str


def notes(results: Mapping[str, Any]) -> list[Note]:
    """Return what is worth a warning in `results.json`; an empty list is good news."""
    checks = (
        *(_refused, _uncovered, _quality, _zeros, _dense, _experts),
        *(_poor, _outliers, _violations, _tied, _unread, _privacy, _weighed),
    )
    found = [note for check in checks for note in check(results)]
    return sorted(found, key=lambda note: _LEVELS.index(note.level))


def _unread(results: Mapping[str, Any]) -> Iterator[Note]:
    left = left_as_stored(results)
    if left:
        yield Note(
            "hint",
            "Only the text decoder was pruned",
            f"Its blocks are `{results['model']['blocks']}`. Left as their files hold them, with "
            f"so many weights: {left}. Sparsity is the share of zeros among what "
            "could be pruned, sizes are of the whole checkpoint.",
        )


def _privacy(results: Mapping[str, Any]) -> Iterator[Note]:
    promise = results["strategy"].get("privacy")
    if promise:
        yield Note(
            "warning" if promise["relative_noise"] > MUCH_NOISE else "hint",
            f"Every sample has a guarantee: epsilon {promise['epsilon']:g}",
            f"{guarantee_sentences(promise)} {noise_sentences(promise)}",
        )


def _refused(results: Mapping[str, Any]) -> Iterator[Note]:
    reasons: dict[tuple[bool, str], list[str]] = {}
    for entry in results["ledger"]["entries"]:
        if entry["refused"]:
            early = entry["phase"] in ("handshake", "model")
            reasons.setdefault((early, entry["refused"]), []).append(entry["client"])
    for (early, reason), names in list(reasons.items())[:_MOST_REASONS]:
        who = text.count(len(set(names)), "client")
        when = "refused in the handshake" if early else "left out on the way"
        yield Note("problem", f"{who} {when}", f"{listing(names)}: {reason}")
    if len(reasons) > _MOST_REASONS:
        more = text.count(len(reasons) - _MOST_REASONS, "more reason")
        yield Note("problem", f"{more} for refusals", "`ledger.entries` of `results.json` has all.")


def _uncovered(results: Mapping[str, Any]) -> Iterator[Note]:
    missing = [block for block, clients in reporters(results["sparsity"]).items() if not clients]
    if missing:
        title = f"{text.count(len(missing), 'block')} without a reply"
        yield Note(
            "problem",
            title,
            f"Nobody's reply about block {text.spans(missing)} was counted in the last round; "
            "what was there before stayed. Raise `strategy.coverage` or `strategy.layer_fraction`.",
        )


def _quality(results: Mapping[str, Any]) -> Iterator[Note]:
    name, values = headline(results["perplexity"])
    if values and values.get("dense") is not None and values.get("pruned") is None:
        yield Note(
            "problem",
            "The pruned model has no finite perplexity",
            f"It no longer predicts {name}. Lower `sparsity` or choose another `pruner`.",
        )
    alone = (values.get("local_only") or {}).get("mean")
    pruned = values.get("pruned")
    if alone is not None and pruned is not None and pruned > alone:
        yield Note(
            "warning",
            "The federation did not pay",
            f"One client alone reaches {text.figure(alone)} on average, the federated model "
            f"{text.figure(pruned)} ({name}).",
        )


def _zeros(results: Mapping[str, Any]) -> Iterator[Note]:
    sparsity = results["sparsity"]
    if not results.get("smaller") and abs(sparsity["overall"] - sparsity["target"]) > _OFF:
        yield Note(
            "warning",
            "Sparsity is off its target",
            f"{text.percent(sparsity['overall'], 2)} of the weights are zero, asked for were "
            f"{text.percent(sparsity['target'], 2)}.",
        )


def _dense(results: Mapping[str, Any]) -> Iterator[Note]:
    covered = results.get("coverage") or {"dense": {}}
    if covered["dense"]:
        yield Note(
            "warning" if covered.get("unasked", covered["share"]) > _MUCH_DENSE else "hint",
            f"{text.percent(covered['share'], 2)} of the matrices in the blocks stay dense",
            f"They are not considered: {listing(left_dense(covered))}. "
            "The sparsity is that of all others.",
        )


def _experts(results: Mapping[str, Any]) -> Iterator[Note]:
    found = results.get("experts")
    if found and (found["unseen"] or found["few"]):
        few, every = found["few"], found["experts"]
        title = f"{few} of {every} experts saw fewer than {found['few_tokens']} tokens"
        if few is None:
            title = f"{found['unseen']} of {every} experts saw no token"
        yield Note(
            "warning" if found["unseen"] else "hint",
            title,
            f"Of all clients together. {text.count(found['unseen'], 'expert')} saw none: their "
            "weights went by magnitude. Raise `pruner.num_calibration_samples`, or take texts of "
            "more kinds.",
        )


def _poor(results: Mapping[str, Any]) -> Iterator[Note]:
    agreement = results["agreement"]
    if not agreement:
        return
    chance = by_chance(results["sparsity"]["overall"])
    if agreement["pairwise"] - chance < _POOR * (1 - chance):
        yield Note(
            "warning",
            "Clients agree poorly",
            f"Two clients agree on {text.percent(agreement['pairwise'])} of the weights; masks "
            f"drawn by lot would on {text.percent(chance)}. Their texts differ, or are too few: "
            "raise `pruner.num_calibration_samples`.",
        )


def by_chance(sparsity: float) -> float:
    """Return the share of weights on which two random masks of this sparsity agree."""
    return sparsity**2 + (1 - sparsity) ** 2


def _outliers(results: Mapping[str, Any]) -> Iterator[Note]:
    shares = client_agreement(results)
    if len(shares) < 3:
        return
    usual = median(shares.values())
    far = [name for name, share in shares.items() if 1 - share > max(_FAR * (1 - usual), 0.01)]
    if far:
        least = min(shares.values())
        yield Note(
            "warning",
            f"{text.count(len(far), 'client')} far from the others",
            f"{listing(far)}: on {text.percent(1 - least)} of the weights the mask is not as "
            f"the result; the median is {text.percent(1 - usual)}. Look at their texts.",
        )


def _weighed(results: Mapping[str, Any]) -> Iterator[Note]:
    found = results["strategy"].get("worst")
    if found:
        title = "Clients weigh unequally, for the one that is served worst"
        yield Note("hint", title, weight_sentences(found))


def _violations(results: Mapping[str, Any]) -> Iterator[Note]:
    found: Mapping[str, float] = results["strategy"].get("violations", {})
    strange = [name for name, share in found.items() if share > _STRANGE]
    if strange:
        most = text.percent(max(found.values()))
        yield Note(
            "warning",
            f"{text.count(len(strange), 'client')} with masks that Wanda does not make",
            f"{listing(strange)}: up to {most} of a linear's weights. Decoding expects masks "
            "of `pruner=wanda`, made by the same sources.",
        )


def _tied(results: Mapping[str, Any]) -> Iterator[Note]:
    tied = (results["agreement"] or {}).get("tied")
    if not tied or not tied["weights"]:
        return
    weights, pruned = tied["weights"], tied["pruned"]
    share = min(pruned, weights - pruned) / results["sparsity"]["weights"]
    ties = results["method"]["ties"]
    rule = {"magnitude": "the smaller |W|", "index": "the lower index"}.get(ties, "chance")
    alike = "As many clients vote for each of them as for the last that had to go"
    if results["method"].get("majority_floor"):
        # What no majority is for always goes by |W|.
        alike += ", or no more than half of them do"
        rule += "" if ties == "magnitude" else ", and the smaller |W| without a majority,"
    yield Note(
        "warning" if share > _MANY_TIED else "hint",
        f"{text.count(weights, 'weight')} tied at the threshold",
        f"{alike}: {rule} decided (`strategy.ties={ties}`), and {pruned:,} were pruned.",
    )
