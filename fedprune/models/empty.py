"""Building a model without the memory of its weights."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers.initialization import no_init_weights

_LARGE = 1 << 20  # elements of what no module computes when it is made


@contextmanager
def empty_weights() -> Iterator[None]:
    """Let models that are made inside have parameters without data, and real buffers.

    ``init_empty_weights`` lets a parameter be allocated before it takes its data away. That of all
    experts of a block can be larger than the machine's memory, and is made without data at once.
    """
    with init_empty_weights(), no_init_weights(), _FusedWithoutData():
        yield


class _FusedWithoutData(TorchFunctionMode):
    """Puts large tensors of three dimensions, as fused experts are, on the device "meta"."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Run a function; what only allocates is tried without memory first."""
        if func in (torch.empty, torch.zeros):
            made: Tensor = func(*args, **{**(kwargs or {}), "device": "meta"})
            if made.ndim == 3 and made.numel() >= _LARGE:
                return made
        return func(*args, **(kwargs or {}))
