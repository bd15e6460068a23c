"""Wanda masks of one linear on one core, and masks as bytes.

Making a mask stands against a stable sort of the score matrix. Its floor is one read of the weight;
the mask and the norms are a thirtieth of it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import SHAPES, alternate, floor_of, layer, read_pass, report
from fedprune.config.pattern import UNSTRUCTURED, Pattern
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.selection import prune_lowest
from fedprune.pruning.selection_kernels import prune_products
from fedprune.wire.masks import BitMask, decode_masks, encode_masks

PATTERNS = (UNSTRUCTURED, Pattern(2, 4), Pattern(4, 8), Pattern(1, 4), Pattern(6, 32))
SPECS = {
    "row": MaskSpec(0.5, Pattern(), "row"),
    "layer": MaskSpec(0.5, Pattern(), "layer"),
    "column": MaskSpec(0.5, Pattern(), "column"),
    "2:4": MaskSpec(0.5, Pattern(2, 4), "row"),
}


def by_sort(weight: Tensor, norms: Tensor, spec: MaskSpec) -> Tensor:
    """Prune as the published code does: all scores, a stable full sort, a scatter."""
    return prune_lowest(weight.abs() * norms, spec)


def compare(shape: tuple[int, int], name: str, rounds: int) -> dict[str, str | float]:
    """Return one row of the table, after checking that both masks are the same."""
    weight, norms = layer(shape)
    spec = SPECS[name]
    expected = BitMask.from_bool(by_sort(weight, norms, spec).numpy())
    if prune_products(weight, norms, spec) != expected:
        raise RuntimeError(f"The masks of {shape} by {name} differ.")
    seconds = alternate(
        {
            "fused": lambda: prune_products(weight, norms, spec),
            "sort": lambda: by_sort(weight, norms, spec),
            "read": lambda: read_pass(weight),
        },
        rounds,
    )
    return {
        "linear": f"{shape[0]}x{shape[1]}",
        "group": name,
        "stable sort, ms": seconds["sort"] * 1e3,
        "fused, ms": seconds["fused"] * 1e3,
        "fused, Gweights/s": weight.numel() / seconds["fused"] / 1e9,
        "times faster": seconds["sort"] / seconds["fused"],
        **floor_of(seconds["fused"], seconds["read"], weight.nbytes, weight.nbytes),
    }


def to_bytes_and_back(
    shape: tuple[int, int], pattern: Pattern, rounds: int
) -> dict[str, str | float]:
    """Return one row of the table, after checking the round trip."""
    n, m = (pattern.n, pattern.m) if pattern.n and pattern.m else (shape[1] // 2, shape[1])
    rng = np.random.default_rng(0)
    scores = rng.random((shape[0] * shape[1] // m, m), dtype=np.float32)
    mask = BitMask.from_bool((scores.argsort(axis=1) < n).reshape(shape))
    data = encode_masks({"up": mask})
    if decode_masks(data, {"up": shape}) != {"up": mask}:
        raise RuntimeError(f"The {pattern} mask of {shape} did not come back.")
    seconds = alternate(
        {
            "encode": lambda: encode_masks({"up": mask}),
            "decode": lambda: decode_masks(data, {"up": shape}),
        },
        rounds,
    )
    return {
        "linear": f"{shape[0]}x{shape[1]}",
        "pattern": str(pattern),
        "bits a weight": 8 * len(data) / mask.numel,
        "encode, Gweights/s": mask.numel / seconds["encode"] / 1e9,
        "decode, Gweights/s": mask.numel / seconds["decode"] / 1e9,
    }


def main(shapes: Sequence[tuple[int, int]] = SHAPES, rounds: int = 5) -> None:
    torch.set_num_threads(1)
    rows = [compare(shape, "row", rounds) for shape in shapes]
    rows += [compare(shapes[0], name, rounds) for name in ("layer", "column", "2:4")]
    report("masks", "Wanda masks at 50 %, float32, one core", rows)
    rows = [to_bytes_and_back(shapes[0], pattern, rounds) for pattern in PATTERNS]
    report("wire", "Masks to bytes and back, one core", rows)


if __name__ == "__main__":
    main()
