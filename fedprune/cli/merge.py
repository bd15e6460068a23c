"""`fedprune merge`: statistics of several federations of one model, added up."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedprune.cli.screen import say
from fedprune.results.text import count


def run_merge(statistics: Sequence[str], output: str) -> int:
    """Write the sum of statistics folders of one model and return the exit code 0."""
    from fedprune.methods.merging import merge

    target = Path(output).expanduser().absolute()
    merged = merge(statistics, target)
    told = merged.manifest
    tokens = sum(one.tokens for one in told.participants)
    say(
        Console(),
        f"{', '.join(told.kinds)} of {count(len(told.participants), 'participant')} and "
        f"{tokens:,} tokens\n{target}",
    )
    return 0
