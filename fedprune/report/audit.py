"""What the page of an audit shows."""

from collections.abc import Mapping
from typing import Any

from fedprune.results.text import NONE, count

AUDIT_HEADER = [
    *("What is released", "Sent under"),
    *("Error of norms", "Words right", "Words found", "Known sample"),
]
"""The columns of :func:`audit_rows`."""


def audit_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Return what each release told, as texts.

    `found`: `fedprune.audit.Audit` as plain JSON values.
    """
    return [
        [
            one["what"],
            ", ".join(one["sent_by"]) or NONE,
            "exact" if one["norms"] is None else f"{one['norms']['error']:.2g}",
            *_words(one["words"]),
            _separation(one["membership"], one["guess"]),
        ]
        for one in found["releases"]
    ]


def audit_summary(found: Mapping[str, Any]) -> str:
    """Return what was attacked, in a sentence."""
    return (
        f"{count(found['samples'], 'sample')} of {found['seq_len']} tokens of this site, "
        f"{count(found['clients'], 'client')} in the sums, "
        f"{found['others']} other samples of the kind in the attacker's hands; masks by Wanda at "
        f"{found['sparsity']:.0%} zeros"
    )


def _words(words: Mapping[str, float] | None) -> list[str]:
    """Return precision and recall, each beside that of a guess."""
    if words is None:
        return [NONE, NONE]
    return [
        f"{words[key]:.0%} (guess {words[f'guess_{key}']:.0%})" for key in ("precision", "recall")
    ]


def _separation(found: Mapping[str, float], guess: float | None) -> str:
    told = f"{found['auc']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
    return told if guess is None else f"{told}, guess {guess:.2f}"
