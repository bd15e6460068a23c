"""Weights of clients under which the one that is served worst is served best.

A pruner that sees a sum of clients' statistics serves those best who make up most of it. Here the
sum is weighed, ``sum_i f_i S_i``, and the weights are sought for which the largest relative error
over clients is smallest: ``min_f max_i error_i(f)``. That is a game of the server, who prunes,
against one who chooses the weights; multiplicative weights (Freund and Schapire, "Adaptive game
playing using multiplicative weights", Games and Economic Behavior 29, 1999) play it: a client's
weight is multiplied by ``exp(eta error_i / max_j error_j)``. Pruning is no convex problem, so that
nothing is proven here: each round starts at the best so far, eta is halved by each that is no
better, and the first, in which all weigh the same, is one of them.

A client's relative error is the mean over the linears that share an input of
``tr(D G_i D^T) / tr(W G_i W^T)``, with D what the weight W has lost and G_i the client's own second
moments of the input, or their diagonal where no more is known: the share of its outputs that goes.

It is no sum: the server keeps what each client sent of a block, on its disk.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from logging import getLogger
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.disk import home
from fedprune.errors import ConfigError, ModelError
from fedprune.methods.exchange import BlockAggregator, BlockResult, BlockTask, Contributor
from fedprune.methods.inputs import Linears, PooledInputs
from fedprune.methods.state import Arrays, numbers
from fedprune.models.changes import lost_weight
from fedprune.pruning.pruner import Pruner
from fedprune.pruning.statistics import ColumnSums, MomentStatistics, Statistic
from fedprune.results.text import size_text
from fedprune.results.words import weight_sentences
from fedprune.spill import Spill
from fedprune.wire.changes import Change
from fedprune.wire.moments import InputMoments
from fedprune.wire.sums import InputSums

T = TypeVar("T")
Factors = NDArray[np.float64]

ROUNDS = 8
"""How often an input's linears are pruned at most; the last rounds gain little."""

_RATE = 3.0  # the first eta: smaller is slow for so few rounds

_log = getLogger("flwr")


@dataclass(frozen=True)
class Served(Generic[T]):
    """The best round."""

    made: T  # what was made of the weighed sum
    factors: Factors  # what each client's sums were multiplied by, shape (clients,), their mean 1
    errors: NDArray[np.float64]  # each client's relative error, shape (clients,)
    first: NDArray[np.float64]  # the same where all weigh the same


def serve_worst(
    attempt: Callable[[Factors], tuple[T, NDArray[np.float64]]], clients: int, rounds: int = ROUNDS
) -> Served[T]:
    """Return the round in which the largest error over clients is smallest.

    `attempt`: what each client's sums are multiplied by -> what is made of the sum, and each
    client's error, not negative. The first round has a factor of exactly 1 for each, and where all
    errors are equal it is the only one.
    """
    factors = np.ones(clients)
    made, first = attempt(factors)
    best = Served(made, factors, first, first)
    rate = _RATE
    for _ in range(rounds - 1):
        worst = best.errors.max()
        if not worst or (best.errors == worst).all():
            break
        # Relative to the largest, so that no exponential is above 1.
        factors = best.factors * np.exp(rate * (best.errors / worst - 1))
        factors = factors * (clients / factors.sum())
        made, errors = attempt(factors)
        if errors.max() < worst:
            best = Served(made, factors, errors, first)
        else:
            rate /= 2
    return best


def relative_error(
    weight: Tensor,
    change: Change,
    known: Statistic,
    outputs: Tensor | None = None,
    whole: float | None = None,
) -> float:
    """Return the share of a linear's outputs that a client loses, squared.

    `weight`: W, shape (d_out, d_in). `known`: what the client knows of its inputs: G, or its
    diagonal. `outputs`: M, shape (d_out, d_out): what the loss minds of the outputs, where that is
    known. Errors are then ``tr(M D G D^T)``. `whole`: :func:`outputs_energy`, where it is known
    already. Returns ``tr(D G D^T) / tr(W G W^T)``; 0 where the outputs are zero.
    """
    if whole is None:
        whole = outputs_energy(weight, known, outputs)
    return _energy(lost_weight(weight, change), known, outputs) / whole if whole else 0.0


def outputs_energy(weight: Tensor, known: Statistic, outputs: Tensor | None = None) -> float:
    """Return ``tr(W G W^T)``, how large the outputs of a client are; errors are a share of it."""
    return _energy(weight.to(torch.float32), known, outputs)


def _energy(matrix: Tensor, known: Statistic, outputs: Tensor | None) -> float:
    left = matrix if outputs is None else outputs.to(matrix.device) @ matrix
    if isinstance(known, MomentStatistics):
        right = matrix @ known.moments.to(matrix.device)
    elif isinstance(known, ColumnSums):
        right = matrix * known.sums.to(matrix.device)
    else:
        raise TypeError(f"errors are told by second moments or their diagonal, got {known}.")
    return max(0.0, float((left * right).sum(dtype=torch.float64)))


