"""The running second moments of one block's inputs, and its reconstruction on their sum."""

from collections.abc import Iterator, Sequence

import torch

from fedprune.errors import WireError
from fedprune.methods.exchange import (
    BlockAggregator,
    BlockExchange,
    BlockResult,
    BlockTask,
    Contributor,
)
from fedprune.methods.inputs import check_inputs, check_tokens
from fedprune.methods.moments import InputPlan, MomentPool, diagonal_of
from fedprune.methods.state import CountedSums, Keepable
from fedprune.methods.sums import SumsPool
from fedprune.pruning.registry import make_pruner
from fedprune.pruning.statistics import ColumnStatistics, MomentStatistics
from fedprune.pruning.wanda import WithWandaFallback
from fedprune.wire.moments import Columns, InputMoments, Sketch, Triangle, decode_moments
from fedprune.wire.sums import ExactSums, InputSums

_SHIFT = 1e-3  # of a diagonal of ones: what an eigenvalue may be off, beside
_ROUNDING = {"float32": 2.0**-20, "float16": 2.0**-12}  # width times what one correlation may be
_FACTORISED = 4096  # width up to which it takes a second a client; beyond, entries are looked at


class MomentAggregator(CountedSums, BlockAggregator[list[InputMoments]]):
    """Adds up what clients know of each input's products and reconstructs the block on the sums.

    Parameters
    ----------
    exchange : BlockExchange
        Its configuration is followed.
    task : BlockTask
        The block.
    plans : Sequence[InputPlan]
        How the moments of each input travel.
    """

    def __init__(
        self, exchange: BlockExchange, task: BlockTask, plans: Sequence[InputPlan]
    ) -> None:
        super().__init__(exchange, task)
        self._plans = {plan.linears: plan for plan in plans}
        pooling = exchange.config.strategy.pooling
        self._sums = {p.linears: SumsPool(pooling) for p in plans if p.form == "columns"}
        self._moments = {
            plan.linears: MomentPool(pooling, plan.seed) for plan in plans if plan.form != "columns"
        }

    def check(self, payload: bytes, client: Contributor) -> list[InputMoments]:
        """Decode moments, which must be of the form asked for, and could be of some texts."""
        found = decode_moments(payload, self.shapes)
        check_inputs([group.linears for group in found], list(self._plans))
        check_tokens([group.tokens for group in found], client)
        for group in found:
            plan = self._plans[group.linears]
            if _form(group) != (plan.form, plan.rank):
                raise WireError(
                    f"the moments of {' '.join(group.linears)} must be of form '{plan.form}' and "
                    f"rank {plan.rank}, got another."
                )
            if isinstance(group.body, Triangle):
                check_moments(group.body, " ".join(group.linears))
        return found

    def add(self, answer: list[InputMoments], client: Contributor) -> None:
        """Add one client's checked moments."""
        for group in answer:
            if group.linears in self._sums:
                exact = ExactSums(len(diagonal_of(group)))
                exact.add(diagonal_of(group))
                self._sums[group.linears].add(InputSums(group.linears, exact, group.tokens))
            else:
                self._moments[group.linears].add(group)
        self.clients += 1

    def close(self) -> BlockResult:
        """Reconstruct the block on the pooled moments."""
        # An input of which only sums are known is pruned on these.
        pruner = WithWandaFallback(make_pruner(self.exchange.config.pruner))
        return self.pruned_on(self._results(), pruner, self.clients)

    def parts(self) -> dict[str, Keepable]:
        """Return the sums of each input, by the first linear that reads it."""
        pools: dict[tuple[str, ...], Keepable] = {**self._sums, **self._moments}
        return {linears[0]: pool for linears, pool in pools.items()}

    def _results(self) -> Iterator[tuple[tuple[str, ...], ColumnStatistics | MomentStatistics]]:
        """Yield each input's linears and pooled statistics, and forget its sums."""
        for linears in self._plans:
            if linears in self._sums:
                sums, tokens = self._sums[linears].result()
                yield linears, ColumnStatistics(torch.from_numpy(sums), tokens)
            else:
                yield linears, MomentStatistics(*self._moments.pop(linears).result())


def check_moments(triangle: Triangle, name: str) -> None:
    """Refuse a matrix that no inputs can have as their second moments: not positive semi-definite.

    Raises
    ------
    WireError
        If an entry is larger than its diagonal allows, or the matrix has a negative eigenvalue
        beyond rounding.
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


def _form(group: InputMoments) -> tuple[str, int]:
    body = group.body
    if isinstance(body, Columns):
        return "columns", 0
    if isinstance(body, Sketch):
        return body.kind, body.vectors.shape[1]
    return body.precision, 0
