"""Wanda masks on one GPU: the row kernel, whole masks, and tensor operations, against one read.

The kernel alone is timed on the device; whole masks end when the packed bits are in the host's
memory.
"""

from collections.abc import Callable
from statistics import median

import torch
from rich.console import Console

from benchmarks.synthetic import SHAPES, layer
from benchmarks.timing import report
from fedprune.config.pattern import Pattern
from fedprune.pruning.select import prune_lowest, runs_triton
from fedprune.pruning.spec import MaskSpec
from fedprune.wire.masks import BitMask

ROUNDS = 20
SPECS = {
    "row": MaskSpec(0.5, Pattern(), "row"),
    "layer": MaskSpec(0.5, Pattern(), "layer"),
    "2:4": MaskSpec(0.5, Pattern(2, 4), "row"),
}


def milliseconds(case: Callable[[], object]) -> float:
    """Return the median time of a case between two events of the device; the first compiles."""
    case()
    times = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        case()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return median(times)


def compare(shape: tuple[int, int], dtype: torch.dtype, name: str) -> dict[str, str | float]:
    """Return one row of the table, after checking that both masks are the same."""
    from fedprune.pruning.triton_masks import start_rows, wanda_mask

    weight, norms = (values.cuda() for values in layer(shape))
    weight, spec = weight.to(dtype), SPECS[name]

    def by_tensors() -> BitMask:
        scores = weight.to(torch.float32).abs() * norms
        return BitMask.from_bool(prune_lowest(scores, spec).cpu().numpy())

    if wanda_mask(weight, norms, spec) != by_tensors():
        raise RuntimeError(f"The masks of {shape} by {name} differ.")
    read = milliseconds(lambda: weight.view(torch.int16).amax())
    kernel = (
        milliseconds(lambda: start_rows(weight, norms, shape[1] // 2)) if name == "row" else None
    )
    return {
        "linear": f"{shape[0]}x{shape[1]}",
        "weights": str(dtype).removeprefix("torch."),
        "group": name,
        "one read, ms": read,
        "kernel, ms": kernel or "",
        "times one read": kernel / read if kernel else "",
        "whole mask, ms": milliseconds(lambda: wanda_mask(weight, norms, spec)),
        "tensor operations, ms": milliseconds(by_tensors),
    }


def main() -> None:
    if not torch.cuda.is_available() or not runs_triton(torch.empty(0, device="cuda")):
        Console().print("No GPU, or no Triton for it: masks on the GPU are not measured.")
        return
    rows = [
        compare(shape, dtype, name)
        for shape in SHAPES
        for dtype in (torch.bfloat16, torch.float32)
        for name in SPECS
    ]
    report("gpu", "Wanda masks at 50 % on one GPU", rows)


if __name__ == "__main__":
    main()
