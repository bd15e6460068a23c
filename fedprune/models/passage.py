"""How a decoder's own forward pass goes through its blocks, seen on a copy without weights.

Which lists of modules are called at all on text, in which order, what a block returns and what the
next one gets of it, and which linear maps nobody calls: all follow from the configuration. So a
hollow copy of the model runs on a few tokens. Its parameters are one number that looks like many,
its linear maps return random numbers without multiplying, and nothing is read from a checkpoint.
"""

import copy
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from fedprune.errors import ModelError
from fedprune.models.experts import fused_parameters

HIDDEN = "hidden_states"
_PROBE_TOKENS = 8
_PARAMETER = 0.5  # of the hollow copy: any number that neither divides by zero nor overflows
_SEEDS = (1, 2)
_PRODUCTS = (nn.Linear.forward, Conv1D.forward)


@dataclass(frozen=True)
class Passage:
    """The way of hidden states through a model's blocks."""

    order: tuple[int, ...]  # the blocks in the order in which they are called, each once
    # whether each block gets what the one before returned as it is, and nothing else depends on
    # what blocks return: then all blocks' other arguments are known from the embeddings alone
    plain: bool
    # what each called block returned, with the numbers of the hollow copy
    outputs: tuple[object, ...] = ()
    # linear maps that no block called, by their names in the model. Those of experts to which
    # nothing was routed are not among them.
    idle: frozenset[str] = frozenset()

    @property
    def tail(self) -> tuple[None, ...] | None:
        """What stands for all that a block returns beside the hidden states; None: a bare tensor.

        Only plain passages do without it.
        """
        first = self.outputs[0]
        return (None,) * (len(first) - 1) if isinstance(first, tuple | list) else None


@dataclass
class Trace:
    """What a forward pass on text called."""

    model: nn.Module
    # (name of the list of modules, index in it, what the module returned), in order
    calls: list[tuple[str, int, object]] = field(default_factory=list)
    linears: set[str] = field(default_factory=set)  # linear maps that were called, by name
    modules: set[str] = field(default_factory=set)  # modules that were called, by name
    # lists of modules whose modules leave something in a mapping that they get as an argument
    writers: set[str] = field(default_factory=set)
    # those that leave something in a list, or in a mapping inside of an argument
    hiders: set[str] = field(default_factory=set)
    error: Exception | None = None  # what stopped the pass before its end

    def order(self, name: str) -> list[int]:
        """Return the indices of a list's modules in the order of their calls."""
        return [index for called, index, _ in self.calls if called == name]

    def outputs(self, name: str) -> list[object]:
        """Return what a list's modules returned, in the same order."""
        return [output for called, _, output in self.calls if called == name]


