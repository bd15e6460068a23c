"""Experts whose matrices are slices of one parameter, and how the tokens routed to each are seen.

Mixtures of experts keep a projection of all experts in one parameter:

* of three dimensions by ``transformers``' own contract, ``@use_experts_implementation``, which 64
  of its model files follow: the module says by ``is_transposed`` how its parameters lie;
* of three dimensions in modules without it whose parameters are called by the same names (Llama 4),
  or ``weight`` beside ``input_size`` and ``output_size`` (JetMoE): they are told by their shapes;
* of two, all experts' rows one after another, under MegaBlocks' names (DBRX).

Which tokens an expert gets is seen at the products themselves: while the experts' module runs as it
is written, without any of the library's grouped kernels, every product by a slice of its parameters
shows the slice's inputs. So nothing is computed twice, nothing is rewritten, and what is recorded
is what the library's plain implementation multiplies.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fedprune.errors import ModelError

PROJECTIONS = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")
"""What families call their parameters with a slice for each expert."""
_STACKED = {"w1": False, "v1": False, "w2": True}
"""MegaBlocks' names of experts' stacked rows, and whether a slice of them is (d_in, d_out)."""
_CONTRACT = ("has_gate", "is_transposed")  # what ``use_experts_implementation`` sets
_EAGER = "eager"  # the library's word for a module's own forward
_LINEAR = (functional.linear,)
_PRODUCTS = (
    torch.matmul,
    torch.mm,
    torch.bmm,
    Tensor.matmul,
    Tensor.mm,
    Tensor.bmm,
    Tensor.__matmul__,
)

Seen = Callable[[str, int, Tensor], None]
"""What is told of a product: the parameter, the expert, its inputs of shape (tokens, d_in)."""


def fused_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a module's own that hold a matrix for each of many experts, by name.

    This alone says what fused experts are; a module without any has none.
    """
    own = dict(module.named_parameters(recurse=False))
    if stacked_experts(module):
        return own
    fused = {name: parameter for name, parameter in own.items() if parameter.ndim == 3}
    if follows_contract(module):
        return fused
    if set(fused) == {"weight"}:
        sizes = getattr(module, "input_size", None), getattr(module, "output_size", None)
        return fused if set(sizes) == set(fused["weight"].shape[1:]) else {}
    return fused if set(fused) <= set(PROJECTIONS) else {}


def follows_contract(module: nn.Module) -> bool:
    """Whether the library calls a module with what a router chose, and marks it so."""
    return all(hasattr(module, flag) for flag in _CONTRACT)


def stacked_experts(module: nn.Module) -> int:
    """Return how many experts' rows are stacked in each of a module's parameters; 0 for none."""
    own = dict(module.named_parameters(recurse=False))
    count = getattr(module, "moe_num_experts", getattr(module, "num_experts", 0))
    if not own or not set(own) <= set(_STACKED) or not isinstance(count, int) or count < 1:
        return 0
    fits = all(one.ndim == 2 and one.shape[0] % count == 0 for one in own.values())
    return count if fits else 0


def expert_matrices(module: nn.Module, width: int = 0) -> dict[str, bool]:
    """Return the parameters of fused experts in a module, and whether they are (d_in, d_out).

    `module`: any; its parameters may be on the meta device. `width`: size of the model's hidden
    states, which tells inputs from outputs; 0 if unknown. Returns name of the parameter, whose
    first dimension counts experts or all their rows -> True if a slice is stored as (d_in, d_out);
    empty for a module that holds no fused experts.
    """
    fused = fused_parameters(module)
    if stacked_experts(module):
        return {name: _STACKED[name] for name in fused}
    if follows_contract(module):
        return dict.fromkeys(fused, bool(module.is_transposed))
    if set(fused) == {"weight"}:
        return {"weight": fused["weight"].shape[1] != getattr(module, "output_size", None)}
    if not width:
        return {}
    lies = {name: _lies(name, parameter, width) for name, parameter in fused.items()}
    known = {one for one in lies.values() if one is not None}
    # A square matrix lies as the others do; where all are, as nn.Linear's does.
    rest = known.pop() if len(known) == 1 else False
    return {name: rest if one is None else one for name, one in lies.items()}


def num_experts(module: nn.Module, names: Sequence[str]) -> int:
    """Return how many experts have a slice in each of some parameters.

    LongCat's gate has slices for experts that do nothing; they are never multiplied by.
    """
    return stacked_experts(module) or min(module.get_parameter(name).shape[0] for name in names)


def by_expert(parameter: Tensor, stacked: int) -> Tensor:
    """Return a view of a parameter whose first dimension counts experts.

    `stacked`: what :func:`stacked_experts` says of its module.
    """
    return parameter.view(stacked, -1, parameter.shape[-1]) if stacked else parameter


