"""What every decoder block is called with, captured from the model's own forward pass.

Rotary embeddings, masks that differ from block to block and whatever else a family passes are
recorded as they are, so no family needs code of its own. While recording, blocks hand their input
on unchanged: the cost is that of the embeddings. In the same way the model's own final norm and
head turn the last block's output into logits. Arguments are kept on the CPU, equal ones once.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from fedprune.errors import ModelError
from fedprune.models.loading import LoadedModel
from fedprune.models.weights import raw_bytes

HIDDEN = "hidden_states"
_PLAIN = (type(None), bool, int, float, str, torch.dtype)


@dataclass(frozen=True)
class BlockCall:
    """The arguments of one block for one sample, without the hidden states.

    Parameters
    ----------
    by_name : bool
        Whether the hidden states are passed as ``hidden_states=`` instead of in first place.
    args : tuple of object
        The other positional arguments.
    kwargs : dict[str, object]
        The keyword arguments.
    """

    by_name: bool
    args: tuple[object, ...]
    kwargs: dict[str, object]

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor among the arguments."""
        for value in (*self.args, *self.kwargs.values()):
            yield from _tensors(value)

    def bind(
        self, hidden: Tensor, copies: Mapping[int, Tensor]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """Return positional and keyword arguments to call the block with.

        Parameters
        ----------
        hidden : Tensor
            The hidden states to put in their place.
        copies : Mapping[int, Tensor]
            What stands in for each of :meth:`tensors`, by its id.
        """
        args = tuple(map_tensors(value, lambda t: copies[id(t)]) for value in self.args)
        kwargs = {
            name: map_tensors(value, lambda t: copies[id(t)]) for name, value in self.kwargs.items()
        }
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
    """Return an argument with its tensors changed.

    Raises
    ------
    TypeError
        For anything but tensors, plain values and tuples of them: it could carry state from block
        to block. The message is the class's name.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, _PLAIN):
        return value
    if type(value) is tuple:
        return tuple(map_tensors(entry, change) for entry in value)
    raise TypeError(type(value).__name__)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for entry in value:
            yield from _tensors(entry)


_PROBE_TOKENS = 2
# A block's way of returning depends on the architecture alone; clients of a process share a model.
_TAILS: WeakKeyDictionary[nn.Module, tuple[None, ...] | None] = WeakKeyDictionary()


def capture_inputs(
    model: LoadedModel, batches: Iterable[Tensor]
) -> Iterator[tuple[Tensor, list[BlockCall]]]:
    """Yield what token sequences become on their way to the first block, and every block's call.

    Parameters
    ----------
    model : LoadedModel
        The model; it is left as it was.
    batches : Iterable[Tensor]
        Token ids, each int64 of shape (batch, seq_len); they are run one by one, so that the
        result for one does not depend on the others.

    Yields
    ------
    tuple[Tensor, list[BlockCall]]
        Input of the first block, (batch, seq_len, d_model) on the CPU; the arguments of each
        block beside it, equal tensors held once for all batches.

    Raises
    ------
    ModelError
        If the model's blocks do not form a plain chain: one that is skipped or called twice, hidden
        states that change between two blocks, or state that blocks share beside them.
    """
    pool, outer = TensorPool(), model.outer_tensors()
    for batch in batches:
        tail = _checked_tail(model, batch[:1, :_PROBE_TOKENS])
        recorder = _Recorder(len(model.layout.blocks), tail, pool)
        with _replaced_forwards(model.layout.blocks, recorder.block):
            _forward(model, batch, outer)
        yield recorder.first_hidden(), recorder.calls
        pool.end_sample()


def output_of(
    model: LoadedModel, tokens: Tensor, last: Tensor, outer: Mapping[str, Tensor]
) -> Tensor:
    """Return the logits that the model makes of its last block's output.

    Parameters
    ----------
    model : LoadedModel
        The model; it is left as it was.
    tokens : Tensor
        Token ids, int64, shape (batch, seq_len).
    last : Tensor
        What the last block returned for them, shape (batch, seq_len, d_model).
    outer : Mapping[str, Tensor]
        The model's tensors outside its blocks, on the device of ``tokens`` and ``last``.

    Returns
    -------
    Tensor
        Shape (batch, seq_len, vocabulary).
    """
    tail = _checked_tail(model, tokens[:1, :_PROBE_TOKENS].cpu())
    final = len(model.layout.blocks) - 1

    def stand_in(index: int, *args: object, **kwargs: object) -> object:
        hidden = last if index == final else kwargs.get(HIDDEN, args[0] if args else None)
        return hidden if tail is None else (hidden, *tail)

    with _replaced_forwards(model.layout.blocks, stand_in):
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


class _FinishedError(Exception):
    """Leaves the model's forward pass once everything has been seen."""


@dataclass
class _Recorder:
    """Stands in for the blocks during one forward pass."""

    blocks: int
    tail: tuple[None, ...] | None
    pool: TensorPool
    to_end: bool = False  # go on after the last block, to see that none is called again
    calls: list[BlockCall] = field(default_factory=list)
    passed_on: Tensor | None = None

    def first_hidden(self) -> Tensor:
        if self.passed_on is None or len(self.calls) < self.blocks:
            raise ModelError(
                f"The forward pass called {len(self.calls)} of {self.blocks} decoder blocks. "
                "This architecture is not supported."
            )
        return self.passed_on.detach().cpu()

    def block(self, index: int, *args: object, **kwargs: object) -> object:
        if index != len(self.calls):
            raise ModelError(
                f"The forward pass called decoder block {index} after {len(self.calls) - 1}; "
                "blocks must run once each, in order. This architecture is not supported."
            )
        by_name = HIDDEN in kwargs
        hidden = kwargs.pop(HIDDEN) if by_name else args[0] if args else None
        if not isinstance(hidden, Tensor) or not self._unchanged(hidden):
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
        if len(self.calls) == self.blocks and not self.to_end:
            raise _FinishedError
        return hidden if self.tail is None else (hidden, *self.tail)

    def _unchanged(self, hidden: Tensor) -> bool:
        before = self.passed_on
        return before is None or hidden is before or torch.equal(hidden, before)

    def _keep(self, index: int, name: str, value: object) -> object:
        try:
            return map_tensors(value, self.pool.share)
        except TypeError as error:
            raise ModelError(
                f"Decoder block {index} gets a {error} as argument `{name}`, which can carry state "
                "from block to block. This architecture is not supported."
            ) from None


def _checked_tail(model: LoadedModel, probe: Tensor) -> tuple[None, ...] | None:
    """Return :func:`_output_tail` after checking that the blocks form a chain, once a model."""
    if model.model not in _TAILS:
        outer = model.outer_tensors()
        tail = _output_tail(model, probe, outer)
        recorder = _Recorder(len(model.layout.blocks), tail, TensorPool(), to_end=True)
        with _replaced_forwards(model.layout.blocks, recorder.block):
            _forward(model, probe, outer)
        _TAILS[model.model] = tail
    return _TAILS[model.model]


def _output_tail(
    model: LoadedModel, tokens: Tensor, outer: Mapping[str, Tensor]
) -> tuple[None, ...] | None:
    """Return what the blocks add to the hidden states they return: None for a bare tensor.

    The first block runs once, for real, on a few tokens: how it returns does not depend on them.
    """
    form: list[tuple[None, ...] | None] = []

    def look(_block: nn.Module, _args: object, output: Tensor | tuple[object, ...]) -> None:
        hidden_of(output)
        form.append(None if isinstance(output, Tensor) else (None,) * (len(output) - 1))
        raise _FinishedError

    first = f"{model.layout.prefix}.0."
    inner = {first + name: tensor for name, tensor in model.block_tensors(0).items()}
    handle = model.layout.blocks[0].register_forward_hook(look)
    try:
        _forward(model, tokens, {**outer, **inner})
    finally:
        handle.remove()
    if not form:
        raise ModelError(
            "The forward pass never called the first decoder block. "
            "This architecture is not supported."
        )
    return form[0]


def _forward(model: LoadedModel, tokens: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Run the model on some sequences until somebody has seen enough."""
    with suppress(_FinishedError):
        _call(model, tokens, tensors)


def _call(model: LoadedModel, tokens: Tensor, tensors: Mapping[str, Tensor]) -> ModelOutput:
    inputs = {"input_ids": tokens, "use_cache": False}
    with torch.no_grad(), _plain_output(model.model.config):
        return functional_call(model.model, dict(tensors), (), inputs)


@contextmanager
def _plain_output(config: PreTrainedConfig) -> Iterator[None]:
    """Undo for a while what a configuration says about the form of the output."""
    wanted = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
    odd = [
        (part, name, getattr(part, name))
        for part in {id(part): part for part in (config, config.get_text_config())}.values()
        for name, value in wanted.items()
        if getattr(part, name, value) != value
    ]
    try:
        for part, name, _ in odd:
            setattr(part, name, wanted[name])
        yield
    finally:
        for part, name, value in odd:
            setattr(part, name, value)


@contextmanager
def _replaced_forwards(
    blocks: Sequence[nn.Module], stand_in: Callable[..., object]
) -> Iterator[None]:
    """Let ``stand_in(index, *args, **kwargs)`` answer in place of each block's forward."""
    own = [block.__dict__.get("forward") for block in blocks]
    try:
        for index, block in enumerate(blocks):
            block.__dict__["forward"] = partial(stand_in, index)
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                block.__dict__.pop("forward", None)
            else:
                block.__dict__["forward"] = forward
