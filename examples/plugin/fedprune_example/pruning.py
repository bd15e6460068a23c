"""The sum of absolute inputs, and a pruner that weighs weights by it."""

from torch import Tensor

from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.pruner import column_sums
from fedprune.pruning.statistics import ColumnKind, Statistic
from fedprune.pruning.wanda import prune_products
from fedprune.wire.masks import BitMask


class AbsoluteInputs(ColumnKind):
    """Sum over tokens of |x_j|: additive over clients, and exact as all sums of columns are."""

    name = "absolute"

    def sums(self, inputs: Tensor) -> Tensor:
        """Return the sums over the tokens of one sample, float32, shape (d_in,)."""
        return inputs.detach().float().abs().reshape(-1, inputs.shape[-1]).sum(0)


class GentlePruner:
    """Wanda with mean absolute inputs: a few loud tokens count for less."""

    name = "gentle"
    needs = "absolute"
    updates = False  # survivors keep their values

    def prune(self, weight: Tensor, stats: Statistic | None, spec: MaskSpec) -> BitMask:
        """Return the mask of one linear."""
        return prune_products(weight, column_sums(self.name, weight, stats).sums, spec)