A = TypeVar("A", bound=InputSums | InputMoments)


@dataclass(frozen=True)
class Form(Generic[A]):
    """How what clients send is kept, and what it comes to."""

    # encode, decode: answers -> bytes; bytes and the shapes of the linears that they are about ->
    # answers
    encode: Callable[[Sequence[A]], bytes]
    decode: Callable[[memoryview, Mapping[str, tuple[int, int]]], list[A]]
    # answers about one input, each with what it is multiplied by -> the statistic of their sum;
    # with factors of 1 that of pooling by tokens, to the bit
    pool: Callable[[Iterable[tuple[A, float]]], Statistic]


@dataclass(frozen=True)
class _Place:
    """Whose answer lies where, and of how many tokens it is."""

    client: str
    tokens: int
    start: int
    size: int


class KeptAnswers(Generic[A]):
    """What each client sent of one input, in a spill that several inputs may share."""

    def __init__(self, form: Form[A], shapes: Mapping[str, tuple[int, int]], spill: Spill) -> None:
        self._form = form
        self._shapes = shapes
        self._spill = spill
        self._places: list[_Place] = []

    def add(self, answer: A, client: Contributor) -> None:
        """Put one client's answer away.

        Raises ModelError if the disk is full.
        """
        self._put(client.name, answer.tokens, self._form.encode([answer]))

    def _put(self, client: str, tokens: int, data: bytes) -> None:
        try:
            start = self._spill.write(data)
        except OSError as error:
            raise ModelError(
                f"`strategy.pooling` 'worst' keeps what each client sent of a block in '{home()}', "
                f"which cannot take it: {error.strerror}. Free disk space, set "
                "strategy.pooling=clients, or let clients send less (strategy.moments=eigen)."
            ) from error
        self._places.append(_Place(client, tokens, start, len(data)))

    @property
    def seen(self) -> int:
        """Tokens of all clients."""
        return sum(place.tokens for place in self._places)

    @property
    def clients(self) -> tuple[str, ...]:
        """Those who know anything, in an order that is not that of their arrival."""
        return tuple(place.client for place in self._counted())

    @property
    def tokens(self) -> NDArray[np.float64]:
        """The tokens of each of :attr:`clients`."""
        return np.array([place.tokens for place in self._counted()], dtype=np.float64)

    def own(self) -> Iterator[Statistic]:
        """Yield what each of :attr:`clients` knows, one after another."""
        for place in self._counted():
            yield self._form.pool([(self._read(place), 1.0)])

    def pooled(self, factors: Factors) -> Statistic:
        """Return the weighed sum of what :attr:`clients` know.

        Where nobody knows anything it is of no token.
        """
        places = self._counted() or self._places
        times = factors if self._counted() else np.ones(len(places))
        weighed = zip(places, times, strict=True)
        return self._form.pool((self._read(place), float(one)) for place, one in weighed)

    def _counted(self) -> list[_Place]:
        return sorted((p for p in self._places if p.tokens), key=lambda place: place.client)

    def _read(self, place: _Place) -> A:
        data = self._spill.read(place.start, place.size).data
        (found,) = self._form.decode(data, self._shapes)
        return found

    def state(self) -> Arrays:
        """Return what was sent as arrays; they lie on the disk."""
        if not self._places:
            return {}
        names = "\0".join(place.client for place in self._places).encode()
        return {
            "clients": np.frombuffer(names, dtype=np.uint8),
            "tokens": numbers(*(place.tokens for place in self._places)),
            **{f"sent-{n}": self._spill.read(p.start, p.size) for n, p in enumerate(self._places)},
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError or ValueError if that is another's."""
        if not arrays:
            return
        names = arrays["clients"].tobytes().decode().split("\0")
        for number, (name, tokens) in enumerate(zip(names, arrays["tokens"], strict=True)):
            self._put(name, int(tokens), arrays[f"sent-{number}"].tobytes())


class KeepsAnswers(PooledInputs[A, BlockResult], BlockAggregator[dict[Linears, A]]):
    """The part of an aggregator that keeps each client's answers, where they are not added up."""

    def keep(self, form: Form[A]) -> None:
        """Begin to keep what clients send of each input, in place of pools."""
        self.sums_integers, spill = False, Spill()
        for linears in self.pools:
            shapes = {name: self.shapes[name] for name in linears}
            self.pools[linears] = KeptAnswers(form, shapes, spill)

    def add(self, answer: dict[Linears, A], client: Contributor) -> None:
        """Put away one client's checked answers."""
        for linears, one in answer.items():
            self.pools[linears].add(one, client)
        self.clients += 1

    def serve_worst(self, pruner: Pruner) -> tuple[BlockResult, dict[Linears, Factors]]:
        """Prune the block on weighed sums, and say in the run's figures which weights these are.

        Each input has weights of its own; what is told of a client is its mean share over inputs.
        Returns the block, and the linears of each input -> by what clients' sums were multiplied.
        """
        changes = dict[str, Change]()
        factors = dict[Linears, Factors]()
        served = list[tuple[KeptAnswers[A], Served[dict[str, Change]]]]()
        outputs = self.task.model.output_moments(self.task.block)
        for linears, answers in self.pools.items():
            if not answers.clients:
                factors[linears] = np.ones(0)
                nothing = answers.pooled(factors[linears])
                changes |= self.pruned(linears, nothing, pruner, outputs)
                continue
            attempt = _Attempt(self, linears, answers, pruner, outputs)
            found = serve_worst(attempt, len(answers.clients))
            changes |= found.made
            factors[linears] = found.factors
            served.append((answers, found))
        _tell(self.task, served)
        ordered = {name: changes[name] for name in self.shapes}
        block, tokens = self.task.block, self.tokens()
        return BlockResult(block, ordered, self.clients, self.clients, tokens=tokens), factors


def check_room(block_bytes: int, clients: int) -> str:
    """Return a line for the log about what all clients' answers take on the server's disk.

    Raises ConfigError if a block's do not fit twice: worked on, and kept to go on after a kill.
    """
    place, needed = home(), block_bytes * clients
    place.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place).free
    if 2 * needed > free:
        raise ConfigError(
            f"`strategy.pooling` 'worst' keeps what each of {clients} clients sends of a block, "
            f"{size_text(block_bytes)}, twice: {size_text(2 * needed)} in '{place}', which has "
            f"{size_text(free)} free. Free disk space or set FEDPRUNE_HOME to another disk, send "
            "less (strategy.moments=float16 or eigen), ask fewer (strategy.fraction), or set "
            "strategy.pooling=clients."
        )
    return (
        f"pooling=worst keeps what {clients} clients send of a block, {size_text(needed)} at most, "
        f"and solves each block up to {ROUNDS} times"
    )