def trace(model: nn.Module) -> Trace:
    """Run a hollow copy of a model on a few tokens and return what that called.

    `model`: the model; its weights may be on the meta device and are not looked at.
    """
    with torch.device("cpu"):
        hollow = _hollow(model)
    found = Trace(hollow)
    handles = []
    for name, module in hollow.named_modules():
        if isinstance(module, nn.ModuleList):
            for index, child in enumerate(module):
                before, after = _noting(found, name, index)
                handles.append(child.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(child.register_forward_hook(after, with_kwargs=True))
        elif is_linear(module):
            handles.append(module.register_forward_pre_hook(_calling(found.linears, name)))
        handles.append(module.register_forward_pre_hook(_calling(found.modules, name)))
    try:
        _run(hollow)
    except Exception as error:  # whatever a family does to numbers that mean nothing
        found.error = error
    finally:
        for handle in handles:
            handle.remove()
    return found


def passage(found: Trace, prefix: str) -> Passage:
    """Return how hidden states pass through the blocks of a list, from what a trace saw.

    `found`: from :func:`trace`. Raises ModelError if blocks are called more than once, or need what
    others than the one before returned.
    """
    kind = type(found.model).__name__
    blocks = found.model.get_submodule(prefix)
    assert isinstance(blocks, nn.ModuleList)
    order, outputs = found.order(prefix), found.outputs(prefix)
    if len(set(order)) < len(order):
        again = next(index for place, index in enumerate(order) if index in order[:place])
        raise ModelError(
            f"{kind} cannot be pruned block by block: its forward pass calls `{prefix}.{again}` "
            "more than once, so that its inputs are not known until it has run. Choose a model "
            "whose blocks run once each."
        )
    if found.error is not None and len(order) < len(blocks):
        said = " ".join(str(found.error).split())
        raise ModelError(
            f"{kind} cannot be pruned block by block: after {len(order)} of the {len(blocks)} "
            f"blocks in `{prefix}` its forward pass on token ids alone stops with "
            f"{type(found.error).__name__}: {said} Set `model.path` to a causal language model."
        )
    odd = next((one for one in outputs if not isinstance(_first(one), Tensor)), None)
    if odd is not None:
        raise ModelError(
            f"{kind} cannot be pruned block by block: a decoder block in `{prefix}` returned "
            f"{type(odd).__name__}, expected its hidden states as a tensor or as the first of a "
            "tuple. Choose another model."
        )
    if order != sorted(order):
        raise ModelError(
            f"{kind} cannot be pruned block by block: its forward pass calls `{prefix}.{order[0]}` "
            f"and others not in the order of the list. Choose another model."
        )
    if prefix in found.hiders:
        raise ModelError(
            f"{kind} cannot be pruned block by block: blocks of `{prefix}` leave something for "
            "others in a list that they share. Choose another model."
        )
    with torch.device("cpu"):
        plain = _is_plain(found.model, prefix, blocks, order, outputs, prefix in found.writers)
    return Passage(tuple(order), plain, tuple(outputs), _idle(found, prefix, blocks, order))


def unread(found: Trace, prefix: str) -> frozenset[str]:
    """Return the outermost modules outside of the blocks that text does not reach, by name.

    `found`: from :func:`trace`; none is unread if it stopped before its end.
    """
    if found.error is not None:
        return frozenset()
    owners = Counter(id(one) for _, one in found.model.named_parameters(remove_duplicate=False))
    names = frozenset(
        name
        for name in _uncalled(found, "", found.model, prefix)
        if not _shares(found.model.get_submodule(name), owners)
    )
    if not names:
        return names
    # A module may use another's weight without calling it: these run without them.
    for name in names:
        for module in found.model.get_submodule(name).modules():
            for key, parameter in module.named_parameters(recurse=False):
                module._parameters[key] = nn.Parameter(parameter.to("meta"), requires_grad=False)
    try:
        _run(found.model)
    except Exception:  # whatever it says, they are needed
        return frozenset()
    return names


def _shares(part: nn.Module, owners: Mapping[int, int]) -> bool:
    """Whether a part has a parameter that is another part's too."""
    own = Counter(id(one) for _, one in part.named_parameters(remove_duplicate=False))
    return any(owners[one] > count for one, count in own.items())


def _uncalled(found: Trace, name: str, module: nn.Module, prefix: str) -> Iterator[str]:
    for key, child in module.named_children():
        inner = f"{name}.{key}" if name else key
        if inner == prefix or next(child.parameters(), None) is None:
            continue
        if any(one == inner or one.startswith(f"{inner}.") for one in found.modules):
            yield from _uncalled(found, inner, child, prefix)
        else:
            yield inner


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies its input by a matrix."""
    return isinstance(module, nn.Linear | Conv1D)


def _idle(found: Trace, prefix: str, blocks: nn.ModuleList, order: Sequence[int]) -> frozenset[str]:
    """Return the linear maps that are never called, whatever is routed where."""
    idle = set()
    for index, block in enumerate(blocks):
        for name, module in block.named_modules():
            full = f"{prefix}.{index}.{name}"
            # One of a list inside a block may be an expert that this text was not routed to.
            chosen = index in order and any(part.isdigit() for part in name.split("."))
            if is_linear(module) and full not in found.linears and not chosen:
                idle.add(full)
    return frozenset(idle)


# ----------------------------------------------------------------------------- the hollow copy


def _hollow(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose tensors are one number each, or the copy's own buffers."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(_constant(parameter), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = _constant(buffer) if buffer.is_meta else buffer.detach().cpu().clone()
    hollow: nn.Module = copy.deepcopy(model, memo).eval()
    for number, module in enumerate(hollow.modules()):
        if type(module).forward in _PRODUCTS:  # not a subclass that does something else
            rows, columns = module.get_parameter("weight").shape
            width = columns if isinstance(module, Conv1D) else rows
            module.__dict__["forward"] = partial(_stand_in, number, width)
        elif fused_parameters(module):
            wide = getattr(module, "output_size", None)  # else what goes in
            module.__dict__["forward"] = partial(_stand_in, number, wide)
    return hollow


def _constant(tensor: Tensor) -> Tensor:
    value = _PARAMETER if tensor.is_floating_point() else 0
    return torch.full((), value, dtype=tensor.dtype).expand(tensor.shape)


def _stand_in(seed: int, width: int | None, *args: object, **kwargs: object) -> Tensor:
    """Return made-up outputs that depend on the inputs, each row on its own."""
    given = next(one for one in (*args, *kwargs.values()) if isinstance(one, Tensor))
    inputs = given.float()
    generator = torch.Generator().manual_seed(seed)
    shape = (*inputs.shape[:-1], inputs.shape[-1] if width is None else width)
    made = torch.randn(shape, generator=generator) + inputs.mean(-1, keepdim=True)
    return made.to(given.dtype if given.is_floating_point() else torch.get_default_dtype())


def _run(hollow: nn.Module) -> object:
    """Run a hollow copy on a few tokens; what is after the blocks runs too."""
    tokens = torch.arange(3, 3 + _PROBE_TOKENS)[None]
    with (
        torch.no_grad(),
        torch.random.fork_rng([]),
        plain_forward(hollow),
        torch.device("cpu"),
        _one_thread(),
    ):
        torch.manual_seed(0)
        return hollow(input_ids=tokens, use_cache=False)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute in one thread for a while.

    On thousands of tiny tensors threads mostly wait for each other: where cores are busy the pass
    takes ten times as long and more.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def plain_forward(model: nn.Module) -> Iterator[None]:
    """Undo for a while what a model's configuration says about how it runs and what it returns."""
    wanted = {
        "return_dict": True,
        "output_attentions": False,
        "output_hidden_states": False,
        "rescale_every": 0,  # of RWKV, which else divides weights in place, against overflows
    }
    config = getattr(model, "config", None)
    text = config.get_text_config() if isinstance(config, PreTrainedConfig) else None
    parts = {id(part): part for part in (config, text) if part is not None}
    odd = [
        (part, name, getattr(part, name))
        for part in parts.values()
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


def _noting(found: Trace, name: str, index: int) -> tuple[Callable[..., None], Callable[..., None]]:
    held: list[tuple[list[object], list[object]]] = []

    def look(args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        outermost, further = list[object](), list[object]()
        for value in (*args, *kwargs.values()):
            if isinstance(value, Mapping):
                outermost += value.values()
                further += [part for entry in value.values() for part in _entries(entry)]
            else:
                further += _entries(value)
        held.append((outermost, further))

    def after(
        _module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object
    ) -> None:
        found.calls.append((name, index, output))
        look(args, kwargs)
        now, then = held.pop(), held.pop()
        if _changed(then[0], now[0]):
            found.writers.add(name)
        elif _changed(then[1], now[1]):
            found.hiders.add(name)

    return lambda _module, args, kwargs: look(args, kwargs), after


def _changed(then: list[object], now: list[object]) -> bool:
    return len(now) != len(then) or any(map(operator.is_not, now, then))


def _entries(value: object) -> list[object]:
    """Return what is in a value's mappings, lists and tuples, in their order."""
    if isinstance(value, Mapping):
        return [part for entry in value.values() for part in _entries(entry)]
    if isinstance(value, tuple | list):
        return [part for entry in value for part in _entries(entry)]
    return [value]


def _calling(called: set[str], name: str) -> Callable[..., None]:
    def note(_module: nn.Module, _args: object) -> None:
        called.add(name)

    return note


# ------------------------------------------------------------------------ what depends on what


def _is_plain(
    hollow: nn.Module,
    prefix: str,
    blocks: nn.ModuleList,
    order: Sequence[int],
    outputs: Sequence[object],
    writes: bool,
) -> bool:
    """Whether each block gets the hidden states of the one before, and nothing else of any.

    Raises ModelError if a block needs what was returned earlier than by the one before.
    """
    first, second = (_made_up(outputs, seed) for seed in _SEEDS)
    seen, other = (_seen(hollow, blocks, order, made) for made in (first, second))
    within = slice(1, len(order))
    if (
        not writes
        and all(
            _same(*map(_without_hidden, pair))
            for pair in zip(seen[within], other[within], strict=False)
        )
        and all(
            _hidden(call) is not None and _same(_hidden(call), _first(made))
            for call, made in zip(seen[within], first, strict=False)
        )
    ):
        return True
    for parity in (0, 1):  # blocks of one parity return something else
        mixed = [
            two if place % 2 == parity else one
            for place, (one, two) in enumerate(zip(first, second, strict=True))
        ]
        changed = _seen(hollow, blocks, order, mixed)
        for place in range(1, len(seen)):
            if (place - 1) % 2 != parity and not _same(seen[place], changed[place]):
                where = f"`{prefix}.{order[place]}`" if place < len(order) else "The head"
                raise ModelError(
                    f"{type(hollow).__name__} cannot be pruned block by block: {where} needs what "
                    "earlier blocks than the one before it returned. Choose another model."
                )
    return False


Call = tuple[tuple[object, ...], dict[str, object]]


class FinishedError(Exception):
    """Leaves a forward pass once everything has been seen."""


def _seen(
    hollow: nn.Module, blocks: nn.ModuleList, order: Sequence[int], made: Sequence[object]
) -> list[Call]:
    """Return what each block, and the head, is called with where blocks return what is given."""
    calls: list[Call] = []

    def stand_in(last: bool, *args: object, **kwargs: object) -> object:
        calls.append((tuple(map(_kept, args)), {name: _kept(one) for name, one in kwargs.items()}))
        if last:
            raise FinishedError
        return _kept(made[len(calls) - 1])

    head = getattr(hollow, "get_output_embeddings", lambda: None)()
    stand_ins = [(blocks[index], partial(stand_in, False)) for index in order]
    stand_ins += [] if head is None else [(head, partial(stand_in, True))]
    with replaced_forwards(stand_ins), suppress(FinishedError):
        _run(hollow)
    return calls


@contextmanager
def replaced_forwards(
    pairs: Sequence[tuple[nn.Module, Callable[..., object]]],
) -> Iterator[None]:
    """Let functions answer in place of modules' forward."""
    own = [module.__dict__.get("forward") for module, _ in pairs]
    try:
        for module, stand_in in pairs:
            module.__dict__["forward"] = stand_in
        yield
    finally:
        for (module, _), forward in zip(pairs, own, strict=True):
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward


def _made_up(outputs: Sequence[object], seed: int) -> list[object]:
    """Return outputs of the same form with other numbers."""
    generator = torch.Generator().manual_seed(seed)

    def change(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.clone() if seed == _SEEDS[0] else (tensor + 1).to(tensor.dtype)
        return torch.randn(tuple(tensor.shape), generator=generator).to(tensor.dtype)

    return [map_leaves(output, change) for output in outputs]


def map_leaves(value: object, change: Callable[[Tensor], object]) -> object:
    """Return tuples, lists and mappings with the tensors in them changed, all else as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        parts = [map_leaves(entry, change) for entry in value]
        return value._make(parts) if hasattr(value, "_make") else tuple(parts)
    if isinstance(value, list):
        return [map_leaves(entry, change) for entry in value]
    if isinstance(value, MutableMapping):
        made = copy.copy(value)
        for key, entry in value.items():
            made[key] = map_leaves(entry, change)
        return made
    return value


def _kept(value: object) -> object:
    """Return a copy of an argument: some blocks and models write into what they get."""
    return map_leaves(value, torch.clone)


def _hidden(call: Call) -> object:
    args, kwargs = call
    return kwargs.get(HIDDEN, args[0] if args else None)


def _first(output: object) -> object:
    return output[0] if isinstance(output, tuple | list) and output else output


def _without_hidden(call: Call) -> Call:
    args, kwargs = call
    if HIDDEN in kwargs:
        return args, {name: value for name, value in kwargs.items() if name != HIDDEN}
    return args[1:], kwargs


def _same(one: object, other: object) -> bool:
    """Whether two arguments are equal, tensors bit for bit."""
    if isinstance(one, Tensor):
        return (
            isinstance(other, Tensor)
            and one.shape == other.shape
            and one.dtype == other.dtype
            and torch.equal(one.nan_to_num(), other.nan_to_num())
        )
    if isinstance(one, tuple | list):
        return (
            isinstance(other, tuple | list)
            and len(one) == len(other)
            and all(map(_same, one, other))
        )
    if isinstance(one, Mapping):
        return (
            isinstance(other, Mapping)
            and one.keys() == other.keys()
            and all(_same(entry, other[key]) for key, entry in one.items())
        )
    comparable = isinstance(one, bool | int | float | str | torch.dtype | None)
    return not comparable or one is other or bool(one == other)
