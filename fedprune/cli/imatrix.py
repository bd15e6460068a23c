"""`fedprune export STATISTICS --imatrix FILE`: collected statistics for llama.cpp's quantiser."""

from pathlib import Path

from rich.console import Console

from fedprune.cli.screen import say
from fedprune.results.text import count


def run_imatrix(statistics: str, file: str) -> int:
    """Write an importance matrix and return the exit code 0.

    `statistics`: a statistics folder, or the run that made it. Raises FedpruneError as
    :func:`fedprune.methods.imatrix.write_imatrix`.
    """
    from fedprune.methods.imatrix import write_imatrix
    from fedprune.methods.statistics_folder import StatisticsFolder

    path = Path(file).expanduser().absolute()
    tensors = write_imatrix(StatisticsFolder.open(statistics), path)
    say(Console(), f"{count(tensors, 'tensor')}\n{path}")
    return 0
