"""The running second moments of a block's inputs, checked as they come from clients."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fedprune.errors import WireError
from fedprune.methods.completion import completed
from fedprune.methods.exchange import Aggregator, BlockTask, Contributor
from fedprune.methods.inputs import all_together, check_inputs, check_loudness, check_tokens
from fedprune.methods.moments import InputPlan, MomentPool, diagonal_of
from fedprune.methods.state import CountedSums, Keepable
from fedprune.methods.sums import SumsPool
from fedprune.methods.word_sums import Layout, Words, part_of, prefixed
from fedprune.pruning.statistics import ColumnStatistics, MomentStatistics
from fedprune.wire.moments import (
    Columns,
    Cross,
    InputMoments,
    Sketch,
    Triangle,
    decode_moments,
)
from fedprune.wire.sums import ExactSums, InputSums

R = TypeVar("R")

_NOTHING: Mapping[str, MomentStatistics] = {}
_SHIFT = 1e-3  # of a diagonal of ones: what an eigenvalue may be off, beside
_ROUNDING = {"float32": 2.0**-20, "float16": 2.0**-12}  # width times what one correlation may be
_FACTORISED = 4096  # width up to which it takes a second a client; beyond, entries are looked at


class MomentSums(CountedSums, Aggregator[list[InputMoments], R], Generic[R]):
    """Adds up what clients know of each input's products; what it comes to is for subclasses.

    `pooling`: `strategy.pooling`. `plans`: how the moments of each input travel.
    """

    def __init__(self, task: BlockTask, pooling: str, plans: Sequence[InputPlan]) -> None:
        self.task = task
        self.sums_integers = all(plan.form != "eigen" for plan in plans)
        self.plans = {plan.linears: plan for plan in plans}
        self.columns = {p.linears: SumsPool(pooling) for p in plans if p.form == "columns"}
        self.moments = {
            plan.linears: MomentPool(pooling, plan.seed) for plan in plans if plan.form != "columns"
        }

    def check(self, payload: bytes, client: Contributor) -> list[InputMoments]:
        """Decode moments, which must be of the form asked for, and could be of some texts."""
        shapes, asked = self.task.model.shapes[self.task.block], {n for p in self.plans for n in p}
        found = decode_moments(payload, {name: shapes[name] for name in shapes if name in asked})
        check_inputs([group.linears for group in found], list(self.plans))
        check_tokens({group.linears[0]: group.tokens for group in found}, self.task, client)
        for group in found:
            plan = self.plans[group.linears]
            if _form(group) != (plan.form, plan.rank):
                raise WireError(
                    f"the moments of {' '.join(group.linears)} must be of form '{plan.form}' and "
                    f"rank {plan.rank}, got another."
                )
            if (group.cross is not None) != plan.crossed:
                told = "with" if plan.crossed else "without"
                raise WireError(
                    f"the moments of {' '.join(group.linears)} must come {told} the cross moment "
                    "(`strategy.target`)."
                )
            total = float(diagonal_of(group).sum(dtype=np.float64))
            check_loudness(self.task, group.linears, total, group.tokens)
            if isinstance(group.body, Triangle):
                check_moments(group.body, " ".join(group.linears))
                if group.cross is not None:
                    self._check_cross(group, group.body, group.cross)
        return found

    def _check_cross(self, group: InputMoments, triangle: Triangle, cross: Cross) -> None:
        """Refuse a cross moment that no inputs can have, or only ones of another model."""
        name = " ".join(group.linears)
        dense = check_cross(triangle, cross, name)
        check_loudness(self.task, group.linears, dense, group.tokens)

    def add(self, answer: list[InputMoments], client: Contributor) -> None:
        """Add one client's checked moments."""
        for group in answer:
            if group.linears in self.columns:
                self.columns[group.linears].add(exact_columns(group))
            else:
                self.moments[group.linears].add(group)
        self.clients += 1

    def layout(self, clients: int) -> Layout:
        """Return the words of the moments, or the sums, of each input."""
        return prefixed(
            {
                linears[0]: self.columns[linears].layout(plan.width)
                if linears in self.columns
                else self.moments[linears].layout(plan)
                for linears, plan in self.plans.items()
            }
        )

    def words(self, answer: list[InputMoments], client: Contributor, clients: int) -> Words:
        """Return one client's checked moments as they are pooled."""
        found = {group.linears: group for group in answer}
        return prefixed(
            {
                linears[0]: self.columns[linears].words(exact_columns(found[linears]), clients)
                if linears in self.columns
                else self.moments[linears].words(found[linears], clients)
                for linears in self.plans
            }
        )

    def add_total(self, total: Mapping[str, NDArray[Any]], clients: Sequence[Contributor]) -> None:
        """Take the moments of all clients, which must be of the tokens that they promised."""
        seen = {linears[0]: int(total[f"{linears[0]}/counts"][1].item()) for linears in self.plans}
        check_tokens(seen, self.task, all_together(clients))
        for linears in self.plans:
            part = part_of(total, linears[0])
            if linears in self.columns:
                self.columns[linears].add_total(linears, part)
                continue
            pool = self.moments[linears]
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

    def parts(self) -> dict[str, Keepable]:
        """Return the sums of each input, by the first linear that reads it."""
        pools: dict[tuple[str, ...], Keepable] = {**self.columns, **self.moments}
        return {linears[0]: pool for linears, pool in pools.items()}

    def tokens(self) -> dict[str, int]:
        """Return linear -> tokens of all clients; of inputs whose sums are not yet taken."""
        return {
            name: pool.seen
            for pools in (self.columns, self.moments)
            for linears, pool in pools.items()
            for name in linears
        }

    def results(
        self, public: Mapping[str, MomentStatistics] = _NOTHING
    ) -> Iterator[tuple[tuple[str, ...], ColumnStatistics | MomentStatistics]]:
        """Yield each input's linears and pooled statistics, and forget its sums.

        `public`: name of the linear -> second moments of its input on public text, whose
        correlations stand in for those that clients did not send; without it these are zero.
        """
        for linears in self.plans:
            told = public.get(linears[0])
            if linears not in self.columns:
                yield linears, self.moments.pop(linears).statistic(told)
                continue
            sums = self.columns[linears].statistic()
            yield linears, sums if told is None else completed(sums, told)


def check_moments(triangle: Triangle, name: str) -> None:
    """Refuse a matrix that no inputs can have as their second moments: not positive semi-definite.

    Raises WireError if an entry is larger than its diagonal allows, or the matrix has a negative
    eigenvalue beyond rounding.
    """
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
    """Refuse a cross moment that inputs of these second moments cannot have.

    By the inequality of Cauchy and Schwarz ``E_ij**2 <= S_i G_jj``, and the dense model's own sums
    of squares, ``G_jj + 2 E_jj + S_j``, are not negative.

    `triangle`: G, the second moments of the inputs behind pruned blocks. Returns the sum over
    columns of the dense model's sums of squares. Raises WireError if an entry is larger than it can
    be, beyond rounding.
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
    exact = ExactSums(len(diagonal_of(group)))
    exact.add(diagonal_of(group))
    return InputSums(group.linears, exact, group.tokens)


def _form(group: InputMoments) -> tuple[str, int]:
    body = group.body
    if isinstance(body, Columns):
        return "columns", 0
    if isinstance(body, Sketch):
        return body.kind, body.vectors.shape[1]
    return body.precision, 0
