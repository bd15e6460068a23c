"""The rules about single values as tables: names, bounds and shapes."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedprune.plugins import PRUNERS, plugin_names

CHOICES: Mapping[str, tuple[str, ...]] = {
    "model.name": ("demo", "hf"),
    "model.dtype": ("auto", "float32", "bfloat16", "float16"),
    "model.source": ("local", "server"),
    "data.source": ("stdlib", "files", "hub", "node"),
    "data.partition": (
        "by_group",
        "iid",
        "linear",
        "square",
        "exponential",
        "natural",
        "dirichlet",
    ),
    "data.sampling": ("packed", "published"),
    "data.joiner": ("eos", "space", "blank_line"),
    "pruner.name": ("wanda", "ria", "magnitude", "sparsegpt", "alps", "sparseswaps"),
    "pruner.group": ("layer", "row", "column"),
    "strategy.name": ("fedprllm", "fedspallm", "fedstats", "fedhessian"),
    "strategy.group": ("layer", "row", "column"),
    "strategy.ties": ("magnitude", "index", "random"),
    "strategy.client_weights": ("equal", "samples", "tokens"),
    "strategy.average": ("l0", "fedavg"),
    "strategy.rounding": ("ceil", "floor"),
    "strategy.ramp": ("none", "linear", "cubic"),
    "strategy.layer_resources": ("equal", "measured"),
    "strategy.layer_draw": ("stratified", "independent"),
    "strategy.layer_weights": ("equal", "inverse"),
    "strategy.pooling": ("tokens", "clients", "scaled"),
    "strategy.downlink": ("auto", "sums", "masks"),
    "strategy.moments": ("float32", "float16", "eigen", "nystrom"),
    "schedule.name": ("one_shot", "iterative"),
    "schedule.prefix": ("local", "dense"),
    "allocation.name": ("uniform", "per_block", "owl"),
    "federation.backend": ("ray", "inline"),
    "tracking.name": ("none", "tensorboard", "wandb", "mlflow", "trackio"),
}
"""Key -> the names it may have; installed plugins add to some, see :func:`choices`."""

_PLUGINS: Mapping[str, str] = {"pruner.name": PRUNERS}


def choices(key: str) -> tuple[str, ...]:
    """Return the names that a key may have on this machine."""
    more = plugin_names(_PLUGINS[key]) if key in _PLUGINS else ()
    return (*CHOICES[key], *more)


@dataclass(frozen=True)
class Bounds:
    """An interval of numbers; an open end is not part of it."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = True

    def hold(self, value: float) -> bool:
        """Return whether ``value`` lies within."""
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    @property
    def text(self) -> str:
        """The interval in words."""
        low = f"{'above' if self.low_open else 'at least'} {self.low:g}"
        high = f"{'below' if self.high_open else 'at most'} {self.high:g}"
        return low if math.isinf(self.high) else f"{low} and {high}"


BOUNDS: Mapping[str, Bounds] = {
    "sparsity": Bounds(0, 1),
    "seed": Bounds(0),
    "data.heldout_fraction": Bounds(0, 1, low_open=True),
    "data.max_documents": Bounds(1),
    "data.heldout_documents": Bounds(1),
    "data.alpha": Bounds(0, low_open=True),
    "pruner.seq_len": Bounds(2),
    "pruner.num_calibration_samples": Bounds(1),
    "pruner.batch_size": Bounds(1),
    "pruner.hidden_memory_mb": Bounds(0),
    "pruner.damping": Bounds(0, 1, low_open=True, high_open=False),
    "pruner.block_size": Bounds(1),
    "strategy.min_clients": Bounds(1),
    "strategy.timeout": Bounds(0, low_open=True),
    "strategy.rejoin": Bounds(0),
    "strategy.wait": Bounds(0),
    "strategy.window": Bounds(1),
    "strategy.fraction": Bounds(0, 1, low_open=True, high_open=False),
    "strategy.rounds": Bounds(1),
    "strategy.layer_fraction": Bounds(0, 1, low_open=True, high_open=False),
    "strategy.coverage": Bounds(1),
    "strategy.bits_per_weight": Bounds(0, low_open=True),
    "strategy.max_width": Bounds(1),
    "schedule.blocks_per_message": Bounds(1),
    "allocation.threshold": Bounds(0, low_open=True),
    "allocation.spread": Bounds(0, 1),
    "evaluation.seq_len": Bounds(2),
    "evaluation.max_windows": Bounds(1),
    "federation.num_clients": Bounds(1),
    "federation.client_cpus": Bounds(1),
    "federation.client_gpus": Bounds(0),
}
"""Key -> the numbers it may have."""

PATTERNED: Mapping[str, tuple[re.Pattern[str], str]] = {
    "data.name": (
        re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"),
        "a label of letters, digits, '_' and '-', 64 at most",
    ),
    "pruner.device": (
        re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?"),
        "'auto', 'cpu', 'cuda' or 'cuda:N'",
    ),
    "allocation.blocks": (
        re.compile(r"(0(\.[0-9]{1,6})?(,0(\.[0-9]{1,6})?){0,1023})?"),
        "sparsities at least 0 and below 1, one a block, separated by commas, such as '0.4,0.6'",
    ),
    "card.base_model": (
        re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)?"),
        "an id on the Hub, 'org/name'",
    ),
    "card.license": (
        re.compile(r"[a-z0-9.-]{0,64}"),
        "an identifier of the Hub's list, such as 'apache-2.0'",
    ),
    "tracking.project": (
        re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"),
        "a label of letters, digits, '_' and '-', 64 at most",
    ),
    "evaluation.tasks": (
        re.compile(r"([^,]+(,[^,]+)*)?"),
        "tasks of lm-evaluation-harness, YAML files or 'paper', separated by commas",
    ),
}
"""Key -> what its text must look like."""

EMPTY_ALLOWED = frozenset(
    {
        "model.path",
        "data.path",
        "output_dir",
        "federation.connection",
        "allocation.blocks",
        "evaluation.datasets",
        "evaluation.tasks",
        "card.base_model",
        "card.data_description",
        "card.license",
    }
)
"""Texts that may be empty."""


def parse_blocks(text: str) -> list[float]:
    """Return the sparsities that `allocation.blocks` lists."""
    return [float(part) for part in text.split(",")]


def list_blocks(sparsities: Sequence[float]) -> str:
    """Return sparsities as `allocation.blocks` lists them, rounded to 6 decimals."""
    return ",".join(f"{round(sparsity, 6) + 0.0:.6f}" for sparsity in sparsities)
