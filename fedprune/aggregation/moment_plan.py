"""What clients of a federated Hessian send of each input: decided by public shapes alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedprune.aggregation.sketches import InputShape, ranks_for_budget, sketch_bits
from fedprune.config import RunConfig
from fedprune.seeds import derive_seed

Form = Literal["float32", "float16", "eigen", "nystrom", "columns"]

_RANK_SHARE = 16  # a sketch's rank is this share of the width unless a budget decides
_HEAD_BYTES = 4096  # names, counts and checksums of an input


@dataclass(frozen=True)
class InputPlan:
    """How one input's moments travel.

    Attributes
    ----------
    linears : tuple of str
        The linears that read it.
    width : int
        Columns, d_in.
    form : str
        'float32' or 'float16' triangle, 'eigen' or 'nystrom' sketch, or 'columns' alone.
    rank : int
        Columns of a sketch, else 0.
    seed : int
        Of the public matrix of Nystrom sketches.
    """

    linears: tuple[str, ...]
    width: int
    form: Form
    rank: int
    seed: int

    @property
    def most_bytes(self) -> int:
        """The most bytes it takes on the wire."""
        size = {
            "float32": 4 * self.width * (self.width + 1) // 2,
            "float16": 2 * self.width * (self.width + 1) // 2 + 4 * self.width,
            "columns": 4 * self.width,
        }
        return _HEAD_BYTES + size.get(self.form, sketch_bits(self.width, self.rank) // 8 + 1)


def plan_inputs(
    config: RunConfig,
    block: int,
    inputs: Sequence[tuple[str, ...]],
    shapes: Mapping[str, tuple[int, int]],
) -> list[InputPlan]:
    """Return how the moments of each of a block's inputs travel.

    Clients and server come to the same plan, since it follows from the configuration and the
    model's shapes.

    Parameters
    ----------
    config : RunConfig
        `strategy.moments`, `strategy.bits_per_weight` and `strategy.max_width`.
    block : int
        Index of the block.
    inputs : Sequence of tuples
        The linears that share an input, for each distinct input.
    shapes : Mapping
        Name of the linear -> (d_out, d_in).

    Raises
    ------
    ConfigError
        If the budget does not pay for the diagonals.
    """
    strategy = config.strategy
    widths = [shapes[linears[0]][1] for linears in inputs]
    narrow = [strategy.max_width is None or width <= strategy.max_width for width in widths]
    ranks = _ranks(config, inputs, shapes, narrow)
    chosen: Mapping[str, Form] = {
        "float32": "float32",
        "float16": "float16",
        "eigen": "eigen",
        "nystrom": "nystrom",
    }
    return [
        InputPlan(
            linears=tuple(linears),
            width=width,
            form=chosen[strategy.moments] if fits else "columns",
            rank=rank,
            seed=derive_seed(config.seed, "nystrom", block, linears[0]),
        )
        for linears, width, fits, rank in zip(inputs, widths, narrow, ranks, strict=True)
    ]


def _ranks(
    config: RunConfig,
    inputs: Sequence[tuple[str, ...]],
    shapes: Mapping[str, tuple[int, int]],
    narrow: Sequence[bool],
) -> list[int]:
    """Return the rank of each input's sketch, 0 where none is sent."""
    strategy = config.strategy
    if strategy.moments not in ("eigen", "nystrom"):
        return [0] * len(inputs)
    widths = [shapes[linears[0]][1] for linears in inputs]
    if strategy.bits_per_weight is None:
        return [
            max(1, width // _RANK_SHARE) if fits else 0
            for width, fits in zip(widths, narrow, strict=True)
        ]
    tokens = config.pruner.num_calibration_samples * config.pruner.seq_len
    sketched = [
        InputShape(
            width=width,
            weights=sum(shapes[name][0] * width for name in linears),
            # What clients add up must be alike, and together they have more tokens than one.
            tokens=tokens if strategy.moments == "eigen" else width,
        )
        for linears, width, fits in zip(inputs, widths, narrow, strict=True)
        if fits
    ]
    ranks = iter(ranks_for_budget(sketched, strategy.bits_per_weight) if sketched else [])
    return [next(ranks) if fits else 0 for fits in narrow]
