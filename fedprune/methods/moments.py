"""Second moments of a federated Hessian: what clients send of each input, and how it is pooled."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.config import RunConfig
from fedprune.errors import QuorumError, WireError
from fedprune.methods.completion import completed
from fedprune.methods.fixed_point import from_fixed, to_fixed, to_float32
from fedprune.methods.sketches import (
    InputShape,
    eigen_sketch,
    nystrom_sketch,
    ranks_for_budget,
    rebuild_and_rest,
    sketch_bits,
)
from fedprune.methods.state import Arrays, numbers
from fedprune.methods.word_sums import Layout, Words
from fedprune.privacy.secure_masks import add_words
from fedprune.privacy.secure_sums import WordSpec
from fedprune.pruning.statistics import (
    ColumnStatistics,
    Deviation,
    MomentStatistics,
    Statistic,
    shared_inputs,
)
from fedprune.seeds import derive_seed
from fedprune.wire.inputs import input_name
from fedprune.wire.moments import Columns, Cross, InputMoments, Precision, Sketch, Triangle

Form = Literal["float32", "float16", "eigen", "nystrom", "columns"]

_RANK_SHARE = 16  # a sketch's rank is this share of the width unless a budget decides
_SKETCH, _CROSS = ("vectors", "diagonal"), ("cross", "squares")
Fixed = NDArray[np.uint64]
_HEAD_BYTES = 512  # counts, lengths and a checksum of an input's arrays, without their names
_NAMES = 4  # how often an input's name stands there


@dataclass(frozen=True)
class InputPlan:
    """How one input's moments travel."""

    linears: tuple[str, ...]  # the linears that read it
    width: int
    form: Form  # 'float32' or 'float16' triangle, 'eigen' or 'nystrom' sketch, or 'columns' alone
    rank: int  # columns of a sketch, else 0
    seed: int  # of the public matrix of Nystrom sketches
    crossed: bool = False  # whether the cross moment with the dense model's inputs goes with it

    @property
    def precision(self) -> Precision:
        """In which precision whole moments travel."""
        return "float16" if self.form == "float16" else "float32"

    @property
    def most_bytes(self) -> int:
        """The most bytes it takes on the wire."""
        size = {
            "float32": 4 * self.width * (self.width + 1) // 2,
            "float16": 2 * self.width * (self.width + 1) // 2 + 4 * self.width,
            "columns": 4 * self.width,
        }
        head = _HEAD_BYTES + _NAMES * len(input_name(self.linears))
        own = size.get(self.form, sketch_bits(self.width, self.rank) // 8 + 1)
        entry = 2 if self.form == "float16" else 4
        cross = self.width * (entry * self.width + 4) if self.crossed else 0
        return head + (own + _HEAD_BYTES + cross if self.crossed else own)


def plan_inputs(
    config: RunConfig,
    block: int,
    inputs: Sequence[tuple[str, ...]],
    shapes: Mapping[str, tuple[int, int]],
    routed: Collection[str] = (),
) -> list[InputPlan]:
    """Return how the moments of each of a block's inputs travel.

    Clients and server come to the same plan, since it follows from the configuration and the
    model's shapes.

    `config`: `strategy.moments`, `strategy.bits_per_weight`, `strategy.max_width`,
    `strategy.target`. `inputs`: the linears that share an input, for each distinct input. `shapes`:
    name of the linear -> (d_out, d_in). `routed`: the linears of experts: other tokens reach them
    in the dense model, so that nothing can be compared. Raises ConfigError if the budget does not
    pay for the diagonals.
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
            # The first block's inputs are the dense model's.
            crossed=strategy.target == "dense" and fits and block > 0 and linears[0] not in routed,
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


def input_moments(
    config: RunConfig,
    block: int,
    statistics: Mapping[str, Statistic],
    shapes: Mapping[str, tuple[int, int]],
    routed: Collection[str] = (),
) -> list[InputMoments]:
    """Return what a client tells of each distinct input of a block.

    `config`: as for :func:`plan_inputs`. `statistics`: name of the linear -> what was recorded;
    shared inputs share the object. `shapes`: name of the linear -> (d_out, d_in). `routed`: as for
    :func:`plan_inputs`.
    """
    shared = dict(shared_inputs(statistics))
    return [
        InputMoments(
            plan.linears,
            shared[plan.linears].tokens,
            _body(plan, shared[plan.linears]),
            _cross(plan, shared[plan.linears]),
        )
        for plan in plan_inputs(config, block, list(shared), shapes, routed)
    ]


def _cross(plan: InputPlan, known: Statistic) -> Cross | None:
    if not plan.crossed or not isinstance(known, MomentStatistics):
        return None
    deviation = known.deviation
    if deviation is None:  # of inputs that are not seen token by token: a weight stays its target
        zeros = np.zeros((plan.width, plan.width), dtype=np.float32)
        return Cross(zeros, zeros[0], plan.precision)
    return Cross(deviation.cross.cpu().numpy(), deviation.squares.cpu().numpy(), plan.precision)


def _body(plan: InputPlan, known: Statistic) -> Triangle | Sketch | Columns:
    if isinstance(known, ColumnStatistics):
        return Columns(known.sum_squares.cpu().numpy())
    if not isinstance(known, MomentStatistics):
        raise RuntimeError("moments are sent as they were recorded.")
    moments = known.moments.cpu()
    if plan.form == "eigen":
        return eigen_sketch(moments, plan.rank)
    if plan.form == "nystrom":
        return nystrom_sketch(moments, plan.rank, plan.seed)
    return Triangle.from_matrix(moments.numpy(), plan.precision)


class MomentPool:
    """Running second moments of one input over clients.

    Sketches are added in fixed point, exactly. Matrices are added in float64: sums of float32
    numbers are exact but for numbers that differ by a factor of 2**29 and more; what is left of the
    order of arrival goes when they are rounded to float32.

    `mode`: as :class:`fedprune.methods.sums.SumsPool`: as if all texts were in one place, each
    client's mean the same, or each client's mean over columns the same. `seed`: seed of the public
    matrix of Nystrom sketches. `seen`: tokens of all clients, whatever the mode; a client without
    any never counts.
    """

    def __init__(self, mode: str, seed: int = 0) -> None:
        self.mode = mode
        self._seed = seed
        self._total: Tensor | None = None
        self._cross: Tensor | None = None
        self._squares: Tensor | None = None
        self._sketch: tuple[Fixed, Fixed] | None = None  # vectors, diagonal
        self._rest: Tensor | None = None  # of the diagonal, what eigenvectors leave of it
        self._tokens = 0
        self.seen = 0

    def add(self, moments: InputMoments, times: float = 1.0) -> None:
        """Add one client's moments, which may count more than once, or less.

        Raises WireError if they hold the diagonal alone, or are of another size than those before;
        nothing is added then.
        """
        body = moments.body
        if isinstance(body, Columns):
            raise WireError("column sums alone do not add to second moments.")
        factor = times * self._factor(moments)
        if isinstance(body, Sketch) and body.kind == "nystrom":
            self._add_products(body, factor)
        else:
            whole, rest = _whole(body)
            self._add_matrix(whole, factor)
            if rest is not None:
                added = factor * rest.double()
                self._rest = added if self._rest is None else self._rest + added
        if moments.cross is not None:
            self._add_cross(moments.cross, factor)
        self._tokens += self._stands_for(moments)
        self.seen += moments.tokens

    def result(self) -> tuple[Tensor, int]:
        """Return the pooled moments, float32 of shape (d_in, d_in), and the tokens they stand for.

        Raises QuorumError if no client was added.
        """
        return self._pooled()[0], self._tokens

    def _pooled(self) -> tuple[Tensor, Tensor | None]:
        """Return the pooled moments, and what sketches left of their diagonal, None without any."""
        sketch = self.sketch()
        if sketch is not None:
            return rebuild_and_rest(sketch, self._seed)
        if self._total is None:
            raise QuorumError("No client sent moments of this input, so there is nothing to pool.")
        return self._total.float(), self._rest

    def statistic(self, public: MomentStatistics | None = None) -> MomentStatistics:
        """Return :meth:`result` as a statistic, with the deviation where clients told it.

        `public`: second moments of the input on public text; what sketches left out is then as
        correlated as on that text, and not at all without it.
        """
        (moments, rest), tokens = self._pooled(), self._tokens
        if public is not None and rest is not None:
            left_out = completed(ColumnStatistics(rest.float(), tokens), public).moments
            moments += left_out.fill_diagonal_(0.0)
        if self._cross is None or self._squares is None:
            return MomentStatistics(moments, tokens)
        deviation = Deviation(self._cross.float(), self._squares.float())
        return MomentStatistics(moments, tokens, deviation)

    @property
    def tokens(self) -> int:
        """The tokens that the sums stand for; unless pooled by tokens, one a client."""
        return self._tokens

    def sketch(self) -> Sketch | None:
        """Return the sum of Nystrom sketches, of which the moments are rebuilt, else None."""
        if self._sketch is None:
            return None
        vectors, diagonal = map(to_float32, self._sketch)
        return Sketch(vectors.reshape(len(diagonal), -1), diagonal, "nystrom")

    def rest(self) -> Tensor | None:
        """Return what sketches left of the diagonal, shape (d_in,); None without any."""
        return self._pooled()[1]

    def squares(self) -> NDArray[np.float64]:
        """Return the pooled sums of squares of the columns, float64, shape (d_in,)."""
        if self._sketch is not None:
            return from_fixed(self._sketch[1])
        if self._total is None:
            raise QuorumError("No client sent moments of this input, so there is nothing to pool.")
        found: NDArray[np.float64] = self._total.diagonal().numpy()
        return found

    def layout(self, plan: InputPlan) -> Layout:
        """Return the words that a client's moments are, which travel by a plan."""
        entries = {"triangle": WordSpec(plan.width * (plan.width + 1) // 2, 128)}
        if plan.form == "nystrom":
            sizes = (plan.width * plan.rank, plan.width)
            entries = {n: WordSpec(size, 128) for n, size in zip(_SKETCH, sizes, strict=True)}
        if plan.crossed:
            sizes = (plan.width * plan.width, plan.width)
            entries |= {n: WordSpec(size, 128) for n, size in zip(_CROSS, sizes, strict=True)}
        return {**entries, "counts": WordSpec(2, 64)}

    def words(self, moments: InputMoments, clients: int) -> Words:
        """Return a client's moments as they are pooled; `WireError` if so many could overflow."""
        body, factor = moments.body, self._factor(moments)
        counts = numbers(self._stands_for(moments), moments.tokens)
        if isinstance(body, Columns):
            raise WireError("column sums alone do not add to second moments.")
        parts = {"triangle": body.values} if isinstance(body, Triangle) else {}
        if isinstance(body, Sketch):
            parts = dict(zip(_SKETCH, _parts(body), strict=True))
        if moments.cross is not None:
            parts |= {"cross": moments.cross.values, "squares": moments.cross.squares}
        found: Words = {
            name: to_fixed(factor * part.astype(np.float64), clients)
            for name, part in parts.items()
        }
        return {**found, "counts": counts}

    def add_total(self, total: Mapping[str, NDArray[Any]]) -> None:
        """Take the sums of clients' words in place of their moments; nothing was added before."""
        self._tokens, self.seen = (int(n) for n in total["counts"])
        if "cross" in total:
            cross, squares = (torch.from_numpy(from_fixed(total[name])) for name in _CROSS)
            self._cross, self._squares = cross.reshape(len(squares), -1), squares
        if "triangle" not in total:
            vectors, diagonal = (total[name].copy() for name in _SKETCH)
            self._sketch = vectors, diagonal
            return
        values = torch.from_numpy(from_fixed(total["triangle"]))
        width = (math.isqrt(8 * len(values) + 1) - 1) // 2
        row, column = torch.triu_indices(width, width)
        self._total = torch.zeros((width, width), dtype=torch.float64)
        self._total[row, column] = values
        self._total[column, row] = values

    def state(self) -> Arrays:
        """Return the sums as arrays."""
        found: Arrays = {"counts": numbers(self._tokens, self.seen)}
        if self._total is not None:
            found["total"] = self._total.numpy()
        if self._cross is not None and self._squares is not None:
            found |= {"cross": self._cross.numpy(), "squares": self._squares.numpy()}
        if self._sketch is not None:
            found |= dict(zip(_SKETCH, self._sketch, strict=True))
        if self._rest is not None:
            found["rest"] = self._rest.numpy()
        return found

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError or ValueError if that is not a pool's."""
        self._tokens, self.seen = (int(n) for n in arrays["counts"])
        if "total" in arrays:
            self._total = torch.from_numpy(arrays["total"].copy())
        if "cross" in arrays:
            self._cross = torch.from_numpy(arrays["cross"].copy())
            self._squares = torch.from_numpy(arrays["squares"].copy())
        if all(name in arrays for name in _SKETCH):
            vectors, diagonal = (arrays[name].copy() for name in _SKETCH)
            self._sketch = vectors, diagonal
        if "rest" in arrays:
            self._rest = torch.from_numpy(arrays["rest"].copy())

    def _stands_for(self, moments: InputMoments) -> int:
        """Return how many tokens a client's moments count as."""
        return moments.tokens if self.mode == "tokens" else min(moments.tokens, 1)

    def _factor(self, moments: InputMoments) -> float:
        """Return what a client's moments are multiplied by."""
        if self.mode == "tokens":
            return 1.0
        if self.mode == "clients":
            return 1.0 / max(moments.tokens, 1)
        mean = float(diagonal_of(moments).mean(dtype=np.float64))
        return 1.0 / mean if mean else 0.0

    def _add_matrix(self, matrix: Tensor, factor: float) -> None:
        if self._total is None:
            self._total = torch.zeros(matrix.shape, dtype=torch.float64)
        if self._total.shape != matrix.shape:
            raise WireError(
                f"Moments of {len(self._total)} columns do not pool with {len(matrix)}."
            )
        self._total.add_(matrix.double(), alpha=factor)

    def _add_cross(self, cross: Cross, factor: float) -> None:
        if self._cross is None or self._squares is None:
            self._cross = torch.zeros(cross.values.shape, dtype=torch.float64)
            self._squares = torch.zeros(cross.squares.shape, dtype=torch.float64)
        self._cross.add_(torch.from_numpy(cross.values).double(), alpha=factor)
        self._squares.add_(torch.from_numpy(cross.squares).double(), alpha=factor)

    def _add_products(self, sketch: Sketch, factor: float) -> None:
        added = [to_fixed(factor * part.astype(np.float64)) for part in _parts(sketch)]
        if self._sketch is None:
            self._sketch = added[0], added[1]
            return
        if [part.shape for part in self._sketch] != [part.shape for part in added]:
            raise WireError(
                f"Sketches of {len(self._sketch[1])} columns do not pool with such of shape "
                f"{sketch.vectors.shape}."
            )
        for total, part in zip(self._sketch, added, strict=True):
            add_words(total, part)


def _whole(body: Sketch | Triangle) -> tuple[Tensor, Tensor | None]:
    """Return one client's moments, and what a sketch's columns leave of their diagonal."""
    if isinstance(body, Sketch):
        return rebuild_and_rest(body)
    return torch.from_numpy(body.matrix()), None


def _parts(sketch: Sketch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return sketch.vectors, sketch.diagonal


def diagonal_of(moments: InputMoments) -> NDArray[np.float32]:
    """Return the sums of squares that any kind of moments holds, float32, shape (d_in,)."""
    body = moments.body
    if isinstance(body, Columns):
        return body.sums
    if isinstance(body, Sketch):
        return body.diagonal
    diagonal: NDArray[np.float32] = body.diagonal
    return diagonal
