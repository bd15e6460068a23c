"""Reconstruction of one linear on one core: SparseGPT against its plain column loop, and ALPS.

Plain: the algorithm as it is published, a tensor operation or two for every column. The factor is
timed apart: it is shared by the linears that read the same input. SparseGPT's floor is what its
corrections of later columns take at the rate of a matrix product, d_out * d_in**2 operations.
"""

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.measure import SHAPES, alternate, layer, report
from fedprune.config.pattern import Pattern
from fedprune.pruning.alps import alps
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.hessian import inverse_factor, reconstruction_error
from fedprune.pruning.selection import prune_lowest
from fedprune.pruning.sparsegpt import sparsegpt

DAMPING = 0.01
BLOCK = 128
SPECS = {
    "layer": MaskSpec(0.5, Pattern(), "layer"),
    "2:4": MaskSpec(0.5, Pattern(2, 4), "layer"),
}


def moments_of(norms: Tensor) -> Tensor:
    """Return second moments of inputs of these norms that share some common directions."""
    size, rng = len(norms), torch.Generator().manual_seed(0)
    common = torch.randn(size // 32, size, generator=rng)
    inputs = torch.randn(2 * size, len(common), generator=rng) @ common / len(common) ** 0.5
    inputs += torch.randn(2 * size, size, generator=rng)
    inputs *= norms
    return inputs.T @ inputs


def plain_factor(moments: Tensor) -> Tensor:
    """Invert, then factorise the inverse."""
    matrix = moments.clone()
    matrix.diagonal().add_(DAMPING * moments.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    return torch.linalg.cholesky(inverse, upper=True)


def plain_loop(weight: Tensor, upper: Tensor, spec: MaskSpec) -> Tensor:
    """Prune column after column; blocks of columns change the later ones at once."""
    weight = weight.clone()
    diagonal = upper.diagonal()
    for start in range(0, weight.shape[1], BLOCK):
        stop = start + BLOCK
        block, errors = weight[:, start:stop].clone(), torch.zeros(len(weight), BLOCK)
        own = upper[start:stop, start:stop]
        if not spec.pattern.structured:
            score = block.square() / diagonal[start:stop].square()
            threshold = torch.sort(score.flatten())[0][int(score.numel() * spec.sparsity)]
            mask = score >= threshold
        else:
            mask = torch.ones_like(block, dtype=torch.bool)
        for j in range(BLOCK):
            if spec.pattern.m is not None and j % spec.pattern.m == 0:
                end = j + spec.pattern.m
                score = block[:, j:end].square() / diagonal[start + j : start + end].square()
                mask[:, j:end] = prune_lowest(score, spec)
            kept = block[:, j] * mask[:, j]
            errors[:, j] = (block[:, j] - kept) / own[j, j]
            block[:, j:] -= errors[:, j, None] * own[j, j:]
            block[:, j] = kept
        weight[:, start:stop] = block
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    return weight


def factors(moments: Tensor, rounds: int) -> dict[str, str | float]:
    """Return the row of the factor, after checking that both are the same."""
    found, plain = inverse_factor(moments, DAMPING).upper, plain_factor(moments)
    if float((found - plain).abs().max()) > 1e-4 * float(plain.max()):
        raise RuntimeError("The factors differ.")
    seconds = alternate(
        {
            "ours": lambda: inverse_factor(moments, DAMPING),
            "plain": lambda: plain_factor(moments),
        },
        rounds,
    )
    return row(moments.shape, "factor of the inverse Hessian", seconds)


def compare(weight: Tensor, moments: Tensor, name: str, rounds: int) -> dict[str, str | float]:
    """Return the row of SparseGPT, after checking that both reconstruct equally well."""
    spec, factor = SPECS[name], inverse_factor(moments, DAMPING)
    found = reconstruction_error(weight, sparsegpt(weight, factor, spec, BLOCK)[0], moments)
    plain = reconstruction_error(weight, plain_loop(weight, factor.upper, spec), moments)
    if abs(found / plain - 1) > 1e-3:
        raise RuntimeError(f"The reconstructions by {name} differ: {found} and {plain}.")
    seconds = alternate(
        {
            "ours": lambda: sparsegpt(weight, factor, spec, BLOCK),
            "plain": lambda: plain_loop(weight, factor.upper, spec),
            "product": lambda: weight @ factor.upper[:, :BLOCK],
        },
        rounds,
    )
    floor = seconds["product"] * weight.shape[1] / (2 * BLOCK)
    return row(weight.shape, f"SparseGPT, {name}", seconds, found, floor)


def by_alps(weight: Tensor, moments: Tensor, name: str) -> dict[str, str | float]:
    """Return the row of ALPS, timed once: it takes a minute."""
    alps(weight[:64, :64], moments[:64, :64], SPECS[name], DAMPING)  # compiles
    start = time.thread_time()
    found, _ = alps(weight, moments, SPECS[name], DAMPING)
    seconds = {"ours": time.thread_time() - start}
    return row(weight.shape, f"ALPS, {name}", seconds, reconstruction_error(weight, found, moments))


def row(
    shape: Sequence[int],
    step: str,
    seconds: Mapping[str, float],
    error: float | None = None,
    floor: float | None = None,
) -> dict[str, str | float]:
    """Return one row of the table."""
    plain = seconds.get("plain")
    return {
        "linear": f"{shape[0]}x{shape[1]}",
        "step": step,
        "column loop, s": plain or "",
        "ours, s": seconds["ours"],
        "times faster": plain / seconds["ours"] if plain else "",
        "floor, s": floor or "",
        "times the floor": seconds["ours"] / floor if floor else "",
        "error, %": "" if error is None else 100 * error,
    }


def main(shape: tuple[int, int] = SHAPES[0], rounds: int = 2) -> None:
    torch.set_num_threads(1)
    weight, norms = layer(shape)
    moments = moments_of(norms)
    rows = [factors(moments, rounds)]
    rows += [compare(weight, moments, name, rounds) for name in SPECS]
    rows += [by_alps(weight, moments, "layer")]
    report("sparsegpt", "Reconstruction at 50 %, float32, one core", rows)


if __name__ == "__main__":
    main()
