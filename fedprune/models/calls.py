"""How a decoder block is called: its arguments, kept on the CPU and held once where equal."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.models.raw import raw_bytes

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
