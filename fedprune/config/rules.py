"""The rules as tables: names, bounds and shapes of single values, and relations between values."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

from fedprune.config.pattern import Pattern
from fedprune.config.schema import Value
from fedprune.config.suggest import show

CHOICES: Mapping[str, tuple[str, ...]] = {
    "model.name": ("demo", "hf"),
    "model.dtype": ("auto", "float32", "bfloat16", "float16"),
    "data.source": ("stdlib", "files", "hub", "node"),
    "data.partition": ("by_group", "iid"),
    "pruner.name": ("wanda", "magnitude"),
    "pruner.group": ("layer", "row", "column"),
    "strategy.name": ("fedprllm",),
    "schedule.name": ("one_shot",),
}
"""Key -> the names it may have."""


@dataclass(frozen=True)
class Bounds:
    """An interval of numbers; an open end is not part of it."""

    low: float
    high: float = math.inf
    low_open: bool = False

    def hold(self, value: float) -> bool:
        """Return whether ``value`` lies within; the high end is always open."""
        above = value > self.low if self.low_open else value >= self.low
        return above and value < self.high

    @property
    def text(self) -> str:
        """The interval in words."""
        low = f"{'above' if self.low_open else 'at least'} {self.low:g}"
        return low if math.isinf(self.high) else f"{low} and below {self.high:g}"


BOUNDS: Mapping[str, Bounds] = {
    "sparsity": Bounds(0, 1),
    "seed": Bounds(0),
    "data.heldout_fraction": Bounds(0, 1, low_open=True),
    "data.max_documents": Bounds(1),
    "pruner.seq_len": Bounds(2),
    "pruner.num_calibration_samples": Bounds(1),
    "strategy.min_clients": Bounds(1),
    "strategy.timeout": Bounds(0, low_open=True),
    "strategy.wait": Bounds(0),
    "strategy.window": Bounds(1),
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
}
"""Key -> what its text must look like."""

EMPTY_ALLOWED = frozenset({"model.path", "data.path", "output_dir", "federation.connection"})
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


def _baselines(values: Mapping[str, Value]) -> Iterator[str]:
    if values.get("data.source") == "node" and values.get("evaluation.centralized") is True:
        yield (
            "`evaluation.centralized` must be false with data=node, got true: the baseline pools "
            "all clients' texts, and those never leave their nodes."
        )


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
    _baselines,
)
"""Functions that yield the problems between values; a value with a problem of its own is absent."""
