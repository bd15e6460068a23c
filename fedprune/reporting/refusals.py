"""The kinds of refusals, few and fixed: what counters are kept by, whatever a node says."""

import re

from fedprune.reporting.ledger import Entry

KINDS = ("lost", "timeout", "crashed", "failed", "handshake", "invalid", "stray")
GONE = frozenset({"lost", "timeout", "crashed"})
"""Kinds of a client that is not there, rather than one that is wrong."""

_FLOWER_ERROR = re.compile(r"\(Flower error (\d+)\)")
_STRAYS = re.compile(r"(\d+) messages that answer no request")
_BY_CODE = {"3": "lost", "4": "lost", "5": "lost", "8": "crashed"}
_STARTS = {
    "no reply within": "timeout",
    "it left before": "lost",
    "it has not come back": "lost",
    "it has started anew": "lost",
    "it failed:": "failed",
}


def refusal_kind(entry: Entry) -> str:
    """Return why a reply was not used, one of :data:`KINDS`.

    "lost": its node is not connected; "timeout": no answer in `strategy.timeout`; "crashed": the
    process that worked died; "failed": the node says that it cannot; "handshake": it may not take
    part; "invalid": what it sent is wrong; "stray": messages that nobody asked for.
    """
    if strays(entry):
        return "stray"
    codes = _FLOWER_ERROR.findall(entry.refused)  # the last is ours, others a node may have said
    if codes and codes[-1] in _BY_CODE:
        return _BY_CODE[codes[-1]]
    for start, kind in _STARTS.items():
        if entry.refused.startswith(start):
            return kind
    return "handshake" if entry.phase in ("handshake", "model") else "invalid"


def strays(entry: Entry) -> int:
    """Return how many messages that answer no request an entry tells of; 0 for another entry."""
    found = _STRAYS.match(entry.refused)
    return int(found[1]) if found else 0