def _lies(name: str, parameter: Tensor, width: int) -> bool | None:
    """Return whether slices are (d_in, d_out), from which side has the model's width."""
    rows, columns = parameter.shape[1:]
    if rows == columns:
        return None
    inputs_first = rows == width  # of a projection from the hidden states
    return not inputs_first if name.startswith("down") else inputs_first


@contextmanager
def watched_experts(
    module: nn.Module, lies: Mapping[str, bool], seen: Seen, gradients: bool = False
) -> Iterator[None]:
    """Tell of everything that is multiplied by a slice of a module's parameters.

    `module`: holds fused experts; inside the ``with`` statement it runs as its class is written.
    `lies`: what :func:`expert_matrices` says of it. `seen`: called with the parameter, the expert
    and the inputs, for each product. `gradients`: call it with the gradients of the outputs
    instead, (tokens, d_out), when they are known. Raises ModelError: from the module's forward, if
    a parameter is used otherwise than in a product, or lies otherwise than it seemed to.
    """
    running, stacked = ExitStack(), stacked_experts(module)

    def enter(_module: nn.Module, _args: object) -> None:
        # What stands in for the parameters while a block runs is only known when it does.
        parameters = {name: by_expert(getattr(module, name).detach(), stacked) for name in lies}
        running.enter_context(_Watch(parameters, lies, seen, gradients))

    def leave(_module: nn.Module, _args: object, _output: object) -> None:
        running.close()

    handles = [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(leave, always_call=True),
    ]
    try:
        with _as_written(module):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _as_written(module: nn.Module) -> Iterator[None]:
    """Let a module run its own forward for a while, not one of the library's kernels."""
    config = getattr(module, "config", None)
    if config is None or not hasattr(config, "_experts_implementation"):
        yield
        return
    chosen = config._experts_implementation
    config._experts_implementation = _EAGER
    try:
        yield
    finally:
        config._experts_implementation = chosen


class _Watch(TorchFunctionMode):
    """Sees every product by a slice of some parameters."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        lies: Mapping[str, bool],
        seen: Seen,
        gradients: bool,
    ) -> None:
        super().__init__()
        self._gradients = gradients
        self._parameters = parameters
        self._lies = lies
        self._seen = seen

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Run a function, and look at it if it is a product by a slice."""
        output = func(*args, **(kwargs or {}))
        if func in _LINEAR or func in _PRODUCTS:
            inputs, weight = (*args, *(kwargs or {}).values())[:2]
            name = self._name(weight)
            if name is not None:
                self._product(name, inputs.detach(), weight.detach(), func in _LINEAR, output)
        elif isinstance(output, Tensor) and self._name(output) is None:
            for name in filter(None, map(self._name, args)):
                raise ModelError(
                    f"The experts' `{name}` goes into {getattr(func, '__name__', func)}, which is "
                    "no product that can be watched. This architecture is not supported with "
                    "statistics; use `pruner=magnitude`."
                )
        return output

    def _name(self, value: object) -> str | None:
        """Return the parameter that a tensor is a view of: by address, storages may be shared."""
        if isinstance(value, Tensor):
            for name, whole in self._parameters.items():
                if 0 <= value.data_ptr() - whole.data_ptr() < whole.nbytes:
                    return name
        return None

    def _product(
        self, name: str, inputs: Tensor, weight: Tensor, linear: bool, output: Any
    ) -> None:
        stored = self._parameters[name]
        as_stored = weight.stride()[-2:] == stored.stride()[-2:]
        if (linear == as_stored) is self._lies[name]:
            raise ModelError(
                f"The experts' `{name}` is multiplied by the other way round than its shape "
                "tells. This architecture is not supported with statistics; use "
                "`pruner=magnitude`."
            )
        if weight.ndim == 2:
            away = weight.data_ptr() - stored.data_ptr()
            expert = away // (stored.stride(0) * stored.element_size())

            def one(shown: Tensor) -> None:
                self._seen(name, expert, shown.reshape(-1, shown.shape[-1]))

            self._show(inputs, output, one)
            return

        def each(shown: Tensor) -> None:
            for expert, rows in enumerate(inputs):
                # Every expert gets all tokens, those that are not routed to it as zeros.
                self._seen(name, expert, shown[expert][(rows != 0).any(-1)])

        self._show(inputs, output, each)

    def _show(self, inputs: Tensor, output: Any, look: Callable[[Tensor], None]) -> None:
        """Let the inputs be looked at now, or the gradients of the output when they are known."""
        if not self._gradients:
            look(inputs)
        elif output.requires_grad:
            output.register_hook(look)
