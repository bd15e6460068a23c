"""Relative importance and activations: a weight's share of its row and of its column.

RIA (Zhang et al., ICLR 2024) with the published exponent a = 0.5. Sums and roots are taken in
float64 and rounded once, everything else is one float32 operation after the other, so that scores
do not depend on how a machine splits up the work.
"""

import torch
from torch import Tensor

from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.pruner import input_norms
from fedprune.pruning.selection_kernels import prune_products
from fedprune.pruning.statistics import Statistic
from fedprune.wire.masks import BitMask

_BLOCK = 1 << 20  # weights of a step: float64 copies stay small


def ria_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """Return ``(|W_ij| / row sum_i + |W_ij| / column sum_j) * sqrt(||X_j||_2)``.

    The terms are divided, added and multiplied in this order. A row or column of zeros gives
    scores of zero.

    `weight`: shape (d_out, d_in), any floating dtype. `norms`: norms of the inputs, float32, shape
    (d_in,), on the weight's device. Returns float32, shape (d_out, d_in); NaN or infinite where
    weights or norms are.
    """
    weight = weight.detach()
    rows = torch.split(weight, max(_BLOCK // weight.shape[1], 1))
    row_sums, column_sums = _sums(rows, weight.shape[1])
    # torch's float32 root is not correctly rounded on every machine; this one is.
    factors = norms.to(torch.float64).sqrt_().to(torch.float32)
    scores = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    first = 0
    for block in rows:
        stop = first + len(block)
        size = block.to(torch.float32).abs()
        share = size / row_sums[first:stop, None]
        torch.mul(share.add_(size.div_(column_sums)), factors, out=scores[first:stop])
        first = stop
    return scores


def _sums(rows: tuple[Tensor, ...], columns: int) -> tuple[Tensor, Tensor]:
    """Return the sums of |W| over rows and columns as divisors: float32, one in place of zero."""
    sums = []
    column_sums = torch.zeros(columns, dtype=torch.float64, device=rows[0].device)
    for block in rows:
        size = block.to(torch.float64).abs_()
        sums.append(size.sum(1))
        column_sums += size.sum(0)
    both = torch.cat(sums).to(torch.float32), column_sums.to(torch.float32)
    return both[0].masked_fill_(both[0] == 0, 1.0), both[1].masked_fill_(both[1] == 0, 1.0)


class RiaPruner:
    """Importance is a weight's share of its row and column, times the root of the input's norm.

    RIA (Zhang et al., "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language
    Models", ICLR 2024) with a = 0.5; see `fedprune.pruning.ria`. An N:M pattern is taken on the
    inputs as they are ordered: no channels are permuted.
    """

    name = "ria"
    needs = "columns"
    updates = False

    def prune(self, weight: Tensor, stats: Statistic | None, spec: MaskSpec) -> BitMask:
        """Return the mask of one linear (see `Pruner.prune`)."""
        scores = ria_scores(weight, input_norms(self.name, weight, stats))
        return prune_products(scores, torch.ones(scores.shape[1], device=scores.device), spec)
