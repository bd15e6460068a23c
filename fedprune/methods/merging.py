"""Statistics folders of one model and different participants, added up block by block."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fedprune.disk import new_folder
from fedprune.errors import ConfigError, ModelError, WireError
from fedprune.methods.collection import TOKENS, kept
from fedprune.methods.state import Arrays
from fedprune.methods.statistics_folder import (
    StatisticsFolder,
    read_statistic,
    write_block,
    write_manifest,
)
from fedprune.pruning.block_kinds import BlockKind
from fedprune.pruning.kinds import find_kind, kind_names
from fedprune.pruning.statistics import StatisticKind, get_kind


def merge(folders: Sequence[str | Path], output: Path) -> StatisticsFolder:
    """Write a statistics folder that is the sum of others; a block is in memory at a time.

    Exact sums add up exactly: the result is that of one federation of all participants. Second
    moments are added in float64 and rounded to float32, as a federation does it, only once more.

    `folders`: two or more statistics folders, or the runs that made them. Raises ConfigError if one
    is damaged, they were collected or pooled otherwise, or a participant is in two. Raises
    ModelError if they are of different models, or the folder is taken.
    """
    if len(folders) < 2:
        raise ConfigError(f"`fedprune merge` adds up two folders or more, got {len(folders)}.")
    opened = [StatisticsFolder.open(folder) for folder in folders]
    first = opened[0]
    for other in opened[1:]:
        _check_same(first, other)
    for one, other in combinations(opened, 2):
        _check_apart(one, other)
    told = [folder.manifest for folder in opened]
    manifest = replace(
        first.manifest,
        runs=tuple(dict.fromkeys(run for one in told for run in one.runs)),
        data=tuple(dict.fromkeys(label for one in told for label in one.data)),
        participants=tuple(client for one in told for client in one.participants),
        privacy=_weakest([one.privacy for one in told]),
    )
    with new_folder(output) as partial:
        for block in range(first.num_blocks):
            total = first.arrays(block)
            for other in opened[1:]:
                total = _added(first, block, total, other.arrays(block))
            write_block(partial, block, total)
        write_manifest(partial, manifest)
    return StatisticsFolder.open(output)


def _weakest(promises: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return what holds of each sample of all: each is in one folder only; {} if one has none."""
    if not all(promises):
        return {}
    found = max(promises, key=lambda one: (one["epsilon"], one["delta"]))
    totals = {key: sum(one[key] for one in promises) for key in ("samples", "clients")}
    return {**found, **totals, "relative_noise": max(one["relative_noise"] for one in promises)}


def _check_same(first: StatisticsFolder, other: StatisticsFolder) -> None:
    """Refuse folders whose sums mean different things."""
    other.check_model(first.manifest.model, first.manifest.shapes)
    one, two = first.manifest, other.manifest
    for kind in one.kinds:
        if kind not in kind_names():
            raise ConfigError(
                f"'{kind}' in '{first.path}' was collected for one model alone and does not add up "
                "by itself. Collect it from all participants together."
            )
    if set(one.kinds) != set(two.kinds) or one.inputs != two.inputs:
        raise ConfigError(
            f"'{first.path}' has {', '.join(one.kinds)} and '{other.path}' {', '.join(two.kinds)}: "
            "only the same statistics add up. Collect both with the same `strategy.statistics`."
        )
    for key in ("pooling", "moments", "bits_per_weight", "max_width"):
        values = [getattr(told.config.strategy, key) for told in (one, two)]
        if values[0] != values[1]:
            raise ConfigError(
                f"'{first.path}' was collected with `strategy.{key}` {values[0]} and "
                f"'{other.path}' with {values[1]}: these do not add up. Collect one of them again."
            )


def _check_apart(one: StatisticsFolder, other: StatisticsFolder) -> None:
    """Refuse folders that have a participant in common: its texts would count twice."""
    runs = set(one.manifest.runs) & set(other.manifest.runs)
    if runs:
        raise ConfigError(f"'{one.path}' and '{other.path}' both hold the sums of run {min(runs)}.")
    for first in one.manifest.participants:
        for second in other.manifest.participants:
            if first.same_texts(second):
                raise ConfigError(
                    f"{first.name} of '{one.path}' and {second.name} of '{other.path}' have the "
                    "same texts, which would count twice. Merge federations of other texts; where "
                    "they are other nodes, let their operators give them names (`site` in "
                    "--node-config) and collect again."
                )


def _added(folder: StatisticsFolder, block: int, first: Arrays, second: Arrays) -> Arrays:
    """Return the sums of what is kept of a block in two folders."""
    if set(first) != set(second):
        raise ConfigError(
            f"Block {block} of '{folder.path}' has other arrays than that of the folder to add: "
            "they were collected by different releases or settings. Collect one of them again."
        )
    found: Arrays = {}
    for name in folder.manifest.kinds:
        kind = find_kind(name)
        if isinstance(kind, BlockKind):
            sums = kind.add(_under(first, name), _under(second, name))
            found |= {f"{name}.{array}": values for array, values in sums.items()}
            continue
        for linears in folder.manifest.inputs[block]:
            prefix, width = f"{name}.{linears[0]}", folder.manifest.shapes[block][linears[0]][1]
            try:
                total = _sum(kind, _under(first, prefix), _under(second, prefix), width)
            except (WireError, KeyError, ValueError) as error:
                raise ModelError(f"block {block}, '{linears[0]}': {error}") from error
            found |= {f"{prefix}.{array}": values for array, values in total.items()}
    return found


def _sum(kind: StatisticKind[Any], first: Arrays, second: Arrays, width: int) -> Arrays:
    """Return what is kept of an input in the sum of two folders."""
    if "digits" not in first and kind.instead:  # moments, which are no integers: in float64
        if not np.array_equal(first.get("seed", 0), second.get("seed", 0)):
            raise WireError("sketches of different `seed` do not add up.")
        return {name: _rounded_sum(name, first[name], second[name]) for name in first}
    if "digits" in first and kind.instead:  # an input too wide for them
        kind = get_kind(kind.instead)
    one, two = read_statistic(kind, first, width), read_statistic(kind, second, width)
    return kept(kind, kind.add(one, two))


def _rounded_sum(name: str, first: Any, second: Any) -> Any:
    if name == "seed":
        return first
    if name == TOKENS:
        return first + second
    return (first.astype(np.float64) + second.astype(np.float64)).astype(np.float32)


def _under(arrays: Arrays, prefix: str) -> Arrays:
    start = f"{prefix}."
    return {name.removeprefix(start): arrays[name] for name in arrays if name.startswith(start)}
