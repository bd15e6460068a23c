"""Cosines between what enters and what leaves blocks: how little a block, or several, change.

Block influence of ShortGPT (Men et al., arXiv 2403.03853, equation 1) is one minus their mean over
tokens; over several blocks in a row it is the distance of Gromov et al. (arXiv 2403.17887) and of
ReplaceMe (arXiv 2505.02819). Each token's cosine is rounded to a multiple of 2**-32, so that sums
are integers: they do not depend on how texts are spread over clients.
"""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedprune.errors import WireError
from fedprune.models.capture import hidden_of
from fedprune.models.passage import HIDDEN
from fedprune.models.walk import HiddenStates, memory_limit
from fedprune.pruning.block_kinds import BlockKind, BlockSite
from fedprune.pruning.statistics import Arrays
from fedprune.wire.arrays import ArraySpec

UNIT = 1 << 32
"""A cosine of one, as an integer."""


def cosines(entering: Tensor, leaving: Tensor) -> Tensor:
    """Return each token's cosine in units of 2**-32, int64, shape (...,); 0 where one is zero.

    Of hidden states, shape (..., d_model), in float64. Raises WireError if one is not finite.
    """
    first, second = entering.to(torch.float64), leaving.to(torch.float64)
    sizes = first.square().sum(-1).sqrt() * second.square().sum(-1).sqrt()
    found = (first * second).sum(-1) / sizes.masked_fill(sizes == 0, 1.0)
    if not bool(torch.isfinite(found).all()):
        raise WireError("The hidden states are not finite.")
    return (found.clamp(-1.0, 1.0) * UNIT).round().to(torch.int64)


class Cosines(BlockKind):
    """Summed cosines between the input of one of the blocks before and the output of a block.

    The arrays are ``sums`` and ``tokens``, int64 of shape (spans,): for each span s the cosines
    between the input of the block s - 1 before and the output of this one, and how many there are;
    zeros where there is no such block.

    The only span here is 1, the block by itself; a subclass may have more (:meth:`spans`).
    """

    name = "cosines"
    exact = True
    measured = True

    def spans(self, num_blocks: int) -> tuple[int, ...]:
        """Return over how many blocks cosines are taken; above 1 only with :attr:`together`."""
        return (1,)

    def specs(self, site: BlockSite) -> dict[str, ArraySpec]:
        spec = ArraySpec("int64", (len(self.spans(site.num_blocks)),))
        return {"sums": spec, "tokens": spec}

    def start(self, site: BlockSite, kept: MutableMapping[str, Any]) -> "_Recording":
        return _Recording(self.spans(site.num_blocks), site, kept.setdefault(self.name, {}))

    def measures(self, site: BlockSite) -> dict[str, int]:
        """See `BlockKind.measures`: by span the sum of one minus the cosines, from 0 to 2 each.

        A block hardly changes what enters it, so that this is much less than the cosines are, and
        noise by the measure of it leaves more. How many tokens there are is no secret.
        """
        spans = self.spans(site.num_blocks)
        return {f"over_{span}": 1 for span in spans if span <= site.index + 1}

    def to_measures(
        self, arrays: Mapping[str, NDArray[Any]], site: BlockSite
    ) -> dict[str, NDArray[np.float64]]:
        apart = arrays["tokens"] * UNIT - arrays["sums"]
        spans, there = self.spans(site.num_blocks), self.measures(site)
        found = {f"over_{span}": one for span, one in zip(spans, apart, strict=True)}
        return {name: np.array([found[name]], dtype=np.float64) for name in there}

    def from_measures(
        self, measures: Mapping[str, NDArray[np.float64]], site: BlockSite, tokens: int
    ) -> Arrays:
        spans = self.spans(site.num_blocks)
        sums, counts = np.zeros((2, len(spans)), dtype=np.int64)
        for place, span in enumerate(spans):
            if f"over_{span}" in measures:
                most = 2 * tokens * UNIT
                apart = min(round(float(measures[f"over_{span}"][0])), most)
                sums[place], counts[place] = tokens * UNIT - apart, tokens
        return {"sums": sums, "tokens": counts}

    def check(self, arrays: Mapping[str, NDArray[Any]], site: BlockSite, tokens: int) -> None:
        """Refuse sums that so many cosines cannot have (see `BlockKind.check`)."""
        counts, sums = arrays["tokens"], arrays["sums"]
        for place, span in enumerate(self.spans(site.num_blocks)):
            count, expected = int(counts[place]), tokens if span <= site.index + 1 else 0
            if not 0 <= count < 1 << 30 or (tokens and count != expected):
                raise WireError(f"'{self.name}' of {count} tokens, expected {expected}.")
            if abs(int(sums[place])) > count * UNIT:
                raise WireError(f"'{self.name}' of {count} tokens cannot sum up to so much.")


@dataclass
class _Recording:
    """The sums of one block, and the inputs of those before it that spans reach back to."""

    spans: Sequence[int]
    site: BlockSite
    kept: dict[int, Sequence[Tensor]]  # block -> its inputs, sample by sample
    _sums: NDArray[np.int64] = field(init=False)
    _tokens: NDArray[np.int64] = field(init=False)
    _inputs: HiddenStates = field(init=False)
    _entering: Tensor | None = None
    _sample: int = 0

    def __post_init__(self) -> None:
        self._sums = np.zeros(len(self.spans), dtype=np.int64)
        self._tokens = np.zeros(len(self.spans), dtype=np.int64)
        self._inputs = HiddenStates(memory_limit(None))

    def hooks(self) -> list[RemovableHandle]:
        block = self.site.module
        return [
            block.register_forward_pre_hook(self._before, with_kwargs=True),
            block.register_forward_hook(self._after),
        ]

    def close(self) -> Arrays:
        if max(self.spans) > 1:
            self.kept[self.site.index] = self._inputs
            for block in [one for one in self.kept if one < self.site.index + 2 - max(self.spans)]:
                del self.kept[block]
        return {"sums": self._sums, "tokens": self._tokens}

    def so_far(self) -> Arrays:
        return {"sums": self._sums.copy(), "tokens": self._tokens.copy()}

    def _before(self, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A copy: some families add to their input in place.
        self._entering = (kwargs[HIDDEN] if HIDDEN in kwargs else args[0]).detach().clone()

    def _after(self, _block: nn.Module, _args: object, output: object) -> None:
        leaving, entering = hidden_of(output).detach(), self._entering
        if entering is None:
            raise RuntimeError("a block ended that did not begin.")
        rows = zip(torch.split(entering, 1), torch.split(leaving, 1), strict=True)
        for own, row in rows:
            for place, span in enumerate(self.spans):
                first = self.site.index + 1 - span
                if first >= 0:
                    before = own if span == 1 else self.kept[first][self._sample].to(row.device)
                    found = cosines(before, row)
                    self._sums[place] += int(found.sum())
                    self._tokens[place] += found.numel()
            if max(self.spans) > 1:
                self._inputs.append(own.cpu())
            self._sample += 1
