"""The rules as tables: names, bounds and shapes of single values, and relations between values."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

from fedprune.config.allocation import parse_blocks
from fedprune.config.datasets import dataset_problems
from fedprune.config.pattern import Pattern
from fedprune.config.schema import Value
from fedprune.config.suggest import show

CHOICES: Mapping[str, tuple[str, ...]] = {
    "model.name": ("demo", "hf"),
    "model.dtype": ("auto", "float32", "bfloat16", "float16"),
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
    "pruner.name": ("wanda", "ria", "magnitude"),
    "pruner.group": ("layer", "row", "column"),
    "strategy.name": ("fedprllm",),
    "strategy.group": ("layer", "row", "column"),
    "strategy.ties": ("magnitude", "index", "random"),
    "strategy.client_weights": ("equal", "samples", "tokens"),
    "schedule.name": ("one_shot", "iterative"),
    "allocation.name": ("uniform", "per_block"),
    "federation.backend": ("ray", "inline"),
}
"""Key -> the names it may have."""


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
    "strategy.min_clients": Bounds(1),
    "strategy.timeout": Bounds(0, low_open=True),
    "strategy.wait": Bounds(0),
    "strategy.window": Bounds(1),
    "strategy.fraction": Bounds(0, 1, low_open=True, high_open=False),
    "schedule.blocks_per_message": Bounds(1),
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
    }
)
"""Texts that may be empty."""

Relation = Callable[[Mapping[str, Value]], Iterator[str]]


def _model_path(values: Mapping[str, Value]) -> Iterator[str]:
    name, path = values.get("model.name"), values.get("model.path")
    if name == "hf" and path == "":
        yield (
            "`model.path` must be a local folder or a hub id with model=hf, got ''. "
            "Write model=/path/to/folder or model=org/name."
        )
    if name == "demo" and path:
        yield (
            f"`model.path` must be empty with model=demo, got {show(path)}. "
            "Set the model itself: model=/path/to/folder or model=org/name."
        )


def _data_path(values: Mapping[str, Value]) -> Iterator[str]:
    source, path = values.get("data.source"), values.get("data.path")
    if source in ("files", "hub") and path == "":
        wanted = "a file or folder" if source == "files" else "a data set id or a local folder"
        yield (
            f"`data.path` must be {wanted} with `data.source` '{source}', got ''. "
            "Write data=/path/to/texts or data=org/name."
        )
    if source in ("stdlib", "node") and path:
        yield (
            f"`data.path` must be empty with `data.source` '{source}', got {show(path)}. "
            "Set the data itself, data=/path/to/texts or data=org/name; "
            "a node's own folder is `data-path` in its node_config."
        )


def _heldout_split(values: Mapping[str, Value]) -> Iterator[str]:
    split = values.get("data.split")
    if split is not None and values.get("data.heldout_split") == split:
        yield (
            f"`data.heldout_split` must differ from `data.split`, got {show(split)} for both. "
            "Write data.heldout_split=null to keep `data.heldout_fraction` of the split apart."
        )


def _glob(values: Mapping[str, Value]) -> Iterator[str]:
    glob = values.get("data.glob")
    if not isinstance(glob, str):
        return
    absolute = PurePosixPath(glob).is_absolute() or PureWindowsPath(glob).is_absolute()
    if absolute or ".." in PurePosixPath(glob).parts:
        yield (
            f"`data.glob` must stay inside the folder, got {show(glob)}. "
            "Write a relative pattern such as '**/*.txt'."
        )


def _pattern(values: Mapping[str, Value]) -> Iterator[str]:
    pattern, sparsity = values.get("pruner.pattern"), values.get("sparsity")
    if not isinstance(pattern, Pattern) or pattern.density is None:
        return
    wanted = 1 - pattern.density
    if isinstance(sparsity, float) and not math.isclose(sparsity, wanted, abs_tol=1e-6):
        yield (
            f"`sparsity` must be {wanted:g} with `pruner.pattern` '{pattern}', which keeps "
            f"{pattern.n} of every {pattern.m} weights, got {sparsity:g}. Set sparsity={wanted:g}, "
            "or pruner.pattern=unstructured."
        )


def _allocation(values: Mapping[str, Value]) -> Iterator[str]:
    name, blocks = values.get("allocation.name"), values.get("allocation.blocks")
    if name == "uniform" and blocks:
        yield (
            f"`allocation.blocks` must be empty with allocation=uniform, got {show(blocks)}. "
            "Write allocation=per_block."
        )
    if name != "per_block" or not isinstance(blocks, str):
        return
    if not blocks:
        yield (
            "`allocation.blocks` must list a sparsity for each block with allocation=per_block, "
            "got ''. Write allocation.blocks=0.4,0.6 or allocation=uniform."
        )
        return
    sparsity, pattern = values.get("sparsity"), values.get("pruner.pattern")
    mean = math.fsum(listed := parse_blocks(blocks)) / len(listed)
    if isinstance(sparsity, float) and abs(mean - sparsity) > 1e-3:
        yield (
            f"The mean of `allocation.blocks` must be `sparsity` {sparsity:g}, got {mean:g}. "
            f"Set sparsity={mean:g}, or change the list."
        )
    if isinstance(pattern, Pattern) and pattern.structured:
        yield (
            "`allocation.name` must be 'uniform' with an N:M pattern, got 'per_block'. "
            "Set pruner.pattern=unstructured."
        )


def _schedule(values: Mapping[str, Value]) -> Iterator[str]:
    blocks = values.get("schedule.blocks_per_message")
    if values.get("schedule.name") == "iterative" and blocks not in (None, 1):
        yield (
            "`schedule.blocks_per_message` must be null or 1 with schedule=iterative, which goes "
            f"block by block, got {show(blocks)}."
        )


def _baselines(values: Mapping[str, Value]) -> Iterator[str]:
    if values.get("data.source") == "node" and values.get("evaluation.centralized") is True:
        yield (
            "`evaluation.centralized` must be false with data=node, got true: the baseline pools "
            "all clients' texts, and those never leave their nodes."
        )


def _datasets(values: Mapping[str, Value]) -> Iterator[str]:
    names = values.get("evaluation.datasets")
    yield from dataset_problems(names if isinstance(names, str) else "")


def enough_simulated_clients(values: Mapping[str, Value]) -> Iterator[str]:
    """Yield a problem where a local simulation has fewer clients than the round needs.

    Only the command line knows how many clients there will be; the apps are told by Flower.
    """
    clients, wanted = values.get("federation.num_clients"), values.get("strategy.min_clients")
    if values.get("federation.connection") != "":
        return
    if isinstance(clients, int) and isinstance(wanted, int) and wanted > clients:
        yield (
            "`strategy.min_clients` must be at most `federation.num_clients` in a simulation, got "
            f"{wanted} with {clients}. Set federation.num_clients={wanted} or "
            f"strategy.min_clients={clients}."
        )


RELATIONS: tuple[Relation, ...] = (
    _model_path,
    _data_path,
    _heldout_split,
    _glob,
    _pattern,
    _allocation,
    _schedule,
    _baselines,
    _datasets,
)
"""Functions that yield the problems between values; a value with a problem of its own is absent."""
