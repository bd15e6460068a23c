"""The linear map that stands in for blocks that go, from two sums over tokens.

ReplaceMe (Shopkhoev et al., arXiv 2505.02819, section 3): with m the output of the last matrix of
the block before the cut, Y what else is in the hidden states there and L the output of the last
block that goes, T minimises ``sum |m T + Y - L|^2`` (equation 5). Here the same is written as what
it adds to one, since Y + m is what the block before returned, h:

    T = I + (A + lambda I)^-1 B,   A = sum m^T m,   B = sum m^T (L - h).

T is put into the matrix, W' = T^T W and b' = T^T b: exact, and the architecture stays as it is.
"""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from fedprune.errors import ModelError, WireError
from fedprune.models.capture import hidden_of
from fedprune.models.walk import HiddenStates, memory_limit
from fedprune.pruning.block_kinds import BlockKind, BlockSite
from fedprune.pruning.hessian import cholesky, damped
from fedprune.pruning.statistics import Arrays
from fedprune.wire.arrays import ArraySpec
from fedprune.wire.moments import square


def rows_of(blocks: Sequence[int]) -> dict[int, int]:
    """Return last -> first block of each row of blocks that go one after another."""
    rows: dict[int, int] = {}
    for block in sorted(blocks):
        rows[block] = rows.pop(block - 1, block)
    return rows


class Transitions(BlockKind):
    """What is known of each row of blocks that go, at its last block.

    The arrays are ``outputs``, the upper triangle of A by rows, ``changes``, B of shape (d_model,
    d_model), and ``size``, the sum of the squares of L - h; a client's float32, their sums float64.
    At other blocks there is nothing.

    `blocks`: the blocks that go; not the first.
    """

    name = "transitions"
    payload = "moments"
    elementwise = True
    together = True

    def __init__(self, blocks: Sequence[int]) -> None:
        self.rows = rows_of(blocks)

    def specs(self, site: BlockSite) -> dict[str, ArraySpec]:
        if site.index not in self.rows:
            return {}
        width = int(site.config.get_text_config().hidden_size)
        return {
            "outputs": ArraySpec("float32", (width * (width + 1) // 2,)),
            "changes": ArraySpec("float32", (width, width)),
            "size": ArraySpec("float32", (1,)),
        }

    def start(self, site: BlockSite, kept: MutableMapping[str, Any]) -> "_Recording":
        return _Recording(self.rows, site, kept.setdefault(self.name, {}))

    def check(self, arrays: Mapping[str, NDArray[Any]], site: BlockSite, tokens: int) -> None:
        """Refuse products that no outputs can have (see `BlockKind.check`)."""
        super().check(arrays, site, tokens)
        if arrays and (arrays["size"] < 0 or (square(arrays["outputs"]).diagonal() < 0).any()):
            raise WireError(f"'{self.name}' holds a sum of squares that is negative.")

    def add(self, first: Arrays, second: Arrays) -> Arrays:
        """Return the sums in float64 (see `BlockKind.add`)."""
        return {name: first[name].astype(np.float64) + second[name] for name in first}


@dataclass
class _Recording:
    """The sums of one row of blocks, or what its block before returned."""

    rows: Mapping[int, int]
    site: BlockSite
    kept: dict[int, tuple[Sequence[Tensor], Sequence[Tensor]]]  # first block -> m and h, by sample
    _written: Tensor | None = None
    _sample: int = 0
    _outputs: HiddenStates = field(init=False)
    _hidden: HiddenStates = field(init=False)
    _sums: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        limit = memory_limit(None) // 2
        self._outputs, self._hidden = HiddenStates(limit), HiddenStates(limit)

    def hooks(self) -> list[RemovableHandle]:
        found: list[RemovableHandle] = []
        if self.site.index + 1 in self.rows.values():
            found += [
                module.register_forward_hook(self._note)
                for module in self.site.module.modules()
                if isinstance(module, nn.Linear | Conv1D)
            ]
            found.append(self.site.module.register_forward_hook(self._keep))
        if self.site.index in self.rows:
            found.append(self.site.module.register_forward_hook(self._add))
        return found

    def close(self) -> Arrays:
        if self.site.index + 1 in self.rows.values():
            self.kept[self.site.index + 1] = (self._outputs, self._hidden)
        if self.site.index not in self.rows:
            return {}
        self.kept.pop(self.rows[self.site.index])
        outputs = self._sums["outputs"]
        upper = torch.triu_indices(*outputs.shape)
        return {
            "outputs": outputs[upper[0], upper[1]].float().numpy(),
            "changes": self._sums["changes"].float().numpy(),
            "size": self._sums["size"].float().numpy(),
        }

    def _note(self, _module: nn.Module, _args: object, output: Tensor) -> None:
        self._written = output.detach()  # the last one that is called stays

    def _keep(self, _block: nn.Module, _args: object, output: object) -> None:
        hidden = hidden_of(output).detach()
        if self._written is None or self._written.numel() != hidden.numel():
            raise WireError("The block's last matrix does not write to the hidden states.")
        written = self._written.reshape(hidden.shape)
        for one, other in zip(torch.split(written, 1), torch.split(hidden, 1), strict=True):
            self._outputs.append(one.cpu().clone())
            self._hidden.append(other.cpu().clone())

    def _add(self, _block: nn.Module, _args: object, output: object) -> None:
        outputs, hidden = self.kept[self.rows[self.site.index]]
        for leaving in torch.split(hidden_of(output).detach(), 1):
            number, self._sample = self._sample, self._sample + 1
            written = outputs[number].to(leaving.device, torch.float32).flatten(0, 1)
            before = hidden[number].to(leaving.device, torch.float32)
            change = (leaving.to(torch.float32) - before).flatten(0, 1)
            if not bool(torch.isfinite(change).all() and torch.isfinite(written).all()):
                raise WireError("The hidden states are not finite.")
            for name, value in (
                ("outputs", written.T @ written),
                ("changes", written.T @ change),
                ("size", change.square().sum(dtype=torch.float64)[None]),
            ):
                added = value.cpu().to(torch.float64)
                self._sums[name] = self._sums[name] + added if name in self._sums else added


@dataclass(frozen=True)
class StandIn:
    """The map that stands in for a row of blocks."""

    # T, float64, shape (d_model, d_model): rows of outputs are multiplied by it from the right
    matrix: Tensor
    # which share of the squared change that the blocks made the map makes too, at most 1
    explained: float


def stand_in(arrays: Mapping[str, NDArray[Any]], damping: float) -> StandIn:
    """Return the map that the sums of a row of blocks, those of :class:`Transitions`, come to."""
    moments = torch.from_numpy(square(arrays["outputs"])).to(torch.float64)
    products = torch.from_numpy(np.asarray(arrays["changes"])).to(torch.float64)
    hessian, dead = damped(moments, damping)
    lower = cholesky(hessian, damping).to(torch.float64)
    added = torch.cholesky_solve(products, lower).masked_fill(dead[:, None], 0.0)
    if not bool(torch.isfinite(added).all()):
        raise ModelError("The map that stands in for the blocks is not finite.")
    left = float(((moments @ added) * added).sum() - 2 * (added * products).sum())
    size = float(arrays["size"][0])
    explained = -left / size if size > 0 else 0.0
    return StandIn(torch.eye(len(added), dtype=torch.float64) + added, explained)
