"""What a whole block leaves behind while it runs dense: sums over tokens, additive over clients.

A :class:`~fedprune.pruning.statistics.StatisticKind` knows the input of one linear. A
:class:`BlockKind` sees the block itself, by hooks on it and on any module in it: cosines between
what enters and what leaves it, what a router chose, how large the outputs of experts were. Its
arrays are its statistic; integers add up exactly, whatever the order of clients.

    class Tokens(BlockKind):
        name = "tokens"
        exact = True

        def specs(self, site):
            return {"count": ArraySpec("int64", (1,))}

        def start(self, site, kept):
            return Counting(site)        # hooks that count, and a close() that returns the arrays
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.utils.hooks import RemovableHandle

from fedprune.errors import WireError
from fedprune.models.loading import LoadedModel
from fedprune.pruning.statistics import Arrays
from fedprune.wire.arrays import ArraySpec

_HALF = 1 << 62


@dataclass(frozen=True)
class BlockSite:
    """A block of the model, as a node and the server both see it."""

    index: int
    num_blocks: int
    # the block. Its weights may be on the meta device: only while it runs does it have any.
    module: nn.Module
    config: Any  # of the decoder: ``hidden_size`` and so on
    shapes: Mapping[str, tuple[int, int]]  # name of the linear inside the block -> (d_out, d_in)

    @classmethod
    def of(cls, model: LoadedModel, index: int) -> "BlockSite":
        """Return a block of a loaded model."""
        blocks = model.layout.blocks
        shapes = {name: ref.shape for name, ref in model.layout.linears(index).items()}
        return cls(index, len(blocks), blocks[index], model.model.config, shapes)


class BlockRecording(Protocol):
    """A statistic of a block while it runs on all samples, one after another, in their order."""

    def hooks(self) -> list[RemovableHandle]:
        """Register the hooks that record, on the block or on modules in it; they are removed."""
        ...

    def close(self) -> Arrays:
        """Return the arrays of :meth:`BlockKind.specs`; called once, after the last sample."""
        ...


@runtime_checkable
class RunningRecording(BlockRecording, Protocol):
    """A recording that also says what it has until now: of every kind that is measured."""

    def so_far(self) -> Arrays:
        """Return copies of the arrays of all samples until now."""
        ...


class BlockKind(ABC):
    """A named sum over calibration tokens of a whole block: how it is recorded and added up."""

    name: str  # what `strategy.statistics` and a statistics folder call it
    exact: bool = False  # whether all arrays are integers that add up elementwise, and so exactly
    # whether arrays that are no integers add up elementwise, too: then they can be summed under
    # masks, in fixed point
    elementwise: bool = False
    # what leaves a node, of `fedprune.config.schema.PAYLOADS`; its operator allows it
    payload: str = "sums"
    # whether something is kept from block to block, so that a client is asked about all blocks in
    # one message
    together: bool = False
    # whether what a sample adds is a few numbers that are never negative (:meth:`measures`), so
    # that it can be limited and noise be added (`privacy.epsilon`): then the arrays are integers,
    # :meth:`start` returns a :class:`RunningRecording`, and there are all three methods
    measured: bool = False

    @abstractmethod
    def specs(self, site: BlockSite) -> dict[str, ArraySpec]:
        """Return the arrays of a block: name -> type and shape; empty where there is nothing."""

    @abstractmethod
    def start(self, site: BlockSite, kept: MutableMapping[str, Any]) -> BlockRecording:
        """Return an empty record of a block.

        `kept`: what recordings of earlier blocks left here with :attr:`together`; to be changed in
        ``close`` only, since a block is run again where memory ran out.
        """

    def measures(self, site: BlockSite) -> dict[str, int]:
        """Return name -> how many numbers, each name's alike; empty where there is nothing."""
        raise TypeError(f"'{self.name}' is not measured.")

    def to_measures(
        self, arrays: Mapping[str, NDArray[Any]], site: BlockSite
    ) -> dict[str, NDArray[np.float64]]:
        """Return the numbers of :meth:`measures` that arrays of some samples are."""
        raise TypeError(f"'{self.name}' is not measured.")

    def from_measures(
        self, measures: Mapping[str, NDArray[np.float64]], site: BlockSite, tokens: int
    ) -> Arrays:
        """Return the arrays, or those of them that follow, of estimates of summed numbers.

        `measures`: as :meth:`measures` says; finite, none negative. `tokens`: of all samples, at
        least 1.
        """
        raise TypeError(f"'{self.name}' is not measured.")

    def check(self, arrays: Mapping[str, NDArray[Any]], site: BlockSite, tokens: int) -> None:
        """Refuse arrays of the right types and shapes that cannot be of any texts.

        `arrays`: from a stranger, as :meth:`specs` says. `tokens`: the tokens that the client
        promised; 0 if nobody knows. Raises WireError: by default if a float is not finite, or an
        integer so large that sums overflow.
        """
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise WireError(f"'{self.name}.{name}' must be finite.")
            if array.dtype.kind in "iu" and array.size and int(np.abs(array).max()) >= _HALF:
                raise WireError(f"'{self.name}.{name}' holds a number too large for a sum.")

    def add(self, first: Arrays, second: Arrays) -> Arrays:
        """Return the arrays of both's tokens: elementwise sums, integers or float64, unless said.

        Raises WireError if a sum of integers overflows.
        """
        total = {name: first[name] + second[name] for name in first}
        for name, array in total.items():
            if array.dtype.kind in "iu" and array.size and int(np.abs(array).max()) >= _HALF:
                raise WireError(f"The sums of '{self.name}.{name}' overflow: too many tokens.")
        return total
