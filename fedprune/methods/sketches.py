"""Sketches of second moments: fewer bytes than a mask, and still most of what a solver needs.

A sketch is a factor V of few columns and the exact diagonal. It stands for V V^T with its diagonal
replaced by the exact one, which is V V^T plus a diagonal matrix of what V leaves out. That is never
negative: a row of V that says more than the diagonal does is shortened, so that rounding, or a
client that lies, cannot make the rebuilt matrix indefinite.

Two kinds. `eigen`: the leading eigenvectors times the roots of their eigenvalues, the best V of its
size; it belongs to one client, so the server adds the rebuilt matrices. `nystrom`: the product with
a public random matrix, which is linear, so that sketches can be added before anything is rebuilt
(https://arxiv.org/abs/1706.05736).
"""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from math import ceil, floor
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedprune.errors import ConfigError
from fedprune.wire.moments import Sketch

SketchKind = Literal["eigen", "nystrom"]

_DENSE_WIDTH = 512  # up to here all eigenvectors are found sooner than some of them
_EXTRA = 16  # columns iterated beyond those asked for
_STEPS = 6  # of subspace iteration
_NOISE = 2.0**-12  # eigenvalues below this share of the largest are rounding of float16


class InputShape(NamedTuple):
    """What both sides know of one linear input without looking at data."""

    width: int
    weights: int  # prunable weights of all linears that read the input
    tokens: int  # calibration tokens: no more eigenvalues than that are above zero

    @property
    def price(self) -> int:
        """The bits of one more column."""
        return sketch_bits(self.width, 1) - sketch_bits(self.width, 0)


def eigen_sketch(moments: Tensor, rank: int) -> Sketch:
    """Return the leading eigenvectors, each times the root of its eigenvalue, and the diagonal.

    Wide matrices are iterated from a fixed random start, so that the same moments give the same
    sketch. `moments`: G, float32, shape (d, d). `rank`: columns; those beyond G's rank are zero.
    """
    width = len(moments)
    if width <= _DENSE_WIDTH or 4 * (rank + _EXTRA) >= width:
        values, vectors = torch.linalg.eigh(moments.double())
    else:
        values, vectors = _leading(moments, rank + _EXTRA)
    kept = slice(len(values) - rank, None)
    factor = vectors[:, kept] * values[kept].clamp_min(0).sqrt()
    return _sketch(factor.flip(1), moments, "eigen")


def nystrom_sketch(moments: Tensor, rank: int, seed: int) -> Sketch:
    """Return G times the public matrix of a seed, and the diagonal.

    Sketches of one seed add up: their vectors and diagonals are those of the sum of the moments.
    """
    product = moments @ _public_matrix(len(moments), rank, seed).to(moments)
    return _sketch(product, moments, "nystrom")


def rebuild(sketch: Sketch, seed: int = 0) -> Tensor:
    """Return the moments that a sketch, or a sum of Nystrom sketches of a seed, stands for.

    Positive semidefinite, float32 on the CPU, shape (d, d), with the sketch's diagonal.
    """
    return rebuild_and_rest(sketch, seed)[0]


def rebuild_and_rest(sketch: Sketch, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return what :func:`rebuild` does, and what the columns leave of the diagonal.

    The rest is the diagonal less that of the columns' product, float32, shape (d,), never negative.
    """
    factor = torch.from_numpy(sketch.vectors).double()
    diagonal = torch.from_numpy(sketch.diagonal).double()
    if sketch.kind == "nystrom":
        factor = _nystrom_factor(factor, seed)
    squares = factor.square().sum(1)
    excess = torch.where(squares > diagonal, diagonal / squares, 1.0)
    factor = (factor * excess.sqrt()[:, None]).float()
    moments = factor @ factor.T
    moments.diagonal().copy_(diagonal)
    rest = (diagonal - factor.double().square().sum(1)).clamp_min(0.0).float()
    return moments, rest


def sketch_bits(width: int, rank: int) -> int:
    """Return the bits of a sketch on the wire, of either kind.

    A column is float16 with one float32 scale, the diagonal float32.
    """
    return rank * (16 * width + 32) + 32 * width


def ranks_for_budget(inputs: Sequence[InputShape], bits_per_weight: float) -> list[int]:
    """Return a rank for each input of a block, so that its sketches fit a budget.

    What r eigenvectors leave out of G is taken to fall like -log r, and to hurt in proportion to
    the weights that read the input. The next column then goes where weights / (r + 1) per bit is
    largest, until no further one fits: r is about proportional to the number of outputs that the
    input serves, so that several linears of one input, and linears that widen, get more. Ranks
    follow from public shapes and the number of tokens only: clients and server find the same.

    `inputs`: the inputs of one block, in the order of its linears. With Nystrom sketches, which
    must be alike, ``tokens`` is that of all clients together. `bits_per_weight`:
    `strategy.bits_per_weight`: the budget is that many bits for each weight of the block. Returns
    rank of each input, at most its tokens and half its width, where the triangle of G itself would
    be no longer. Raises ConfigError if the budget does not pay for the diagonals.
    """
    weights = sum(each.weights for each in inputs)
    left = floor(bits_per_weight * weights) - sum(sketch_bits(each.width, 0) for each in inputs)
    if left < 0:
        least = ceil(1e4 * sum(sketch_bits(each.width, 0) for each in inputs) / weights) / 1e4
        raise ConfigError(
            f"`strategy.bits_per_weight` must be at least {least} to pay for the diagonals alone, "
            f"got {bits_per_weight:g}. Raise it, or choose a strategy that sends column sums alone."
        )
    ranks = [0] * len(inputs)
    queue = [_bid(each, 0, place) for place, each in enumerate(inputs)]
    heapify(queue)
    while queue:
        _, place = heappop(queue)
        each = inputs[place]
        if each.price > left or ranks[place] >= min(each.tokens, each.width // 2):
            continue
        left -= each.price
        ranks[place] += 1
        heappush(queue, _bid(each, ranks[place], place))
    return ranks


def _bid(shape: InputShape, rank: int, place: int) -> tuple[float, int]:
    """Return what orders an input's wish for one more column, the strongest first."""
    return -shape.weights / (rank + 1) / shape.price, place


def _sketch(factor: Tensor, moments: Tensor, kind: SketchKind) -> Sketch:
    vectors = factor.float().cpu().contiguous().numpy()
    return Sketch(vectors, moments.diagonal().float().cpu().contiguous().numpy(), kind)


def _public_matrix(width: int, rank: int, seed: int) -> Tensor:
    """Return orthonormal columns in a random direction, float64, shape (width, rank)."""
    normal = np.random.default_rng(seed).standard_normal((width, rank))
    basis: Tensor = torch.linalg.qr(torch.from_numpy(normal))[0]
    return basis


def _leading(moments: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues, ascending, and their vectors by subspace iteration."""
    basis = _public_matrix(len(moments), rank, 0).to(moments)
    for _ in range(_STEPS):
        basis, _ = torch.linalg.qr(moments @ basis)
    values, turn = torch.linalg.eigh(basis.T @ (moments @ basis))
    return values, basis @ turn


def _nystrom_factor(product: Tensor, seed: int) -> Tensor:
    """Return V with V V^T = Y pinv(Omega^T Y) Y^T, the Nystrom approximation from Y = G Omega."""
    if not product.shape[1]:
        return product
    core = _public_matrix(len(product), product.shape[1], seed).T @ product
    values, vectors = torch.linalg.eigh((core + core.T) / 2)
    sound = values > _NOISE * values[-1]
    factor: Tensor = (product @ vectors[:, sound]) / values[sound].sqrt()
    return factor
