"""Fitting a pruned block's survivors to the dense block on all clients' texts: `reconstruct`.

It is an exchange like any other, held some times about a block after that was pruned, whatever
the method. Clients get the survivors, the server gets a sum of integers: of exact gradients
(`fedsgd`: the same bits whoever holds which text), or of what some local steps of Adam change,
weighted by tokens (`fedavg`, McMahan et al., arXiv 1602.05629, with the server's own step as in
Reddi et al., arXiv 2003.00295). Losses of held-out samples are sums too; the survivors of the
lowest one become the block's, those of the pruning exchange among them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.config import RunConfig
from fedprune.errors import ConfigError, ModelError, WireError
from fedprune.methods.exchange import Aggregator, Answer, BlockExchange, BlockTask, Contributor
from fedprune.methods.public_model import PublicModel
from fedprune.methods.state import Arrays, numbers
from fedprune.methods.word_sums import Layout, Words, signed
from fedprune.models.changes import changed_survivors
from fedprune.privacy.secure_sums import WordSpec
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.groups import BlockSpec
from fedprune.pruning.paired import PairedWalk
from fedprune.pruning.reconstruction import (
    BETAS,
    EPSILON,
    FRACTION_BITS,
    MOST_LOSS,
    BlockFit,
    Losses,
    unit_of,
)
from fedprune.results.text import size_text
from fedprune.wire.arrays import ArraySpec, decode_arrays, encode_arrays, most_bytes
from fedprune.wire.changes import Change, SparseWeight, mask_of
from fedprune.wire.quantized import QuantizedWeight

_LOSSES = "losses"
_ONE = 1 << FRACTION_BITS
_PATIENCE = 2  # measurements in a row that need not improve
_GRID = 32767  # steps of what local steps can change at most, to either side


class Rule(ABC):
    """How survivors move by what clients send of them; a subclass for each `reconstruct.name`.

    `config`: `reconstruct`. `step`: the exchange about the block, from 0.
    """

    dtype: str  # of the integers that a client sends of each survivor

    def __init__(self, config: RunConfig, step: int) -> None:
        self.keys = config.reconstruct
        # It falls to zero: what is left at the end is then not the noise of the last step.
        self.rate = self.keys.learning_rate * (1 - step / self.keys.exchanges)
        self.step = step

    @abstractmethod
    def answer(self, fit: BlockFit) -> tuple[dict[str, Tensor], Losses]:
        """Return a client's integers, linear -> (survivors,), and its losses."""

    @abstractmethod
    def share(self, sent: NDArray[Any], losses: Losses) -> NDArray[np.int64]:
        """Return what a client's integers are in the sum; WireError if they cannot be."""

    @abstractmethod
    def moved(
        self, total: NDArray[np.int64], tokens: int, memory: list[NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        """Return how far a linear's survivors move, in units, by the sum over clients.

        ``memory`` is what is kept from exchange to exchange, two arrays of zeros at first; changed
        in place.
        """


class SumOfGradients(Rule):
    """FedSGD: the gradient of all texts, as if in one place, and one step of Adam with it."""

    dtype = "int64"

    def answer(self, fit: BlockFit) -> tuple[dict[str, Tensor], Losses]:
        return fit.gradient()

    def share(self, sent: NDArray[Any], losses: Losses) -> NDArray[np.int64]:
        """See `Rule.share`: a token's part is at most one."""
        most = losses.fitted_tokens * _ONE
        if int(sent.max(initial=0)) > most or int(sent.min(initial=0)) < -most:
            raise WireError(f"a gradient is larger than {losses.fitted_tokens} tokens can make it.")
        return sent.astype(np.int64)

    def moved(
        self, total: NDArray[np.int64], tokens: int, memory: list[NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        """See `Rule.moved` (Adam, Kingma and Ba, arXiv 1412.6980)."""
        gradient = total.astype(np.float64) / (max(tokens, 1) * _ONE)
        for kept, beta, new in zip(memory, BETAS, (gradient, gradient**2), strict=True):
            kept *= beta
            kept += (1 - beta) * new
        mean, square = (
            kept / (1 - beta ** (self.step + 1)) for kept, beta in zip(memory, BETAS, strict=True)
        )
        found: NDArray[np.float64] = -self.rate * mean / (np.sqrt(square) + EPSILON)
        return found


class LocalSteps(Rule):
    """FedAvg: some steps of Adam on each client's own samples, and the mean of the changes.

    A change is sent in 16 bits of what so many steps can change at most, so that no client can
    say more than that.
    """

    dtype = "int16"

    @property
    def unit(self) -> float:
        """What one step of the grid is, in units of a matrix's root mean square weight."""
        return 2 * self.keys.local_steps * self.rate / _GRID

    def answer(self, fit: BlockFit) -> tuple[dict[str, Tensor], Losses]:
        moved, losses = fit.local_steps(self.keys.local_steps, self.rate)
        grid = {
            name: (one.double() / self.unit).round().clamp(-_GRID, _GRID).to(torch.int16)
            for name, one in moved.items()
        }
        return grid, losses

    def share(self, sent: NDArray[Any], losses: Losses) -> NDArray[np.int64]:
        """See `Rule.share`: weighted by tokens."""
        if int(sent.min(initial=0)) < -_GRID:
            raise WireError("a change of survivors is more than local steps can make.")
        return sent.astype(np.int64) * losses.fitted_tokens

    def moved(
        self, total: NDArray[np.int64], tokens: int, memory: list[NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        """See `Rule.moved`: `reconstruct.server_rate` of the mean, with momentum."""
        mean = total.astype(np.float64) * (self.unit / max(tokens, 1))
        velocity = memory[0]
        velocity *= self.keys.momentum
        velocity += mean
        found: NDArray[np.float64] = self.keys.server_rate * velocity
        return found


RULES: Mapping[str, type[Rule]] = {"fedsgd": SumOfGradients, "fedavg": LocalSteps}
"""`reconstruct.name` -> how survivors move."""


@dataclass(frozen=True)
class Step:
    """What all clients say of a block's survivors as they are."""

    # linear -> sum over clients, (survivors,); empty where only losses were asked for
    sums: Mapping[str, NDArray[np.int64]]
    losses: Losses
    clients: int


class ReconstructExchange(BlockExchange):
    """Ask every client which way a block's survivors are to go, and how far they are off."""

    name = "reconstruct"
    payload = "gradients"
    refines = True
    carries_dense = True
    step = 0  # the exchange about the block, from 0; the one after the last asks for losses alone

    @property
    def form(self) -> str:
        return "fedprune.reconstruct.v1"

    def at(self, step: int) -> Self:
        """Go on to an exchange about the same block; one after the last measures alone."""
        if not 0 <= step <= self.config.reconstruct.exchanges:
            raise WireError(
                f"`reconstruct.exchanges` is {self.config.reconstruct.exchanges}, number {step} "
                "was asked for."
            )
        self.step = step
        return self

    @property
    def measures(self) -> bool:
        """Whether only losses are asked for: of the survivors after the last step."""
        return self.step >= self.config.reconstruct.exchanges

    @property
    def rule(self) -> Rule:
        """How survivors move in this exchange."""
        return RULES[self.config.reconstruct.name](self.config, self.step)

    def answer(self, walk: BlockWalk, spec: BlockSpec, local_prefix: bool) -> Answer:
        """Return this client's sums about the block where a walk stands."""
        if not isinstance(walk, PairedWalk):
            raise TypeError("survivors are fitted on a walk that carries the dense model's states.")
        fit = BlockFit(walk, self.config.seed, self.config.reconstruct.holdout)
        sent: dict[str, Tensor] = {}
        if self.measures:
            losses = fit.measured(fit.start)
        else:
            sent, losses = self.rule.answer(fit)
        arrays: dict[str, NDArray[Any]] = {n: one.cpu().numpy() for n, one in sent.items()}
        return Answer(encode_arrays({**arrays, _LOSSES: np.array(losses.numbers())}))

    def expected(self, survivors: Mapping[str, int]) -> dict[str, ArraySpec]:
        """Return the arrays of an answer; ``survivors``: linear -> how many it has."""
        moves = {} if self.measures else survivors
        found = {name: ArraySpec(self.rule.dtype, (count,)) for name, count in moves.items()}
        return {**found, _LOSSES: ArraySpec("int64", (4,))}

    def most_bytes(self, model: PublicModel, block: int) -> int:
        whole = {name: rows * columns for name, (rows, columns) in model.shapes[block].items()}
        return most_bytes(self.expected(whole))

    def aggregator(self, task: BlockTask) -> "StepAggregator":
        """Return empty sums; ``task.before`` is what the block is now."""
        return StepAggregator(self, task)

    def announcement(self, model: PublicModel) -> str:
        """Say what it costs at most."""
        keys, up, down = self.config.reconstruct, 0, 0
        for block, shapes in enumerate(model.shapes):
            kept = 1 - self.config.sparsity  # on average, however the zeros are spread
            for name, (rows, columns) in shapes.items():
                survivors = round(kept * rows * columns)
                up += survivors * np.dtype(self.rule.dtype).itemsize
                down += survivors * model.weight(block, name).element_size() + rows * columns // 8
        return (
            f"every block's survivors are then fitted to the dense block ({keys.name}, up to "
            f"{keys.exchanges} exchanges): every client will send up to "
            f"{size_text(up * keys.exchanges)} more and get up to "
            f"{size_text(down * (keys.exchanges + 1))}"
        )


class StepAggregator(Aggregator[tuple[dict[str, NDArray[Any]], Losses], Step]):
    """Adds up which way clients' texts move a block's survivors, as integers."""

    sums_integers = True

    def __init__(self, exchange: ReconstructExchange, task: BlockTask) -> None:
        self.exchange, self.task = exchange, task
        survivors = {name: mask_of(one).survivors for name, one in task.before.items()}
        self._expected = exchange.expected(survivors)
        self._sums = {
            name: np.zeros(spec.shape, dtype=np.int64)
            for name, spec in self._expected.items()
            if name != _LOSSES
        }
        self._losses = Losses()
        self._clients = 0

    def check(self, payload: bytes, client: Contributor) -> tuple[dict[str, NDArray[Any]], Losses]:
        """Decode a client's integers, which must be what its tokens can make."""
        arrays = decode_arrays(payload, self._expected)
        losses = Losses(*(int(n) for n in arrays.pop(_LOSSES)))
        if not _possible(losses):
            raise WireError(f"a loss must be from 0 to {MOST_LOSS} a token, of 0 tokens 0.")
        tokens = losses.fitted_tokens + losses.held_out_tokens
        if client.tokens and tokens != client.tokens:
            raise WireError(
                f"its losses are of {tokens} tokens, in the handshake it promised {client.tokens}."
            )
        rule = self.exchange.rule
        return {name: rule.share(array, losses) for name, array in arrays.items()}, losses

    def add(self, answer: tuple[dict[str, NDArray[Any]], Losses], client: Contributor) -> None:
        """Add a client's checked integers."""
        for name, share in answer[0].items():
            self._sums[name] += share
        self._losses += answer[1]
        self._clients += 1

    def layout(self, clients: int) -> Layout:
        sizes = {name: one.size for name, one in self._sums.items()} | {_LOSSES: 4}
        return {name: WordSpec(count, 64) for name, count in sizes.items()}

    def words(
        self, answer: tuple[dict[str, NDArray[Any]], Losses], client: Contributor, clients: int
    ) -> Words:
        found = {name: signed(share) for name, share in answer[0].items()}
        return found | {_LOSSES: signed(answer[1].numbers())}

    def add_total(self, total: Mapping[str, NDArray[Any]], clients: Sequence[Contributor]) -> None:
        losses = Losses(*(int(n) for n in total[_LOSSES].view(np.int64)))
        if not _possible(losses):
            raise WireError("the sum of losses is none that clients can have.")
        for name in self._sums:
            self._sums[name] += total[name].view(np.int64)
        self._losses += losses
        self._clients += len(clients)

    def close(self) -> Step:
        return Step(self._sums, self._losses, self._clients)

    def state(self) -> Arrays:
        losses = np.array(self._losses.numbers(), dtype=np.int64)
        return {"clients": numbers(self._clients), _LOSSES: losses, **self._sums}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        (self._clients,) = (int(n) for n in arrays["clients"])
        self._losses = Losses(*(int(n) for n in arrays[_LOSSES]))
        self._sums = {name: arrays[name].astype(np.int64) for name in self._sums}


class Refinement:
    """A block's survivors on the server from exchange to exchange: where they are, which were best.

    `weights`: linear -> public weight, (d_out, d_in). `step`: the exchange that is to be held, from
    0.
    """

    def __init__(
        self,
        exchange: ReconstructExchange,
        weights: Mapping[str, Tensor],
        changes: Mapping[str, Change],
    ) -> None:
        self._exchange, self._changes = exchange, changes
        self._dtypes = {name: weights[name].dtype for name in changes}
        self._units = {name: unit_of(weights[name]) for name in changes}
        self._now = {name: _values(change, weights[name]) for name, change in changes.items()}
        self._best = {name: one.copy() for name, one in self._now.items()}
        self._memory = {
            name: [np.zeros_like(one), np.zeros_like(one)] for name, one in self._now.items()
        }
        self._losses: list[Losses] = []
        self._best_step = 0
        self.step = 0

    def changes(self) -> Mapping[str, Change]:
        """Return what the block is now, as clients get it."""
        if not self.step:  # as the method made it: masks are fewer bytes than values
            return self._changes
        return self._made(self._now)

    def best(self) -> Mapping[str, Change]:
        """Return the survivors whose loss was lowest; the method's own where none was lower."""
        return self._made(self._best) if self._best_step else self._changes

    @property
    def moved(self) -> bool:
        """Whether :meth:`best` differs from what the method made."""
        return self._best_step > 0

    def advance(self, step: Step) -> bool:
        """Move by an exchange's sums; return whether another is to be held."""
        self._losses.append(step.losses)
        if self._loss(len(self._losses) - 1) < self._loss(self._best_step) or not self.step:
            self._best_step = self.step
            self._best = {name: one.copy() for name, one in self._now.items()}
        tired = self.step - self._best_step >= _PATIENCE
        if self._exchange.at(self.step).measures or tired or not step.losses.fitted_tokens:
            return False
        rule = self._exchange.at(self.step).rule
        for name, total in step.sums.items():
            moved = rule.moved(total, step.losses.fitted_tokens, self._memory[name])
            self._now[name] += self._units[name] * moved
        self.step += 1
        return True

    def figures(self, block: int) -> dict[str, Any]:
        """Return what the results tell: plain JSON values."""
        means = [self._mean(losses) for losses in self._losses]
        return {"block": block, "exchanges": len(means), "kept": self._best_step, "losses": means}

    def state(self) -> Arrays:
        """Return all that changes, as :meth:`restore` takes it."""
        found: Arrays = {
            "step": numbers(self.step, self._best_step),
            "losses": np.array([one.numbers() for one in self._losses], dtype=np.int64),
        }
        for name, (first, second) in self._memory.items():
            parts = {"now": self._now[name], "best": self._best[name]}
            parts |= {"first": first, "second": second}
            found |= {f"{part}/{name}": array for part, array in parts.items()}
        return found

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError or ValueError if that is another block's."""
        self.step, self._best_step = (int(n) for n in arrays["step"])
        self._losses = [Losses(*(int(n) for n in row)) for row in arrays["losses"]]
        for name in self._now:
            self._now[name] = arrays[f"now/{name}"].copy()
            self._best[name] = arrays[f"best/{name}"].copy()
            self._memory[name] = [arrays[f"{part}/{name}"].copy() for part in ("first", "second")]

    def _mean(self, losses: Losses) -> float | None:
        """Return the loss a token of what is held out; of what is fitted where nothing is."""
        whole, tokens = losses.held_out, losses.held_out_tokens
        if not tokens:
            whole, tokens = losses.fitted, losses.fitted_tokens
        return whole / (tokens * _ONE) if tokens else None

    def _loss(self, step: int) -> float:
        mean = self._mean(self._losses[step])
        return float("inf") if mean is None else mean

    def _made(self, values: Mapping[str, NDArray[np.float64]]) -> dict[str, Change]:
        made: dict[str, Change] = {}
        for name, one in values.items():
            stored = torch.from_numpy(one).to(self._dtypes[name])
            if not bool(torch.isfinite(stored).all()):
                raise ModelError(
                    f"linear '{name}': fitted survivors are too large for "
                    f"{self._dtypes[name]}. Lower `reconstruct.learning_rate`."
                )
            made[name] = SparseWeight(mask_of(self._changes[name]), stored)
        return made


def _possible(losses: Losses) -> bool:
    """Whether losses, or their sums, are such as so many tokens can have."""
    return all(
        0 <= loss <= tokens * MOST_LOSS * _ONE
        for loss, tokens in (
            (losses.fitted, losses.fitted_tokens),
            (losses.held_out, losses.held_out_tokens),
        )
    )


def _values(change: Change, weight: Tensor) -> NDArray[np.float64]:
    """Return the survivors of a matrix in row-major order, float64, shape (survivors,)."""
    if isinstance(change, QuantizedWeight):
        raise ConfigError("Quantised weights cannot be fitted. Set reconstruct=none.")
    values: NDArray[np.float64] = changed_survivors(weight, change).values.double().numpy()
    return values
