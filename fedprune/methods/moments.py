"""Second moments of a federated Hessian: what clients send of each input, and how it is pooled.

A solver that reconstructs wants all products of two inputs. Where clients tell the squares alone,
public text says what is between two columns (:func:`completed`). Texts that the public model writes
itself calibrate a pruner nearly as well as real ones where the model knows such texts (Williams et
al., arXiv 2410.17170); here they lend the correlations, and the clients' texts keep their own exact
scales.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.config import RunConfig
from fedprune.errors import QuorumError, WireError
from fedprune.methods.exchange import BlockTask, Contributor
from fedprune.methods.inputs import (
    Linears,
    PooledInputs,
    all_together,
    check_inputs,
    check_loudness,
    check_tokens,
)
from fedprune.methods.sketches import (
    InputShape,
    eigen_sketch,
    nystrom_sketch,
    ranks_for_budget,
    rebuild_and_rest,
    sketch_bits,
)
from fedprune.methods.state import Arrays, numbers
from fedprune.methods.sums import SumsPool
from fedprune.methods.word_sums import (
    Layout,
    Words,
    from_fixed,
    part_of,
    prefixed,
    to_fixed,
    to_float32,
)
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
from fedprune.wire.moments import (
    Columns,
    Cross,
    InputMoments,
    Precision,
    Sketch,
    Triangle,
    decode_moments,
    square,
)
from fedprune.wire.sums import ExactSums, InputSums


def completed(sums: ColumnStatistics, public: MomentStatistics) -> MomentStatistics:
    """Return moments with the clients' diagonal and public text's correlations.

    ``G_ij = C_ij sqrt(s_i s_j / (C_ii C_jj))``, positive semi-definite as C is. A column that
    public text leaves silent is related to no other.

    `sums`: s, the pooled sums of squares, shape (d_in,). `public`: C, shape (d_in, d_in).
    """
    squares = sums.sum_squares.double().cpu()
    moments = public.moments.double().cpu()
    silent = moments.diagonal() <= 0
    ratio = torch.where(silent, 0.0, squares / torch.where(silent, 1.0, moments.diagonal()))
    scale = ratio.sqrt()
    found = scale[:, None] * moments * scale
    found.diagonal().copy_(squares)
    return MomentStatistics(found.float(), sums.tokens)


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
    return [
        InputPlan(
            linears=tuple(linears),
            width=width,
            form=strategy.moments if fits else "columns",
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


def moment_layout(plan: InputPlan) -> Layout:
    """Return the words that a client's moments are, which travel by a plan."""
    width = plan.width
    if plan.form == "columns":
        return SumsPool.layout(width)
    sizes = {"triangle": width * (width + 1) // 2}
    if plan.form == "nystrom":
        sizes = dict(zip(_SKETCH, (width * plan.rank, width), strict=True))
    if plan.crossed:
        sizes |= dict(zip(_CROSS, (width * width, width), strict=True))
    return {**{n: WordSpec(size, 128) for n, size in sizes.items()}, "counts": WordSpec(2, 64)}


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
        # float64: "total"; "rest", of the diagonal, what eigenvectors leave of it; _CROSS
        self._sums: dict[str, Tensor] = {}
        self._sketch: dict[str, Fixed] = {}  # _SKETCH
        self.tokens = 0  # that the sums stand for; unless pooled by tokens, one a client
        self.seen = 0

    def add(self, moments: InputMoments, times: float = 1.0) -> None:
        """Add one client's moments, more than the diagonal, which may count more than once."""
        body = moments.body
        if isinstance(body, Columns):
            raise WireError("column sums alone do not add to second moments.")
        factor = times * self._factor(moments)
        if isinstance(body, Triangle):
            self._add("total", torch.from_numpy(body.matrix()), factor)
        elif body.kind == "eigen":
            whole, rest = rebuild_and_rest(body)
            self._add("total", whole, factor)
            self._add("rest", factor * rest.double(), 1.0)
        else:
            self._add_products(body, factor)
        if moments.cross is not None:
            self._add("cross", torch.from_numpy(moments.cross.values), factor)
            self._add("squares", torch.from_numpy(moments.cross.squares), factor)
        self.tokens += self._stands_for(moments)
        self.seen += moments.tokens

    def result(self) -> tuple[Tensor, int]:
        """Return the pooled moments, float32 of shape (d_in, d_in), and the tokens they stand for.

        Raises QuorumError if no client was added.
        """
        return self._pooled()[0], self.tokens

    def _pooled(self) -> tuple[Tensor, Tensor | None]:
        """Return the pooled moments, and what sketches left of their diagonal, None without any."""
        sketch = self.sketch()
        if sketch is not None:
            return rebuild_and_rest(sketch, self._seed)
        return self._total().float(), self._sums.get("rest")

    def _total(self) -> Tensor:
        if "total" not in self._sums:
            raise QuorumError("No client sent moments of this input, so there is nothing to pool.")
        return self._sums["total"]

    def statistic(self, public: MomentStatistics | None = None) -> MomentStatistics:
        """Return :meth:`result` as a statistic, with the deviation where clients told it.

        `public`: second moments of the input on public text; what sketches left out is then as
        correlated as on that text, and not at all without it.
        """
        (moments, rest), tokens = self._pooled(), self.tokens
        if public is not None and rest is not None:
            left_out = completed(ColumnStatistics(rest.float(), tokens), public).moments
            moments += left_out.fill_diagonal_(0.0)
        if "cross" not in self._sums:
            return MomentStatistics(moments, tokens)
        deviation = Deviation(*(self._sums[name].float() for name in _CROSS))
        return MomentStatistics(moments, tokens, deviation)

    def sketch(self) -> Sketch | None:
        """Return the sum of Nystrom sketches, of which the moments are rebuilt, else None."""
        if not self._sketch:
            return None
        vectors, diagonal = (to_float32(self._sketch[name]) for name in _SKETCH)
        return Sketch(vectors.reshape(len(diagonal), -1), diagonal, "nystrom")

    def squares(self) -> NDArray[np.float64]:
        """Return the pooled sums of squares of the columns, float64, shape (d_in,)."""
        if self._sketch:
            return from_fixed(self._sketch["diagonal"])
        found: NDArray[np.float64] = self._total().diagonal().numpy()
        return found

    def words(self, moments: InputMoments, clients: int) -> Words:
        """Return a client's moments as they are pooled; `WireError` if so many could overflow."""
        body, factor = moments.body, self._factor(moments)
        counts = numbers(self._stands_for(moments), moments.tokens)
        if isinstance(body, Columns):
            raise WireError("column sums alone do not add to second moments.")
        parts = {"triangle": body.values} if isinstance(body, Triangle) else {}
        if isinstance(body, Sketch):
            parts = _parts(body)
        if moments.cross is not None:
            parts |= {"cross": moments.cross.values, "squares": moments.cross.squares}
        found: Words = {
            name: to_fixed(factor * part.astype(np.float64), clients)
            for name, part in parts.items()
        }
        return {**found, "counts": counts}

    def add_total(self, total: Mapping[str, NDArray[Any]]) -> None:
        """Take the sums of clients' words in place of their moments; nothing was added before."""
        self.tokens, self.seen = (int(n) for n in total["counts"])
        if "cross" in total:
            cross, squares = (torch.from_numpy(from_fixed(total[name])) for name in _CROSS)
            self._sums = {"cross": cross.reshape(len(squares), -1), "squares": squares}
        if "triangle" not in total:
            self._sketch = {name: total[name].copy() for name in _SKETCH}
            return
        self._sums["total"] = torch.from_numpy(square(from_fixed(total["triangle"])))

    def state(self) -> Arrays:
        """Return the sums as arrays."""
        sums = {name: one.numpy() for name, one in self._sums.items()}
        return {"counts": numbers(self.tokens, self.seen), **sums, **self._sketch}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError or ValueError if that is not a pool's."""
        self.tokens, self.seen = (int(n) for n in arrays["counts"])
        known = [name for name in ("total", "rest", *_CROSS) if name in arrays]
        self._sums = {name: torch.from_numpy(arrays[name].copy()) for name in known}
        self._sketch = {name: arrays[name].copy() for name in _SKETCH if name in arrays}

    def _stands_for(self, moments: InputMoments) -> int:
        """Return how many tokens a client's moments count as."""
        return moments.tokens if self.mode == "tokens" else min(moments.tokens, 1)

    def _factor(self, moments: InputMoments) -> float:
        """Return what a client's moments are multiplied by."""
        if self.mode == "tokens":
            return 1.0
        if self.mode == "clients":
            return 1.0 / max(moments.tokens, 1)
        mean = float(moments.body.diagonal.mean(dtype=np.float64))
        return 1.0 / mean if mean else 0.0

    def _add(self, name: str, part: Tensor, factor: float) -> None:
        total = self._sums.setdefault(name, torch.zeros(part.shape, dtype=torch.float64))
        total.add_(part.double(), alpha=factor)

    def _add_products(self, sketch: Sketch, factor: float) -> None:
        added = {n: to_fixed(factor * one.astype(np.float64)) for n, one in _parts(sketch).items()}
        for name, part in added.items():
            if name in self._sketch:
                add_words(self._sketch[name], part)
            else:
                self._sketch[name] = part


def _parts(sketch: Sketch) -> dict[str, NDArray[np.float32]]:
    return {"vectors": sketch.vectors, "diagonal": sketch.diagonal}


R = TypeVar("R")

_NOTHING: Mapping[str, MomentStatistics] = {}
_SHIFT = 1e-3  # of a diagonal of ones: what an eigenvalue may be off, beside
_ROUNDING = {"float32": 2.0**-20, "float16": 2.0**-12}  # width times what one correlation may be
_FACTORISED = 4096  # width up to which it takes a second a client; beyond, entries are looked at


class ColumnMoments(SumsPool):
    """Sums of squares of an input of which clients tell nothing else."""

    def add(self, sums: InputSums | InputMoments) -> None:
        """Add one client's."""
        super().add(sums if isinstance(sums, InputSums) else exact_columns(sums))

    def words(self, sums: InputSums | InputMoments, clients: int) -> Words:
        own = sums if isinstance(sums, InputSums) else exact_columns(sums)
        return super().words(own, clients)


class MomentSums(PooledInputs[InputMoments, R], Generic[R]):
    """Adds up what clients know of each input's products; what it comes to is for subclasses.

    `pooling`: `strategy.pooling`. `plans`: how the moments of each input travel.
    """

    def __init__(self, task: BlockTask, pooling: str, plans: Sequence[InputPlan]) -> None:
        self.sums_integers = all(plan.form != "eigen" for plan in plans)
        self.plans = {plan.linears: plan for plan in plans}
        super().__init__(
            task,
            {
                one: ColumnMoments(pooling)
                if plan.form == "columns"
                else MomentPool(pooling, plan.seed)
                for one, plan in self.plans.items()
            },
        )

    def check(self, payload: bytes, client: Contributor) -> dict[Linears, InputMoments]:
        """Decode moments, which must be of the form asked for, and could be of some texts."""
        shapes, asked = self.task.model.shapes[self.task.block], {n for p in self.plans for n in p}
        found = decode_moments(payload, {name: shapes[name] for name in shapes if name in asked})
        check_inputs([group.linears for group in found], list(self.plans))
        check_tokens({group.linears[0]: group.tokens for group in found}, self.task, client)
        for group in found:
            self._check(group, self.plans[group.linears], " ".join(group.linears))
        return {group.linears: group for group in found}

    def _check(self, group: InputMoments, plan: InputPlan, name: str) -> None:
        """Refuse moments of another form than planned, or that no inputs can have."""
        if _form(group) != (plan.form, plan.rank):
            raise WireError(
                f"the moments of {name} must be of form '{plan.form}' and rank {plan.rank}, got "
                "another."
            )
        if (group.cross is not None) != plan.crossed:
            told = "with" if plan.crossed else "without"
            raise WireError(
                f"the moments of {name} must come {told} the cross moment (`strategy.target`)."
            )
        total = float(group.body.diagonal.sum(dtype=np.float64))
        check_loudness(self.task, group.linears, total, group.tokens)
        if isinstance(group.body, Triangle):
            check_moments(group.body, name)
            if group.cross is not None:
                dense = check_cross(group.body, group.cross, name)
                check_loudness(self.task, group.linears, dense, group.tokens)

    def layout(self, clients: int) -> Layout:
        """Return the words of the moments, or the sums, of each input."""
        return prefixed({linears[0]: moment_layout(plan) for linears, plan in self.plans.items()})

    def add_total(self, total: Mapping[str, NDArray[Any]], clients: Sequence[Contributor]) -> None:
        """Take the moments of all clients, which must be of the tokens that they promised."""
        seen = {linears[0]: int(total[f"{linears[0]}/counts"][1].item()) for linears in self.plans}
        check_tokens(seen, self.task, all_together(clients))
        for linears, pool in self.pools.items():
            part = part_of(total, linears[0])
            if isinstance(pool, SumsPool):
                pool.add_total(linears, part)
                continue
            pool.add_total(part)
            squares = pool.squares()
            if not (squares >= 0).all():
                raise WireError(f"the moments of {' '.join(linears)} have a negative diagonal.")
            if pool.mode == "tokens":
                check_loudness(self.task, linears, float(squares.sum()), pool.seen)
            if "triangle" in part:
                matrix = pool.result()[0].numpy()
                triangle = Triangle.from_matrix(matrix, self.plans[linears].precision)
                check_moments(triangle, " ".join(linears))
        self.clients = len(clients)

    def results(
        self, public: Mapping[str, MomentStatistics] = _NOTHING
    ) -> Iterator[tuple[Linears, ColumnStatistics | MomentStatistics]]:
        """Yield each input's linears and pooled statistics, and forget its sums.

        `public`: name of the linear -> second moments of its input on public text, whose
        correlations stand in for those that clients did not send; without it these are zero.
        """
        for linears in self.plans:
            told, pool = public.get(linears[0]), self.pools.pop(linears)
            if not isinstance(pool, SumsPool):
                yield linears, pool.statistic(told)
                continue
            sums = pool.statistic()
            yield linears, sums if told is None else completed(sums, told)


def check_moments(triangle: Triangle, name: str) -> None:
    """Refuse a matrix that no inputs have as second moments: not positive semi-definite."""
    matrix = torch.from_numpy(triangle.matrix())
    diagonal = matrix.diagonal()
    mean = float(diagonal.mean(dtype=torch.float64))
    if mean == 0.0:
        if bool(matrix.any()):
            raise WireError(f"the moments of {name} have a diagonal of zeros and are not zero.")
        return
    # Relative to the inputs' own sizes, so that one large input hides nothing of the others.
    roots = (diagonal.double() + _SHIFT * _SHIFT * mean).sqrt().float()
    scaled = matrix / roots / roots[:, None]
    largest = float(scaled.abs().max())
    scaled.diagonal().add_(_SHIFT + len(matrix) * _ROUNDING[triangle.precision])
    possible = largest <= 1 + _SHIFT
    if possible and len(matrix) <= _FACTORISED:
        possible = not int(torch.linalg.cholesky_ex(scaled)[1])
    if not possible:
        raise WireError(
            f"the moments of {name} are not those of any inputs: they are not positive "
            "semi-definite."
        )


def check_cross(triangle: Triangle, cross: Cross, name: str) -> float:
    """Refuse a cross moment that inputs of second moments G cannot have, beyond rounding.

    By the inequality of Cauchy and Schwarz ``E_ij**2 <= S_i G_jj``, and the dense model's own sums
    of squares, ``G_jj + 2 E_jj + S_j``, are not negative. Returns the sum of these.
    """
    diagonal, squares = triangle.diagonal.astype(np.float64), cross.squares.astype(np.float64)
    # What float32 sums of products may be off, relative to the mean column.
    room = _SHIFT * np.sqrt(diagonal.mean() * squares.mean())
    most = (1 + _SHIFT) * np.sqrt(squares)[:, None] * np.sqrt(diagonal) + room
    dense = diagonal + 2 * cross.values.diagonal().astype(np.float64) + squares
    least = -_SHIFT * (diagonal.mean() + squares.mean())
    if not bool((np.abs(cross.values) <= most).all()) or not bool((dense >= least).all()):
        raise WireError(
            f"the cross moment of {name} is not one of inputs with these second moments: entries "
            "are larger than Cauchy-Schwarz allows."
        )
    return float(dense.clip(0).sum())


def exact_columns(group: InputMoments) -> InputSums:
    """Return the sums of squares of an input of which nothing else is known."""
    exact = ExactSums(len(group.body.diagonal))
    exact.add(group.body.diagonal)
    return InputSums(group.linears, exact, group.tokens)


def _form(group: InputMoments) -> tuple[str, int]:
    body = group.body
    if isinstance(body, Columns):
        return "columns", 0
    if isinstance(body, Sketch):
        return body.kind, body.vectors.shape[1]
    return body.precision, 0
