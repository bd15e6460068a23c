"""What every decoder block is called with, captured from the model's own forward pass.

Rotary embeddings, masks that differ from block to block and whatever else a family passes are
recorded as they are, so no family needs code of its own. While recording, blocks hand their input
on unchanged: the cost is that of the embeddings. In the same way the model's own final norm and
head turn the last block's output into logits. Arguments are kept on the CPU, equal ones once.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call
from transformers.utils import ModelOutput

from fedprune.errors import ModelError
from fedprune.models.carried import Carried, put_back
from fedprune.models.loading import LoadedModel
from fedprune.models.passage import HIDDEN, FinishedError, plain_forward, replaced_forwards
from fedprune.models.weights import raw_bytes

_PLAIN = (type(None), bool, int, float, str, torch.dtype)


@dataclass(frozen=True)
class BlockCall:
    """The arguments of one block for one sample, without the hidden states."""

    # whether the hidden states are passed as ``hidden_states=`` instead of in first place; None if
    # they are among the arguments
    by_name: bool | None
    args: tuple[object, ...]
    kwargs: dict[str, object]

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor among the arguments."""
        for value in (*self.args, *self.kwargs.values()):
            yield from _tensors(value)

    def bind(
        self, hidden: Tensor | None, copies: Mapping[int, Tensor]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """Return positional and keyword arguments to call the block with.

        `hidden`: the hidden states to put in their place; None if they are among the arguments.
        `copies`: what stands in for each of :meth:`tensors`, by its id.
        """
        args = tuple(map_tensors(value, lambda t: copies[id(t)]) for value in self.args)
        kwargs = {
            name: map_tensors(value, lambda t: copies[id(t)]) for name, value in self.kwargs.items()
        }
        if self.by_name is None or hidden is None:
            return args, kwargs
        return (args, {**kwargs, HIDDEN: hidden}) if self.by_name else ((hidden, *args), kwargs)


class TensorPool:
    """Holds equal tensors once: most arguments are the same for all samples and blocks."""

    def __init__(self) -> None:
        self._by_content: dict[tuple[object, ...], Tensor] = {}
        # Within a sample blocks pass the same objects around; the original is kept beside its
        # twin so that its id cannot be given to another tensor meanwhile.
        self._by_id: dict[int, tuple[Tensor, Tensor]] = {}

    def share(self, tensor: Tensor) -> Tensor:
        """Return the one CPU tensor that has this content."""
        if id(tensor) not in self._by_id:
            local = tensor.detach().cpu()
            key = (local.dtype, local.shape, hashlib.blake2b(raw_bytes(local)).digest())
            self._by_id[id(tensor)] = (tensor, self._by_content.setdefault(key, local))
        return self._by_id[id(tensor)][1]

    def end_sample(self) -> None:
        """Forget the objects of a sample, not their contents."""
        self._by_id.clear()


def map_tensors(value: object, change: Callable[[Tensor], Tensor]) -> object:
    """Return an argument with its tensors changed; mappings and lists are made anew.

    Raises TypeError for anything but tensors, plain values, and tuples, lists and mappings of them:
    it could carry state from block to block. The message is the class's name.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, list) or type(value) is tuple:
        return type(value)(map_tensors(entry, change) for entry in value)
    if isinstance(value, MutableMapping):
        made = copy.copy(value)
        made.update({key: map_tensors(entry, change) for key, entry in value.items()})
        return made
    raise TypeError(type(value).__name__)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _tensors(entry)
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _tensors(entry)


def capture_inputs(
    model: LoadedModel, batches: Iterable[Tensor]
) -> Iterator[tuple[Tensor, list[BlockCall]]]:
    """Yield what token sequences become on their way to the first block, and every block's call.

    `batches`: token ids, each int64 of shape (batch, seq_len); they are run one by one, so that the
    result for one does not depend on the others. Yields input of the first block, (batch, seq_len,
    d_model) on the CPU; the arguments of each block beside it, equal tensors held once for all
    batches. Raises ModelError if the model's blocks do not form a plain chain: one that is skipped
    or called twice, hidden states that change between two blocks, or state that blocks share beside
    them.
    """
    pool, outer = TensorPool(), model.outer_tensors()
    passage = model.layout.passage
    for batch in batches:
        recorder = _Recorder(passage.order, passage.tail, pool)
        with _replaced(model, recorder.block):
            _forward(model, batch, outer)
        yield recorder.first_hidden(), recorder.calls
        pool.end_sample()


def replayed_call(
    model: LoadedModel, tokens: Tensor, outer: Mapping[str, Tensor], block: int, packed: Tensor
) -> BlockCall:
    """Return what a block is called with after what the blocks before it left, for one sample.

    The model's own forward pass runs as far as the block. It is for decoders whose blocks get more
    than the hidden states of the one before; hidden states are among the call's arguments.

    `tokens`: token ids, int64, shape (1, seq_len). `packed`: what the blocks before it left, see
    :class:`fedprune.models.carried.Carried`; of the first block it is not looked at.
    """
    place = model.layout.passage.order.index(block)
    replay = _Replay(model, Carried.unpack(packed) if place else None, place)
    with _replaced(model, replay.block):
        _forward(model, tokens, outer)
    return replay.found()


def output_of(
    model: LoadedModel, tokens: Tensor, last: Tensor, outer: Mapping[str, Tensor]
) -> Tensor:
    """Return the logits that the model makes of its last block's output.

    `tokens`: token ids, int64, shape (batch, seq_len). `last`: what a walk has after the last
    block: what that returned for them, shape (batch, seq_len, d_model), or bytes
    (:class:`fedprune.models.carried.Carried`). `outer`: the model's tensors outside its blocks, on
    the device of ``tokens`` and ``last``. Where ``last`` asks for its gradient, the logits can be
    differentiated by it. Returns shape (batch, seq_len, vocabulary).
    """
    passage, grad = model.layout.passage, last.requires_grad
    if passage.plain:
        final, tail = passage.order[-1], passage.tail

        def stand_in(index: int, *args: object, **kwargs: object) -> object:
            hidden = last if index == final else kwargs.get(HIDDEN, args[0] if args else None)
            return hidden if tail is None else (hidden, *tail)

        with _replaced(model, stand_in):
            output = _call(model, tokens, outer, grad)
    else:
        carried = Carried.unpack(last)
        moved = Carried(
            map_tensors(carried.output, lambda tensor: tensor.to(tokens.device)), carried.written
        )
        with _replaced(model, _Replay(model, moved, len(passage.order)).block):
            output = _call(model, tokens, outer)
    logits: Tensor = output.logits
    return logits


def hidden_of(output: object) -> Tensor:
    """Return the hidden states in what a block returned: the tensor, or the first of a tuple."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        raise ModelError(
            f"A decoder block returned {type(output).__name__}, expected its hidden states as a "
            "tensor or as the first of a tuple. This architecture is not supported."
        )
    return first


