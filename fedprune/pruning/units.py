"""The units of a block that can go altogether: feed-forward neurons, groups of attention heads.

A unit is what some outputs of the matrices before and some inputs of the matrix after have to do
with each other and with nothing else. It is found by trying, not by names: every linear map of a
block is replaced by one that returns fixed noise, one output of one map is changed at a time, and
the inputs of all maps are looked at. A gated neuron is a row of gate, a row of up and a column of
down, however the two are stored; a head with its keys, values and the queries that share them is
found in the same way, and so is that a norm over all heads makes one unit of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from fedprune.errors import ModelError
from fedprune.models.capture import BlockCall, capture_inputs, hidden_of
from fedprune.models.layout import LinearRef
from fedprune.models.loading import LoadedModel

Structure = Literal["ffn", "heads"]
"""Neurons of feed-forward layers, or groups of attention heads that share keys and values."""

_WORDS = {"ffn": "feed-forward layer", "heads": "attention with several groups of heads"}
_TOKENS = 4  # so that attention has something to choose from
_ELEMENTS = 1 << 24  # of the largest tensor of a batch of trials
_FEW = 8  # outputs that are tried before all are: enough to see that everything mixes
_CHANGED = 1e-5  # share of the largest input from which a change is one


@dataclass(frozen=True, eq=False)
class Units:
    """The units of one kind in a block."""

    linear: str
    columns: NDArray[np.int64]  # its inputs, shape (units, size), ascending in each unit
    # matrix before them -> its outputs, shape (units, size of its own)
    producers: Mapping[str, NDArray[np.int64]]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.columns)

    @property
    def size(self) -> int:
        """How many inputs of the matrix after them one has."""
        return int(self.columns.shape[1])

    @property
    def linears(self) -> tuple[str, ...]:
        """All matrices that they are made of, the one after them last."""
        return (*self.producers, self.linear)


def find_units(model: LoadedModel, structure: Structure) -> Units:
    """Return the units of every block of a model.

    Raises ModelError if a block has none, or several kinds of them, or blocks differ: says which.
    """
    known = _FOUND.setdefault(model.model, {})
    if structure not in known:
        known[structure] = _find(model, structure)
    return known[structure]


def last_writer(model: LoadedModel, block: int) -> str:
    """Return the matrix that a block calls last, whose outputs it adds to the hidden states.

    Raises ModelError if the block does anything else with what that matrix returns: says what.
    """
    trial = _Trial(model, block)
    found = trial.last_written()
    if found is None:
        why = "routes tokens to experts" if trial.routed else "changes what its last matrix returns"
        raise ModelError(
            f"`{model.layout.prefix}.{block}` {why} before it adds it to the hidden states: no "
            "linear map can be put into one matrix exactly."
        )
    return found


_FOUND: WeakKeyDictionary[nn.Module, dict[str, Units]] = WeakKeyDictionary()


def _find(model: LoadedModel, structure: Structure) -> Units:
    layout, first = model.layout, None
    seen: dict[tuple[object, ...], Units] = {}
    for block in range(len(layout.blocks)):
        linears = layout.linears(block)
        signature = tuple((name, ref.shape) for name, ref in linears.items())
        if signature not in seen:
            seen[signature] = _of_block(model, block, structure)
        found = seen[signature]
        if first is None:
            first = found
        elif not _alike(found, first):
            raise ModelError(
                f"Blocks 0 and {block} of `{layout.prefix}` differ in their units of "
                f"`pruner.structure={structure}`, so that no one width fits all. Use "
                "a pruner of single weights, such as wanda."
            )
    if first is None:
        raise ModelError(f"`{layout.prefix}` has no blocks.")
    return first


def _alike(one: Units, other: Units) -> bool:
    return (
        one.linear == other.linear
        and np.array_equal(one.columns, other.columns)
        and one.producers.keys() == other.producers.keys()
        and all(np.array_equal(rows, other.producers[n]) for n, rows in one.producers.items())
    )


def _of_block(model: LoadedModel, block: int, structure: Structure) -> Units:
    """Return the units of one block."""
    trial = _Trial(model, block)
    where = f"`{model.layout.prefix}.{block}`"
    candidates = []
    for linear, producers in trial.producers().items():
        found = _joined(trial, linear, producers)
        if found is not None and (found.size == 1) == (structure == "ffn") and found.count > 1:
            candidates.append(found)
    if len(candidates) == 1:
        return candidates[0]
    why = (
        f"has {len(candidates)} of them: " + ", ".join(one.linear for one in candidates)
        if candidates
        else "has none"
        + (": its experts are no units of one width" if trial.routed and structure == "ffn" else "")
    )
    raise ModelError(
        f"`pruner.structure={structure}` needs blocks with one {_WORDS[structure]} whose units can "
        f"be told apart; {where} {why}. Use the other structure, remove whole blocks, or use a "
        "pruner of single weights, such as wanda."
    )


def _joined(trial: "_Trial", linear: str, producers: Sequence[str]) -> Units | None:
    """Return the units in front of a matrix, None if its inputs are not made of any."""
    from scipy.sparse import coo_array  # which only who looks for units need wait for
    from scipy.sparse.csgraph import connected_components

    width = trial.linears[linear].shape[1]
    touched: dict[str, list[NDArray[np.int64]]] = {}
    for producer in producers:
        rows: list[NDArray[np.int64]] = []
        for batch in trial.effects(producer, linear):
            for changed in batch:
                rows.append(np.flatnonzero(changed))
            if len(rows) >= _FEW and all(len(places) == width for places in rows[:_FEW]):
                return None
        touched[producer] = rows
    together = [places for rows in touched.values() for places in rows if len(places)]
    if not together or len(np.unique(np.concatenate(together))) < width:
        return None
    ends = np.concatenate([np.full(len(places), places[0]) for places in together])
    pairs = coo_array((np.ones(len(ends)), (ends, np.concatenate(together))), (width, width))
    count, labels = connected_components(pairs, directed=False)  # counted by their first inputs
    columns = [np.flatnonzero(labels == unit) for unit in range(count)] if count < width else None
    made = np.arange(width)[:, None] if columns is None else _stacked(columns)
    outputs = {
        producer: _stacked(_rows_of(rows, labels, count)) for producer, rows in touched.items()
    }
    if made is None or any(one is None for one in outputs.values()):
        return None
    return Units(linear, made, {name: one for name, one in outputs.items() if one is not None})


def _rows_of(
    rows: Sequence[NDArray[np.int64]], labels: NDArray[np.int64], count: int
) -> list[NDArray[np.int64]]:
    """Return for each unit the outputs of a matrix that touch it."""
    owner = np.array([labels[places[0]] if len(places) else -1 for places in rows])
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(count + 1))
    return [np.sort(order[start:stop]) for start, stop in pairwise(starts)]


def _stacked(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64] | None:
    """Return parts of one size as a matrix, None if they are not or are empty."""
    sizes = {len(part) for part in parts}
    return np.stack(parts) if len(sizes) == 1 and sizes != {0} else None


class _FinishedError(Exception):
    """Leaves a block once its last linear map has been called."""


@dataclass
class _Trial:
    """A block whose linear maps return noise, run on several changes of it at once."""

    model: LoadedModel
    block: int
    linears: dict[str, LinearRef] = field(init=False)
    routed: bool = field(init=False)
    _tensors: dict[str, Tensor] = field(init=False)
    _noise: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        every = self.model.layout.linears(self.block)
        self.linears = {
            name: ref for name, ref in every.items() if isinstance(ref.module, nn.Linear | Conv1D)
        }
        module = self.model.layout.blocks[self.block]
        self.routed = len(self.linears) < len(every) or any(
            parameter.ndim > 2 for parameter in module.parameters()
        )
        heavy = {ref.key for ref in every.values()}
        self._tensors = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in self.model.block_tensors(self.block).items()
            if name not in heavy and tensor.ndim < 3
        }
        generator = torch.Generator().manual_seed(0)
        self._noise = {
            # Of one sign: an activation that cuts off must let a change be seen.
            name: torch.rand(_TOKENS, ref.shape[0], generator=generator) + 0.5
            for name, ref in self.linears.items()
        }

    def producers(self) -> dict[str, list[str]]:
        """Return matrix -> the matrices whose outputs reach its input through no other."""
        names = list(self.linears)

        def change(name: str, outputs: Tensor) -> None:
            number = 1 + names.index(name)
            outputs[number] += self._amounts(outputs.shape[-1])

        inputs, output = self._run(1 + len(names), change)
        reached = {name: _changed(found) for name, found in inputs.items()}
        leaks = _changed(output).any(1) if output is not None else np.zeros(len(names), dtype=bool)
        leaking = {names[number] for number in np.flatnonzero(leaks)}
        found: dict[str, list[str]] = {}
        for linear, changed in reached.items():
            by = [name for number, name in enumerate(names) if changed[number].any()]
            others = {
                n
                for n, c in reached.items()
                if n != linear and any(c[names.index(p)].any() for p in by)
            }
            # What also goes elsewhere cannot go with the units.
            if by and not others and not leaking & set(by):
                found[linear] = by
        return found

    def last_written(self) -> str | None:
        """Return the matrix that is called last, if its outputs are added to the block's."""
        called: list[str] = []

        def note(name: str, outputs: Tensor) -> None:
            called.append(name)

        self._run(1, note)
        if self.routed or not called:
            return None
        last = called[-1]

        def change(name: str, outputs: Tensor) -> None:
            if name == last:
                outputs[1] += self._amounts(outputs.shape[-1])

        _, output = self._run(2, change)
        added = self._amounts(self.linears[last].shape[0])
        exact = (
            output is not None
            and output.shape[-1] == added.shape[-1]
            and torch.allclose(output[1] - output[0], added, rtol=_CHANGED, atol=_CHANGED)
        )
        return last if exact else None

    def effects(self, producer: str, linear: str) -> Iterator[NDArray[np.bool_]]:
        """Yield which inputs of a matrix each output of another changes, some outputs at a time."""
        total = self.linears[producer].shape[0]
        widest = max(max(ref.shape) for ref in self.linears.values())
        most = max(1, _ELEMENTS // (_TOKENS * widest) - 1)
        start = 0
        while start < total:
            stop = min(total, start + (most if start else min(most, _FEW)))

            def change(name: str, outputs: Tensor, start: int = start, stop: int = stop) -> None:
                if name == producer:
                    for number, output in enumerate(range(start, stop), 1):
                        outputs[number, :, output] += self._amounts(1)[:, 0]

            inputs, _ = self._run(1 + stop - start, change)
            yield _changed(inputs[linear])
            start = stop

    def _amounts(self, width: int) -> Tensor:
        """Return by how much outputs change, differently for each token."""
        steps = torch.arange(1, _TOKENS + 1, dtype=torch.float32)[:, None]
        return steps * (1 + torch.arange(width) % 3)

    def _run(
        self, batch: int, change: Callable[[str, Tensor], None]
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Run the block; return what entered each matrix, and the output if it came to that."""
        hidden, call = self._call(batch)
        copies = {
            id(one): one.float() if one.is_floating_point() else one for one in call.tensors()
        }
        args, kwargs = call.bind(hidden.float(), copies)
        inputs: dict[str, Tensor] = {}

        def stand_in(name: str, entering: Tensor) -> Tensor:
            shape = entering.shape
            if entering.numel() != batch * _TOKENS * shape[-1] or name in inputs:
                raise ModelError(f"`{name}` does not see every token once: it is no plain layer.")
            inputs[name] = entering.detach().reshape(batch, _TOKENS, shape[-1])
            outputs = self._noise[name].expand(batch, -1, -1).clone()
            change(name, outputs)
            if self.routed and len(inputs) == len(self.linears):
                raise _FinishedError
            return outputs.reshape(*shape[:-1], -1)

        output = None
        with _stand_ins(self.linears, stand_in), torch.no_grad(), suppress(_FinishedError):
            block = self.model.layout.blocks[self.block]
            output = hidden_of(functional_call(block, self._tensors, args, kwargs))
        return inputs, output

    def _call(self, batch: int) -> tuple[Tensor, BlockCall]:
        padding = self.model.model.config.get_text_config().pad_token_id
        some = [token for token in range(_TOKENS + 1) if token != padding][:_TOKENS]
        tokens = torch.tensor(some).expand(batch, -1)
        hidden, calls = next(iter(capture_inputs(self.model, [tokens])))
        return hidden, calls[self.block]


def _changed(found: Tensor) -> NDArray[np.bool_]:
    """Return for all but the first of a batch which columns differ from the first's."""
    limit = _CHANGED * float(found[0].abs().max())
    different: NDArray[np.bool_] = ((found[1:] - found[0]).abs() > limit).any(1).numpy()
    return different


@contextmanager
def _stand_ins(
    linears: Mapping[str, LinearRef], stand_in: Callable[[str, Tensor], Tensor]
) -> Iterator[None]:
    """Let ``stand_in(name, input)`` answer in place of each linear map."""
    own = {name: ref.module.__dict__.get("forward") for name, ref in linears.items()}
    try:
        for name, ref in linears.items():
            ref.module.__dict__["forward"] = lambda entering, name=name: stand_in(name, entering)
        yield
    finally:
        for name, ref in linears.items():
            ref.module.__dict__.pop("forward", None)
            if own[name] is not None:
                ref.module.__dict__["forward"] = own[name]
