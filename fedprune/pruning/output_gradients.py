"""What the loss says of a linear's outputs: sums over gradients there, on the model's own texts.

The public model writes the texts itself (`fedprune.models.writing`), so that the server needs no
client's. Gradients are found one block's graph at a time (`fedprune.models.backward`) and added up
as any statistic of a linear's inputs is, with a linear's outputs in place of its inputs.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedprune.config import RunConfig
from fedprune.disk import home
from fedprune.models.backward import run_backward
from fedprune.models.device import Limits, pick_device
from fedprune.models.loading import LoadedModel
from fedprune.models.writing import write_texts
from fedprune.pruning.recorder import watched
from fedprune.pruning.statistics import (
    ColumnStatistics,
    Recording,
    Statistic,
    StatisticKind,
    get_kind,
)
from fedprune.seeds import derive_seed

_LENGTH = 64  # tokens of a text: each costs a pass over the model

Take = Callable[[int, Mapping[str, Any]], None]
"""What is told of a block, the last one first: name of the linear -> statistic of its outputs."""

Report = Callable[[int, int], None]
"""Told how many passes over a block or the whole model are done, and of how many."""


def _nobody(_done: int, _total: int) -> None: ...


_WRITTEN: "WeakKeyDictionary[nn.Module, dict[tuple[object, ...], list[Tensor]]]" = (
    WeakKeyDictionary()
)


def own_texts(
    config: RunConfig, model: LoadedModel, report: Callable[[int], None] = lambda _tokens: None
) -> list[Tensor]:
    """Return `allocation.texts` texts of at most 64 tokens that the public model writes, by `seed`.

    They are written once for a loaded model: an allocation and a solver may both ask for them.
    """
    count, length = config.allocation.texts, _length(config)
    seed = derive_seed(config.seed, "own texts")
    device, limits = pick_device(config.pruner.device), Limits.of(config.pruner)
    written = _WRITTEN.setdefault(model.model, {})
    key = count, length, seed, str(device)
    if key not in written:
        written[key] = list(write_texts(model, count, length, seed, device, limits, report))
    return written[key]


def _length(config: RunConfig) -> int:
    return min(config.pruner.seq_len, _LENGTH)


def output_statistics(
    config: RunConfig,
    model: LoadedModel,
    kind: StatisticKind[Any],
    take: Take,
    report: Report = _nobody,
) -> None:
    """Add up the gradients of the loss at every linear's outputs, on the model's own texts.

    `config`: as for :func:`own_texts`, and `pruner.device`. `kind`: what is recorded of the
    gradients, (tokens, d_out) a text: "columns" or "moments". `take`: called with a block's index
    and its linears' statistics when they are complete. `report`: told after each token of the
    texts, which takes a pass over the model, and each block. Raises ModelError as
    `fedprune.models.backward.run_backward`.
    """

    @contextmanager
    def watch(block: int) -> Iterator[None]:
        linears = model.layout.linears(block)
        found = {name: kind.start(linear.shape[0]) for name, linear in linears.items()}

        def hook(name: str, module: nn.Module) -> RemovableHandle:
            return module.register_forward_hook(_hook(found[name]))

        with watched(linears, hook, lambda name, one: found[name].add(one), gradients=True):
            yield
        take(block, {name: recording.close() for name, recording in found.items()})
        blocks_left.remove(block)
        report(total - len(blocks_left), total)

    blocks_left = set(range(len(model.layout.blocks)))
    total = _length(config) + len(blocks_left)
    texts = own_texts(config, model, lambda tokens: report(tokens, total))
    run_backward(model, texts, watch, pick_device(config.pruner.device), Limits.of(config.pruner))


def mean_squares(
    config: RunConfig, model: LoadedModel, report: Report = _nobody
) -> tuple[Mapping[str, float], ...]:
    """Return how much the loss minds a change of each linear's outputs.

    The mean over tokens and outputs of the squared gradient of the loss, f_l: to second order,
    errors of mean square e at one of the linear's outputs cost about f_l e / 2 nats a token, where
    they are unlike the gradients and each other (the Fisher information for the Hessian).

    `config`, `model`, `report`: as for :func:`output_statistics`. Returns block -> name of the
    linear -> f_l; 0 of an expert that no token of these texts reached.
    """
    found: dict[int, Mapping[str, float]] = {}

    def take(block: int, statistics: Mapping[str, Any]) -> None:
        found[block] = {name: _mean_square(one) for name, one in statistics.items()}

    output_statistics(config, model, get_kind("columns"), take, report)
    return tuple(found.get(block, {}) for block in range(len(model.layout.blocks)))


class OutputMoments:
    """Second moments of the gradients at every linear's outputs, for `pruner.two_sided`.

    Found in one pass for all blocks when the first is asked for; until they are gone they lie on
    the disk, d_out^2 numbers of four bytes a linear.
    """

    def __init__(self, config: RunConfig, model: LoadedModel, report: Report = _nobody) -> None:
        self._config, self._model, self._report = config, model, report
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __call__(self, block: int) -> dict[str, Tensor]:
        """Return name of the linear -> sum over tokens of g g^T, float32, shape (d_out, d_out).

        Empty without `pruner.two_sided`. Experts that no token of the texts reached are missing.

        Raises ModelError as :func:`output_statistics`.
        """
        if not self._config.pruner.two_sided:
            return {}
        if self._folder is None:
            self._folder = self._found()
        place = Path(self._folder.name) / f"{block}.safetensors"
        return load_file(place) if place.exists() else {}

    def _found(self) -> "tempfile.TemporaryDirectory[str]":
        room = home() / "spill"
        room.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = tempfile.TemporaryDirectory(dir=room)

        def take(block: int, statistics: Mapping[str, Any]) -> None:
            known = {n: one.moments.contiguous() for n, one in statistics.items() if one.tokens}
            save_file(known, Path(folder.name) / f"{block}.safetensors")

        output_statistics(self._config, self._model, get_kind("moments"), take, self._report)
        return folder


def _mean_square(statistic: Statistic) -> float:
    if not isinstance(statistic, ColumnStatistics) or not statistic.tokens:
        return 0.0
    return float(statistic.sum_squares.mean(dtype=torch.float64)) / statistic.tokens


def _hook(recording: Recording[Any]) -> Callable[[nn.Module, object, Tensor], None]:
    def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(recording.add)  # type: ignore[no-untyped-call]

    return hook
