"""The rules about several values: which of them go together."""

import math
from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath

from fedprune.config.datasets import dataset_problems
from fedprune.config.pattern import Pattern
from fedprune.config.rules import parse_blocks
from fedprune.config.strategy_relations import STRATEGY_RELATIONS, Relation, Values
from fedprune.config.suggest import show


def _model_path(values: Values) -> Iterator[str]:
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


def _data_path(values: Values) -> Iterator[str]:
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


def _heldout_split(values: Values) -> Iterator[str]:
    split = values.get("data.split")
    if split is not None and values.get("data.heldout_split") == split:
        yield (
            f"`data.heldout_split` must differ from `data.split`, got {show(split)} for both. "
            "Write data.heldout_split=null to keep `data.heldout_fraction` of the split apart."
        )


def _glob(values: Values) -> Iterator[str]:
    glob = values.get("data.glob")
    if not isinstance(glob, str):
        return
    absolute = PurePosixPath(glob).is_absolute() or PureWindowsPath(glob).is_absolute()
    if absolute or ".." in PurePosixPath(glob).parts:
        yield (
            f"`data.glob` must stay inside the folder, got {show(glob)}. "
            "Write a relative pattern such as '**/*.txt'."
        )


def _pattern(values: Values) -> Iterator[str]:
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


def _allocation(values: Values) -> Iterator[str]:
    name, blocks = values.get("allocation.name"), values.get("allocation.blocks")
    pattern = values.get("pruner.pattern")
    if name in ("uniform", "owl") and blocks:
        yield (
            f"`allocation.blocks` must be empty with allocation={name}, got {show(blocks)}. "
            "Write allocation=per_block."
        )
    if name in ("per_block", "owl") and isinstance(pattern, Pattern) and pattern.structured:
        yield (
            f"`allocation.name` must be 'uniform' with an N:M pattern, got {show(name)}. "
            "Set pruner.pattern=unstructured."
        )
    if name != "per_block" or not isinstance(blocks, str):
        return
    if not blocks:
        yield (
            "`allocation.blocks` must list a sparsity for each block with allocation=per_block, "
            "got ''. Write allocation.blocks=0.4,0.6 or allocation=uniform."
        )
        return
    sparsity = values.get("sparsity")
    mean = math.fsum(listed := parse_blocks(blocks)) / len(listed)
    if isinstance(sparsity, float) and abs(mean - sparsity) > 1e-3:
        yield (
            f"The mean of `allocation.blocks` must be `sparsity` {sparsity:g}, got {mean:g}. "
            f"Set sparsity={mean:g}, or change the list."
        )


def _spread(values: Values) -> Iterator[str]:
    sparsity, spread = values.get("sparsity"), values.get("allocation.spread")
    if values.get("allocation.name") != "owl":
        return
    if not isinstance(sparsity, float) or not isinstance(spread, float):
        return
    room = min(sparsity, 1 - sparsity)
    if spread >= room:
        yield (
            f"`allocation.spread` must be below {room:g} with `sparsity` {sparsity:g}, so that "
            f"every block's sparsity is at least 0 and below 1, got {spread:g}. "
            f"Set allocation.spread={room / 2:g} or allocation=uniform."
        )


def _pruner_group(values: Values) -> Iterator[str]:
    name, group = values.get("pruner.name"), values.get("pruner.group")
    allowed = {"sparsegpt": ("layer", "row"), "alps": ("layer", "row"), "sparseswaps": ("row",)}
    names = allowed.get(str(name))
    if names is None or group is None or group in names:
        return
    why = (
        "which trades the weights of one output"
        if name == "sparseswaps"
        else "which masks a part of every row at a time"
    )
    yield (
        f"`pruner.group` must be {' or '.join(show(option) for option in names)} with "
        f"pruner={name}, {why}, got {show(group)}. Set pruner.group={names[0]}."
    )


def _prefix(values: Values) -> Iterator[str]:
    if values.get("schedule.name") == "iterative" and values.get("schedule.prefix") == "dense":
        yield (
            "`schedule.prefix` must be 'local' with schedule=iterative, where earlier blocks are "
            "the pruned ones, got 'dense'. Set schedule=one_shot, or schedule.prefix=local."
        )


def _schedule(values: Values) -> Iterator[str]:
    blocks = values.get("schedule.blocks_per_message")
    if values.get("schedule.name") == "iterative" and blocks not in (None, 1):
        yield (
            "`schedule.blocks_per_message` must be null or 1 with schedule=iterative, which goes "
            f"block by block, got {show(blocks)}."
        )


def _baselines(values: Values) -> Iterator[str]:
    if values.get("data.source") == "node" and values.get("evaluation.centralized") is True:
        yield (
            "`evaluation.centralized` must be false with data=node, got true: the baseline pools "
            "all clients' texts, and those never leave their nodes."
        )


def _datasets(values: Values) -> Iterator[str]:
    names = values.get("evaluation.datasets")
    yield from dataset_problems(names if isinstance(names, str) else "")


def enough_simulated_clients(values: Values) -> Iterator[str]:
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
    _pruner_group,
    _allocation,
    _spread,
    _schedule,
    _prefix,
    _baselines,
    _datasets,
    *STRATEGY_RELATIONS,
)
"""Functions that yield the problems between values."""
