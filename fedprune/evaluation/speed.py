"""How fast a pruned model is, measured: as dense matrices with zeros, and as 2:4 sparse ones.

Zeros alone make nothing faster, a dense product multiplies them like any number. Kernels that skip
them exist for 2:4 patterns, on CUDA devices of compute capability 8.0 or higher
(`torch.sparse.to_sparse_semi_structured`); where they cannot be used, that is said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.sparse import to_sparse_semi_structured

from fedprune.models.device import explain_out_of_memory, wait
from fedprune.models.layout import DecoderLayout, find_layout
from fedprune.models.loading import whole_model

if TYPE_CHECKING:  # loads torch's compiler, a second that what holds no model need not take
    from transformers import PreTrainedModel

_LEAST_CAPABILITY = (8, 0)
_WARM_UP = 2
_LEAST_RUNS = 5
_LEAST_SECONDS = 0.5


@dataclass(frozen=True)
class LinearSpeed:
    """One kind of linear, as it is in the first block."""

    name: str
    shape: tuple[int, int]  # (d_out, d_in)
    dense_seconds: float  # median time of its product with `Speed.tokens` inputs
    sparse_seconds: float | None  # the same with a 2:4 kernel; None where it cannot be had


@dataclass(frozen=True)
class Speed:
    """How fast a model reads text: one forward pass over a batch, embeddings and head included."""

    # device, dtype: where, and in which type
    device: str
    dtype: str
    tokens: int
    dense: float  # tokens a second of the same model without zeros
    pruned: float  # the same of the pruned model, its zeros multiplied like other numbers
    # the same with every 2:4 matrix in its sparse form; None where there is none
    sparse: float | None
    why_not_sparse: str  # why; "" if it was measured
    linears: tuple[LinearSpeed, ...]


def why_not_sparse(device: torch.device) -> str:
    """Return why a device has no 2:4 kernels, "" if it has."""
    if device.type != "cuda":
        return (
            "its kernels need a CUDA device of compute capability 8.0 or higher, "
            f"this is a {device.type.upper()}"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return (
            "its kernels need compute capability 8.0 or higher, "
            f"{name} has {capability[0]}.{capability[1]}"
        )
    return ""


def is_two_four(weight: Tensor) -> bool:
    """Return whether at most two of every four consecutive inputs of a matrix are not zero."""
    if weight.shape[1] % 4:
        return False
    return bool((weight.reshape(-1, 4).count_nonzero(dim=1) <= 2).all())


def measure_speed(folder: Path, device: torch.device, seq_len: int, batch: int = 8) -> Speed:
    """Measure a model folder on a device, which must hold the whole model.

    `device`: where to run. On CUDA a float32 model runs in bfloat16, for which it has faster units.
    `seq_len`, `batch`: tokens of a sequence, and how many sequences pass at once. Raises ModelError
    if the model does not fit on the device.
    """
    model = whole_model(str(folder))
    with explain_out_of_memory("measuring speed", "evaluation.seq_len"), torch.inference_mode():
        if device.type == "cuda" and model.dtype == torch.float32:
            model.to(torch.bfloat16)
        model.to(device).eval()
        return _Bench(model, find_layout(model), device, seq_len, batch).speed()


@dataclass(frozen=True)
class _Bench:
    model: PreTrainedModel
    layout: DecoderLayout
    device: torch.device
    seq_len: int
    batch: int

    def speed(self) -> Speed:
        problem = why_not_sparse(self.device)
        if not problem and not self._two_four():
            problem = "no matrix of the model is 2:4 (`pruner.pattern='2:4'`)"
        linears = tuple(self._linear(name, not problem) for name in self.layout.linears(0))
        pruned = self._tokens_per_second()
        sparse = None
        if not problem:
            dense_weights = self._make_sparse()
            sparse = self._tokens_per_second()
            for module, kept in dense_weights.items():
                module.weight = kept
        self._fill()
        dense = self._tokens_per_second()
        name = self.device.type
        if name == "cuda":
            name = torch.cuda.get_device_name(self.device)
        dtype = str(self.model.dtype).removeprefix("torch.")
        tokens = self.batch * self.seq_len
        return Speed(name, dtype, tokens, dense, pruned, sparse, problem, linears)

    def _two_four(self) -> list[nn.Linear]:
        """Return the modules whose weights are 2:4; GPT-2's store theirs the other way round."""
        return [
            linear.module
            for block in range(len(self.layout.blocks))
            for linear in self.layout.linears(block).values()
            if isinstance(linear.module, nn.Linear) and is_two_four(linear.module.weight)
        ]

    def _linear(self, name: str, sparse: bool) -> LinearSpeed:
        linear = self.layout.linears(0)[name]
        weight = linear.orient(linear.parameter.detach()).contiguous()
        inputs = torch.randn(
            self.batch * self.seq_len, weight.shape[1], dtype=weight.dtype, device=self.device
        )
        dense_seconds = self._seconds(lambda: functional.linear(inputs, weight))
        sparse_seconds = None
        if sparse and is_two_four(weight):
            form = _sparse_form(weight)
            if form is not None:
                sparse_seconds = self._seconds(lambda: functional.linear(inputs, form))
        return LinearSpeed(name, linear.shape, dense_seconds, sparse_seconds)

    def _make_sparse(self) -> Mapping[nn.Linear, nn.Parameter]:
        """Give every 2:4 matrix its sparse form; return what was there."""
        replaced: dict[nn.Linear, nn.Parameter] = {}
        for module in self._two_four():
            kept = module.get_parameter("weight")
            form = _sparse_form(kept)
            if form is not None:
                replaced[module] = nn.Parameter(kept, requires_grad=False)
                module.weight = nn.Parameter(form, requires_grad=False)
        return replaced

    def _fill(self) -> None:
        """Put noise in place of zeros, as large as what survived."""
        for block in range(len(self.layout.blocks)):
            for linear in self.layout.linears(block).values():
                weight = linear.orient(linear.parameter)
                # Of half to one and a half times their size: a normal draw may be zero itself.
                size = (torch.rand_like(weight) + 0.5) * weight.std()
                noise = torch.where(torch.rand_like(weight) < 0.5, -size, size)
                weight.copy_(torch.where(weight == 0, noise, weight))

    def _tokens_per_second(self) -> float:
        size = self.batch, self.seq_len
        tokens = torch.randint(
            self.model.config.get_text_config(decoder=True).vocab_size, size, device=self.device
        )
        seconds = self._seconds(lambda: self.model(input_ids=tokens, use_cache=False))
        return tokens.numel() / seconds

    def _seconds(self, work: Callable[[], object]) -> float:
        """Return the median time of some work, after a warm-up."""
        for _ in range(_WARM_UP):
            work()
        times: list[float] = []
        total = 0.0
        while len(times) < _LEAST_RUNS or total < _LEAST_SECONDS:
            wait(self.device)
            started = time.perf_counter()
            work()
            wait(self.device)
            times.append(time.perf_counter() - started)
            total += times[-1]
        return median(times)


def _sparse_form(weight: Tensor) -> Tensor | None:
    """Return a 2:4 matrix in its sparse form, None if its shape or type has no kernel."""
    try:
        form: Tensor = to_sparse_semi_structured(weight)
    except (RuntimeError, ValueError):
        return None
    return form
