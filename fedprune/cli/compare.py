"""`fedprune compare`: what is different between runs, and what that did."""

import itertools
import json
import string
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedprune.cli.screen import say
from fedprune.errors import ConfigError
from fedprune.results.comparison import compare_runs
from fedprune.results.read import damage_told, read_results
from fedprune.results.sweep import number_text
from fedprune.results.tables import add_rows, text_table
from fedprune.results.text import seconds, setting_text, size_text

_NONE = "–"


def run_comparison(runs: Sequence[str], *, as_json: bool) -> int:
    """Print the differences between runs and return the exit code.

    `runs`: the folders of two or more completed runs; all are compared with the first. `as_json`:
    print one JSON object, see :func:`fedprune.results.comparison.compare_runs`. Raises ConfigError
    if there are fewer than two. Raises FedpruneError if one is missing or failed.
    """
    folders = [Path(run).expanduser() for run in runs]
    if len(folders) < 2:
        raise ConfigError("`fedprune compare` needs the folders of at least two runs.")
    for folder in folders:
        read_results(folder)  # so that an error names the one
    with damage_told(Path(", ".join(map(str, folders)))):
        found = compare_runs(folders)
        tables = list(_tables(found, list(itertools.islice(_letters(), len(folders)))))
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return 0
    screen = Console()
    names = list(itertools.islice(_letters(), len(folders)))
    for name, folder in zip(names, folders, strict=True):
        say(screen, f"{name} = {folder}")
    for table in tables:
        screen.print(table)
    return 0


def _tables(found: Mapping[str, Any], names: Sequence[str]) -> Iterable[Table | str]:
    changed = {key: map(setting_text, values) for key, values in found["configuration"].items()}
    yield _table("Configuration", names, changed) if changed else "The configurations are the same."
    lines: dict[str, Iterable[str]] = {}
    for dataset, values in found["perplexity"].items():
        for model in ("dense", "pruned"):
            lines[f"perplexity ({dataset}), {model}"] = _texts(number_text, values[model])
        lines[f"perplexity ({dataset}), beside A"] = _texts("{:.4f} ×".format, values["ratio"])
    lines["sparsity"] = _texts("{:.4%}".format, found["sparsity"]["overall"])
    for block, values in found["sparsity"]["blocks"].items():
        lines[f"sparsity of block {block}"] = _texts("{:.4%}".format, values)
    lines["bytes up"] = _texts(size_text, found["bytes_up"])
    lines["bytes down"] = _texts(size_text, found["bytes_down"])
    lines["time"] = _texts(seconds, found["seconds"])
    lines["time of pruning"] = _texts(seconds, found["prune_seconds"])
    yield _table("Results", names, lines)
    yield _table("Weights that the masks treat as in A", names, _mask_lines(found["masks"]))


def _mask_lines(masks: Sequence[Mapping[str, Any]]) -> dict[str, Iterable[str]]:
    kinds = dict.fromkeys(kind for one in masks for kind in one.get("kinds", {}))
    share = "{:.3%}".format
    lines: dict[str, Iterable[str]] = {
        "all": [one.get("why_not") or share(one["equal"]) for one in masks]
    }
    for kind in kinds:
        lines[kind] = _texts(share, [one.get("kinds", {}).get(kind) for one in masks])
    return lines


def _table(title: str, names: Sequence[str], lines: Mapping[str, Iterable[str]]) -> Table:
    table = text_table(title, ["", *names])
    add_rows(table, ((label, *cells) for label, cells in lines.items()))
    return table


def _letters() -> Iterator[str]:
    """Yield A to Z, AA to ZZ, and so on."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_uppercase, repeat=length))


def _texts(write: Callable[[Any], str], values: Iterable[Any]) -> list[str]:
    return [_NONE if value is None else write(value) for value in values]
