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
from fedprune.results.read import damage_told
from fedprune.results.sweep import number_text
from fedprune.results.tables import text_table
from fedprune.results.text import seconds, setting_text, size_text

_NONE = "–"


def run_comparison(runs: Sequence[str], *, as_json: bool) -> int:
    """Print the differences between runs and return the exit code; all are held against the first.

    ConfigError if there are fewer than two.
    """
    folders = [Path(run).expanduser() for run in runs]
    if len(folders) < 2:
        raise ConfigError("`fedprune compare` needs the folders of at least two runs.")
    with damage_told(Path(", ".join(map(str, folders)))):
        found = compare_runs(folders)
        names = list(itertools.islice(_letters(), len(folders)))
        tables = list(_tables(found, names))
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return 0
    screen = Console()
    for name, folder in zip(names, folders, strict=True):
        say(screen, f"{name} = {folder}")
    for table in tables:
        screen.print(table)
    return 0


def _tables(found: Mapping[str, Any], names: Sequence[str]) -> Iterable[Table | str]:
    def table(title: str, lines: Mapping[str, Iterable[str]]) -> Table:
        return text_table(title, ["", *names], ((label, *cells) for label, cells in lines.items()))

    changed = {key: map(setting_text, values) for key, values in found["configuration"].items()}
    yield table("Configuration", changed) if changed else "The configurations are the same."
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
    yield table("Results", lines)
    masks, share = found["masks"], "{:.3%}".format
    kinds = dict.fromkeys(kind for one in masks for kind in one.get("kinds", {}))
    agreeing = {"all": [one.get("why_not") or share(one["equal"]) for one in masks]} | {
        kind: _texts(share, [one.get("kinds", {}).get(kind) for one in masks]) for kind in kinds
    }
    yield table("Weights that the masks treat as in A", agreeing)


def _letters() -> Iterator[str]:
    """Yield A to Z, AA to ZZ, and so on."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_uppercase, repeat=length))


def _texts(write: Callable[[Any], str], values: Iterable[Any]) -> list[str]:
    return [_NONE if value is None else write(value) for value in values]
