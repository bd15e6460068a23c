"""Wanda masks of one linear on one core, against a stable sort of the score matrix.

The floor is one read of the weight; the mask and the norms are a thirtieth of it.
"""

import torch
from torch import Tensor

from benchmarks.floor import floor_of, read_pass
from benchmarks.synthetic import SHAPES, layer
from benchmarks.timing import alternate, report
from fedprune.config.pattern import Pattern
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.selection import prune_lowest
from fedprune.pruning.selection_kernels import wanda_mask
from fedprune.wire.masks import BitMask

ROUNDS = 5
SPECS = {
    "row": MaskSpec(0.5, Pattern(), "row"),
    "layer": MaskSpec(0.5, Pattern(), "layer"),
    "column": MaskSpec(0.5, Pattern(), "column"),
    "2:4": MaskSpec(0.5, Pattern(2, 4), "row"),
}


def by_sort(weight: Tensor, norms: Tensor, spec: MaskSpec) -> Tensor:
    """Prune as the published code does: all scores, a stable full sort, a scatter."""
    return prune_lowest(weight.abs() * norms, spec)


def compare(shape: tuple[int, int], name: str) -> dict[str, str | float]:
    """Return one row of the table, after checking that both masks are the same."""
    weight, norms = layer(shape)
    spec = SPECS[name]
    if wanda_mask(weight, norms, spec) != BitMask.from_bool(by_sort(weight, norms, spec).numpy()):
        raise RuntimeError(f"The masks of {shape} by {name} differ.")
    seconds = alternate(
        {
            "fused": lambda: wanda_mask(weight, norms, spec),
            "sort": lambda: by_sort(weight, norms, spec),
            "read": lambda: read_pass(weight),
        },
        ROUNDS,
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


def main() -> None:
    torch.set_num_threads(1)
    rows = [compare(shape, "row") for shape in SHAPES]
    rows += [compare(SHAPES[0], name) for name in ("layer", "column", "2:4")]
    report("masks", "Wanda masks at 50 %, float32, one core", rows)


if __name__ == "__main__":
    main()
