"""What is different between runs: settings, figures, and the masks themselves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedprune.config.keys import flatten
from fedprune.models.sidecar import read_sidecar
from fedprune.results.read import find_sidecar, read_config, read_results
from fedprune.wire.masks import BitMask

Masks = Mapping[int, Mapping[str, BitMask]]

_MODELS = ("dense", "pruned")


def compare_runs(folders: Sequence[Path]) -> dict[str, Any]:
    """Return the differences between completed runs as plain JSON values.

    Returns `configuration`: differing keys. `perplexity`: data set -> `dense`, `pruned`, and
    `ratio` of the pruned models' to the first run's. `masks`: for each run, how its masks agree
    with the first run's, or `why_not`.
    """
    results = [read_results(folder) for folder in folders]
    configs = [flatten(read_config(folder)) | {"output_dir": None} for folder in folders]
    sidecars = [find_sidecar(folder) for folder in folders]
    masks = [None if path is None else read_sidecar(path) for path in sidecars]
    return {
        "runs": [str(folder) for folder in folders],
        "configuration": _different(configs),
        "perplexity": _perplexity(results),
        "sparsity": {
            "overall": [found["sparsity"]["overall"] for found in results],
            "blocks": _different([_block_sparsity(one) for one in masks]),
        },
        "bytes_up": [found["ledger"]["bytes_up"] for found in results],
        "bytes_down": [found["ledger"]["bytes_down"] for found in results],
        "seconds": [found["seconds"]["total"] for found in results],
        "prune_seconds": [found["seconds"].get("prune") for found in results],
        "masks": [mask_agreement(masks[0], one) for one in masks],
    }


def mask_agreement(first: Masks | None, second: Masks | None) -> dict[str, Any]:
    """Return the share of weights that two sets of masks, if they are there, treat the same.

    Returns `equal`: over all weights; `kinds`: by kind of linear; `why_not` instead where they
    cannot be compared.
    """
    if first is None or second is None:
        return {"why_not": "its masks are gone"}
    one, other = _flat(first), _flat(second)
    if {key: mask.shape for key, mask in one.items()} != {k: m.shape for k, m in other.items()}:
        return {"why_not": "the models or the pruned blocks differ"}
    same: dict[str, int] = {}
    total: dict[str, int] = {}
    for (block, name), mask in one.items():
        different = int(np.bitwise_count(mask.bits ^ other[block, name].bits).sum())
        same[name] = same.get(name, 0) + mask.numel - different
        total[name] = total.get(name, 0) + mask.numel
    return {
        "equal": sum(same.values()) / sum(total.values()),
        "kinds": {name: same[name] / total[name] for name in total},
    }


def _flat(masks: Masks) -> dict[tuple[int, str], BitMask]:
    return {(block, name): mask for block, found in masks.items() for name, mask in found.items()}


def _different(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return key -> a value for each run, of the keys whose values are not all the same."""
    keys = dict.fromkeys(key for run in runs for key in run)
    found = {key: [run.get(key) for run in runs] for key in keys}
    return {
        key: values
        for key, values in found.items()
        if not all(map(_same, values, values[:1] * len(values)))
    }


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are the same: 1 is not true, and 1.0 is 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _perplexity(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for found in results for name in found["perplexity"])
    table: dict[str, Any] = {}
    for name in names:
        values = [found["perplexity"].get(name, {}) for found in results]
        figures = {model: [one.get(model) for one in values] for model in _MODELS}
        first = figures["pruned"][0]
        ratio = [one / first if one and first else None for one in figures["pruned"]]
        table[name] = {**figures, "ratio": ratio}
    return table


def _block_sparsity(masks: Masks | None) -> dict[str, float]:
    """Return block -> share of zeros."""
    found: dict[str, float] = {}
    for block, linears in (masks or {}).items():
        weights = sum(mask.numel for mask in linears.values())
        found[str(block)] = 1 - sum(mask.survivors for mask in linears.values()) / weights
    return found
