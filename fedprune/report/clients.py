"""What each client gave and what it would have had alone, gathered from all over the results."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedprune.results.ledger import APART
from fedprune.results.perplexity import headline

_NAME = re.compile(r"'(?P<site>.*)' \((?P<partition>partition \d+)\)", re.DOTALL)


@dataclass(frozen=True)
class Client:
    """One client."""

    name: str
    samples: int
    tokens: int
    blocks: int | None  # blocks it pruned, over all rounds; None where each pruned all
    bytes_up: int  # what it sent, its own evaluation and the model's delivery apart
    seconds: float  # what it says it worked
    agreement: float | None  # share of weights on which its mask is as the global one
    perplexity: float | None  # of its own pruned model
    left: int | None  # the round in which it was left out, if it was


def clients(results: Mapping[str, Any]) -> list[Client]:
    """Return the clients that took part, in the order of their partitions."""
    sent: dict[str, int] = {}
    worked: dict[str, float] = {}
    entries = results["ledger"]["entries"]
    for entry in entries:
        name = entry["client"]
        worked[name] = worked.get(name, 0.0) + entry["client_seconds"]
        if entry["phase"] not in APART:
            sent[name] = sent.get(name, 0) + entry["bytes_up"]
    left = {entry["client"]: entry["round"] for entry in entries if entry["refused"]}
    agreement = client_agreement(results)
    alone = (headline(results["perplexity"])[1].get("local_only") or {}).get("clients", {})
    blocks = _blocks(results)
    return [
        Client(
            name=client["name"],
            samples=client["samples"],
            tokens=client["tokens"],
            blocks=blocks.get(client["name"]),
            bytes_up=sent.get(client["name"], 0),
            seconds=worked.get(client["name"], 0.0),
            agreement=agreement.get(client["name"]),
            perplexity=alone.get(client["name"]),
            left=left.get(client["name"]),
        )
        for client in results["clients"]
    ]


def split_name(name: str) -> tuple[str, str]:
    """Return a client's site and partition; its partition alone where it has no site."""
    parts = _NAME.fullmatch(name)
    return (parts["site"], parts["partition"]) if parts else (name, "")


def client_agreement(results: Mapping[str, Any]) -> Mapping[str, float]:
    """Return client -> agreement with the result; empty where it was not measured."""
    clients = (results["agreement"] or {}).get("clients") or {}
    found: Mapping[str, float] = clients.get("result", {})
    return found


def _blocks(results: Mapping[str, Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for drawn in results["strategy"].get("layer_sampling", []):
        for name, blocks in drawn["clients"].items():
            counts[name] = counts.get(name, 0) + len(blocks)
    return counts
