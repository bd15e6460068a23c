"""What the server knows of the model before a client is asked: shapes, hashes, public weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedprune.config import Pattern
from fedprune.errors import ModelError
from fedprune.methods.public_text import PublicText
from fedprune.models.loading import LoadedModel
from fedprune.models.transfer import Offer
from fedprune.pruning.block_kinds import BlockSite
from fedprune.pruning.groups import check_divides
from fedprune.pruning.statistics import MomentStatistics
from fedprune.pruning.units import Units

# InboxQuota for the headers of one linear's frame: name, shapes, counts, checksum.
FRAME_BYTES = 512


@dataclass(frozen=True)
class PublicModel:
    """The public model, as far as a method needs it."""

    # for each block: name of the linear inside it -> (d_out, d_in)
    shapes: tuple[Mapping[str, tuple[int, int]], ...]
    # config_hash, weights_hash, code_hash: what every node must have too (hex sha256)
    config_hash: str
    weights_hash: str
    code_hash: str
    # (block, linear) -> the public weight, shape (d_out, d_in), in the model's dtype
    weight: Callable[[int, str], Tensor]
    # for each block: the linears that share an input, a tuple for each distinct input. Empty where
    # no statistics are sent.
    inputs: tuple[tuple[tuple[str, ...], ...], ...] = ()
    # for each block: name of the linear -> what the mean square of its input can be at most; empty
    # where no statistics are sent
    loudness: tuple[Mapping[str, float], ...] = ()
    offer: Offer | None = None  # the model's files, where nodes that lack them get them from here
    # the blocks themselves; empty where nobody asks about whole blocks
    sites: tuple[BlockSite, ...] = ()
    # for each block: the linears of routed experts, which not every token reaches. Empty where
    # there are none.
    experts: tuple[frozenset[str], ...] = ()
    # what can go altogether in every block, where the pruner removes that
    units: Units | None = None
    public: PublicText | None = None  # what is known of public text, where `privacy` needs it
    # returns for each block: name of the linear -> how much the loss minds a change of its outputs
    # (`fedprune.pruning.output_gradients.mean_squares`); it takes its time
    sensitivities: Callable[[], tuple[Mapping[str, float], ...]] = tuple
    # block -> name of the linear -> second moments of the loss's gradients at its outputs
    # (`fedprune.pruning.output_gradients.OutputMoments`); empty where the solver needs none
    output_moments: Callable[[int], Mapping[str, Tensor]] = lambda _block: {}
    # block -> name of the linear -> second moments of its input on public text
    # (`fedprune.methods.public_text.PublicMoments`); it takes its time when first asked
    public_moments: Callable[[int], Mapping[str, MomentStatistics]] = lambda _block: {}

    @classmethod
    def of(cls, loaded: LoadedModel, **told: Any) -> Self:
        """Describe a model that is here; ``told`` are the fields that it does not say itself."""
        layout, blocks = loaded.layout, range(len(loaded.layout.blocks))
        own: dict[str, Any] = {
            "shapes": tuple(layout.shapes()),
            "config_hash": "",
            "weights_hash": "",
            "code_hash": "",
            "weight": loaded.weight,
            "sites": tuple(BlockSite.of(loaded, block) for block in blocks),
            "experts": tuple(
                frozenset(name for name, ref in layout.linears(block).items() if ref.expert)
                for block in blocks
            ),
        }
        return cls(**(own | told))

    @property
    def num_blocks(self) -> int:
        """How many decoder blocks the model has."""
        return len(self.shapes)

    def routed(self, block: int) -> frozenset[str]:
        """Return a block's linears that not every token reaches."""
        return self.experts[block] if self.experts else frozenset()

    def magnitude(self, block: int, name: str) -> NDArray[np.float32]:
        """Return |W| of a linear as float32, flat, shape (d_out * d_in,); it decides ties."""
        found: NDArray[np.float32] = self.weight(block, name).abs().float().reshape(-1).numpy()
        return found

    def mask_bytes(self, block: int) -> int:
        """Return the most bytes that the masks of a block can take on the wire."""
        return sum(
            FRAME_BYTES + (rows * columns + 7) // 8 for rows, columns in self.shapes[block].values()
        )

    @property
    def dense_bytes(self) -> int:
        """The bytes of all prunable weights as they are stored."""
        return sum(
            self.weight(block, name).nbytes
            for block, shapes in enumerate(self.shapes)
            for name in shapes
        )

    def weight_bytes(self, block: int) -> int:
        """Return the most bytes that a block's masks and surviving values can take."""
        values = sum(
            rows * columns * self.weight(block, name).element_size()
            for name, (rows, columns) in self.shapes[block].items()
        )
        return self.mask_bytes(block) + values

    def check_pattern(self, pattern: Pattern) -> None:
        """Refuse an N:M pattern that does not divide every linear's inputs.

        Raises ModelError naming the first linear that it does not fit.
        """
        for block, shapes in enumerate(self.shapes):
            for name, (_, columns) in shapes.items():
                try:
                    check_divides(pattern, columns)
                except ModelError as error:
                    raise ModelError(f"block {block}, linear '{name}': {error}") from None