@dataclass(frozen=True)
class _Attempt:
    """Factors -> what becomes of an input's linears, and what each client loses by that."""

    block: BlockAggregator[Any]
    linears: Linears
    answers: KeptAnswers[Any]
    pruner: Pruner
    outputs: Mapping[str, Tensor]

    def __call__(self, factors: Factors) -> tuple[dict[str, Change], NDArray[np.float64]]:
        pooled = self.answers.pooled(factors)
        changes = self.block.pruned(self.linears, pooled, self.pruner, self.outputs)
        weights = {name: self.block.weight(name) for name in self.linears}
        errors = [
            np.mean(
                [
                    relative_error(weight, changes[name], own, self.outputs.get(name), wholes[name])
                    for name, weight in weights.items()
                ]
            )
            for own, wholes in zip(self.answers.own(), self._wholes, strict=True)
        ]
        return changes, np.array(errors)

    @cached_property
    def _wholes(self) -> list[dict[str, float]]:
        """What errors are a share of, client by client: the same in every round."""
        weights = {name: self.block.weight(name) for name in self.linears}
        return [
            {name: outputs_energy(w, own, self.outputs.get(name)) for name, w in weights.items()}
            for own in self.answers.own()
        ]


def _tell(task: BlockTask, served: Sequence[tuple[KeptAnswers[Any], Served[Any]]]) -> None:
    """Put the weights that were chosen for a block into the figures and the log."""
    if not served:
        return
    names = sorted({name for answers, _ in served for name in answers.clients})
    shares = {name: list[float]() for name in names}
    for answers, found in served:
        counted = found.factors * answers.tokens
        for name, share in zip(answers.clients, counted / counted.sum(), strict=True):
            shares[name].append(float(share))
    told = {
        "block": task.block,
        "error": float(np.mean([found.errors.max() for _, found in served])),
        "error_unweighed": float(np.mean([found.first.max() for _, found in served])),
        "shares": {name: float(np.mean(found)) for name, found in shares.items()},
    }
    figures = task.figures.setdefault("worst", {"blocks": []})
    blocks = [one for one in figures["blocks"] if one["block"] != task.block]
    figures["blocks"] = sorted([*blocks, told], key=lambda one: one["block"])
    figures["shares"] = mean_shares(figures["blocks"])
    text = "block %d: the client served worst loses %.4g of an input's outputs, unweighed %.4g"
    _log.info(text, told["block"], told["error"], told["error_unweighed"])
    if task.block == task.model.num_blocks - 1:
        _log.info("%s", weight_sentences(figures))


def mean_shares(blocks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return each client's mean share in the sums of those blocks of which it knows anything."""
    names = sorted({name for block in blocks for name in block["shares"]})
    return {
        name: float(np.mean([b["shares"][name] for b in blocks if name in b["shares"]]))
        for name in names
    }
