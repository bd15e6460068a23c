"""FedHessian: clients send second moments, the server reconstructs as if it held all texts.

The Hessian of a linear's output error is the sum over tokens of x x^T, and so over clients: one
SparseGPT, ALPS or SparseSwaps at the server takes the place of many at the clients and a mean of
what they made. Moments travel whole, or as sketches of a few columns each.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from logging import INFO
from typing import Any

import torch
from flwr.common.logger import log
from numpy.typing import NDArray

from fedprune.errors import WireError
from fedprune.methods.moments import InputPlan, MomentPool, diagonal_of, plan_inputs
from fedprune.methods.state import Arrays, Keepable, gathered, numbers, scattered
from fedprune.methods.sums import SumsPool
from fedprune.pruning.groups import result_spec
from fedprune.pruning.registry import make_pruner
from fedprune.pruning.statistics import ColumnStatistics, MomentStatistics
from fedprune.pruning.wanda import WithWandaFallback
from fedprune.results.text import size_text
from fedprune.wire.changes import Change
from fedprune.wire.moments import Columns, InputMoments, Sketch, Triangle, decode_moments
from fedprune.wire.sums import ExactSums, InputSums
from strategies.pooled import PooledPruning
from strategies.pools import check_inputs, pooling_of
from strategies.state import BlockResult


class FedHessian(PooledPruning[InputMoments, "BlockMoments"]):
    """Reconstruction on summed second moments, iterative or one-shot."""

    def block_bytes(self, block: int) -> int:
        """Return the most bytes that a client's moments of a block can take."""
        return sum(plan.most_bytes for plan in self._plans(block))

    def summary(self) -> None:
        """Log what will happen, and what it costs."""
        super().summary()
        total = sum(map(self.block_bytes, range(len(self.plan.shapes))))
        mask = sum(map(self.plan.mask_bytes, range(len(self.plan.shapes))))
        log(
            INFO,
            "every client will send about %s of second moments (%s; its masks would be %s)",
            size_text(total),
            self.config.strategy.moments,
            size_text(mask),
        )

    def new_pool(self, block: int) -> "BlockMoments":
        """Return an empty pool for a block's moments."""
        return BlockMoments(self._plans(block), self.config.strategy.pooling)

    def decoded(self, data: bytes, block: int) -> list[InputMoments]:
        """Return a client's moments of a block."""
        return decode_moments(data, self.plan.shapes[block])

    def prune(self, block: int, pool: "BlockMoments") -> BlockResult:
        """Reconstruct a block on the pooled moments."""
        # An input of which only sums are known is pruned on these.
        pruner = WithWandaFallback(make_pruner(self.config.pruner))
        spec = result_spec(self.config, block, len(self.plan.shapes))
        changes: dict[str, Change] = {}
        for linears, known in pool.results():
            for name in linears:
                changes[name] = pruner.prune(self.plan.weight(block, name), known, spec)
        ordered = {name: changes[name] for name in self.plan.shapes[block]}
        return BlockResult(block, ordered, pool.clients, pool.clients)

    def _plans(self, block: int) -> list[InputPlan]:
        return plan_inputs(self.config, block, self.plan.inputs[block], self.plan.shapes[block])


@dataclass
class BlockMoments:
    """The pools of one block's inputs."""

    plans: list[InputPlan]
    mode: str
    clients: int = 0
    _moments: dict[tuple[str, ...], MomentPool] = field(init=False)
    _sums: dict[tuple[str, ...], SumsPool] = field(init=False)

    def __post_init__(self) -> None:
        """Make empty pools."""
        mode = pooling_of(self.mode)
        wide = [plan for plan in self.plans if plan.form == "columns"]
        self._sums = {plan.linears: SumsPool(mode) for plan in wide}
        self._moments = {
            plan.linears: MomentPool(mode, plan.seed) for plan in self.plans if plan not in wide
        }

    def check(self, groups: list[InputMoments]) -> None:
        """Refuse moments that are not in the form that was asked for."""
        check_inputs([group.linears for group in groups], [plan.linears for plan in self.plans])
        plans = {plan.linears: plan for plan in self.plans}
        for group in groups:
            plan = plans[group.linears]
            if _form(group) != (plan.form, plan.rank):
                raise WireError(
                    f"the moments of {' '.join(group.linears)} must be of form '{plan.form}' and "
                    f"rank {plan.rank}, got another."
                )

    def add(self, groups: list[InputMoments]) -> None:
        """Add one client's checked moments."""
        for group in groups:
            if group.linears in self._sums:
                exact = ExactSums(len(diagonal_of(group)))
                exact.add(diagonal_of(group))
                self._sums[group.linears].add(InputSums(group.linears, exact, group.tokens))
            else:
                self._moments[group.linears].add(group)
        self.clients += 1

    def state(self) -> Arrays:
        """Return the sums as arrays."""
        return {"counts": numbers(self.clients), **gathered(self._parts())}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError or ValueError if that is another block's."""
        (self.clients,) = (int(n) for n in arrays["counts"])
        scattered(arrays, self._parts())

    def _parts(self) -> dict[str, Keepable]:
        pools: dict[tuple[str, ...], Keepable] = {**self._sums, **self._moments}
        return {linears[0]: pool for linears, pool in pools.items()}

    def results(self) -> Iterator[tuple[tuple[str, ...], ColumnStatistics | MomentStatistics]]:
        """Yield each input's linears and pooled statistics."""
        for plan in self.plans:
            if plan.linears in self._sums:
                sums, tokens = self._sums[plan.linears].result()
                yield plan.linears, ColumnStatistics(torch.from_numpy(sums), tokens)
            else:
                yield plan.linears, MomentStatistics(*self._moments.pop(plan.linears).result())


def _form(group: InputMoments) -> tuple[str, int]:
    body = group.body
    if isinstance(body, Columns):
        return "columns", 0
    if isinstance(body, Sketch):
        return body.kind, body.vectors.shape[1]
    if isinstance(body, Triangle):
        return body.precision, 0
    raise WireError("moments must be a triangle, a sketch or column sums.")