@dataclass
class _Recorder:
    """Stands in for the blocks during one forward pass."""

    order: tuple[int, ...]
    tail: tuple[None, ...] | None
    pool: TensorPool
    calls: list[BlockCall] = field(default_factory=list)
    passed_on: Tensor | None = None

    def first_hidden(self) -> Tensor:
        if self.passed_on is None or len(self.calls) < len(self.order):
            raise ModelError(
                f"The forward pass called {len(self.calls)} of {len(self.order)} decoder blocks. "
                "This architecture is not supported."
            )
        return self.passed_on.detach().cpu()

    def block(self, index: int, *args: object, **kwargs: object) -> object:
        if index != self.order[len(self.calls)]:
            raise ModelError(
                f"The forward pass called decoder block {index} in place of "
                f"{self.order[len(self.calls)]}; blocks must run once each, in the same order for "
                "every text. This architecture is not supported."
            )
        by_name = HIDDEN in kwargs
        hidden = kwargs.pop(HIDDEN) if by_name else args[0] if args else None
        before = self.passed_on
        unchanged = isinstance(hidden, Tensor) and (
            before is None or hidden is before or torch.equal(hidden, before)
        )
        if not isinstance(hidden, Tensor) or not unchanged:
            raise ModelError(
                f"Decoder block {index} does not get the output of the block before as it is. "
                "This architecture is not supported."
            )
        self.passed_on = hidden
        others = args if by_name else args[1:]
        self.calls.append(
            BlockCall(
                by_name,
                tuple(self._keep(index, str(place), v) for place, v in enumerate(others, 1)),
                {name: self._keep(index, name, value) for name, value in kwargs.items()},
            )
        )
        if len(self.calls) == len(self.order):
            raise FinishedError
        return hidden if self.tail is None else (hidden, *self.tail)

    def _keep(self, index: int, name: str, value: object) -> object:
        try:
            return map_tensors(value, self.pool.share)
        except TypeError as error:
            raise ModelError(
                f"Decoder block {index} gets a {error} as argument `{name}`, which can carry state "
                "from block to block. This architecture is not supported."
            ) from None


@dataclass
class _Replay:
    """Stands in for the blocks: hands what they left to the one that is asked about."""

    model: LoadedModel
    carried: Carried | None
    place: int  # in the order of calls
    called: int = 0
    call: BlockCall | None = None

    def found(self) -> BlockCall:
        if self.call is None:
            raise ModelError(
                f"The forward pass called {self.called} decoder blocks, expected {self.place + 1}. "
                "This architecture is not supported."
            )
        return self.call

    def block(self, index: int, *args: object, **kwargs: object) -> object:
        passage, place = self.model.layout.passage, self.called
        if place >= len(passage.order) or passage.order[place] != index:
            raise ModelError(
                f"The forward pass called decoder block {index} out of its order. "
                "This architecture is not supported."
            )
        self.called += 1
        if place == self.place:
            self.call = BlockCall(None, args, kwargs)
            raise FinishedError
        if self.carried is None:
            raise RuntimeError("nothing is known of the blocks before.")
        if place == self.place - 1:
            put_back(named(args, kwargs), self.carried.written)
        return _in_form(passage.outputs[place], self.carried.output)


def _in_form(form: object, value: object) -> object:
    """Return an output with the classes of tuples that the block uses."""
    if isinstance(form, tuple) and isinstance(value, tuple):
        parts = [_in_form(*pair) for pair in zip(form, value, strict=True)]
        return form._make(parts) if hasattr(form, "_make") else tuple(parts)
    return value


def named(args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, object]:
    """Return arguments by name, those that have none by their place."""
    return {**{str(place): value for place, value in enumerate(args)}, **kwargs}


def _forward(model: LoadedModel, tokens: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Run the model on some sequences until somebody has seen enough."""
    with suppress(FinishedError):
        _call(model, tokens, tensors)


def _call(
    model: LoadedModel, tokens: Tensor, tensors: Mapping[str, Tensor], grad: bool = False
) -> ModelOutput:
    inputs = {"input_ids": tokens, "use_cache": False}
    with torch.set_grad_enabled(grad), plain_forward(model.model):
        return functional_call(model.model, dict(tensors), (), inputs)


def _replaced(model: LoadedModel, stand_in: Callable[..., object]) -> AbstractContextManager[None]:
    """Let ``stand_in(index, *args, **kwargs)`` answer in place of each block's forward."""
    return replaced_forwards(
        [(block, partial(stand_in, index)) for index, block in enumerate(model.layout.blocks)]
    )
