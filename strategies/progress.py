"""Progress lines of the rounds."""

from collections.abc import Callable
from logging import INFO

from flwr.common.logger import log

from fedprune.config import RunConfig
from fedprune.reporting.ledger import Ledger
from fedprune.reporting.progress import Progress, size_text


def show(phase: str, done: int, total: int, detail: str) -> None:
    """Log one line of progress."""
    log(INFO, Progress(phase, done, total, detail).line())


def pruning(blocks: range, total: int, ledger: Ledger) -> Callable[[int, int], None]:
    """Return what to tell after each answer of a round over ``blocks``, of ``total`` in all."""
    where = f"block {blocks.start + 1}" + (f"-{blocks.stop}" if len(blocks) > 1 else "")

    def report(answered: int, asked: int) -> None:
        done = blocks.start + len(blocks) * answered // max(1, asked)
        answers = f"{answered} of {asked} clients"
        show(
            "prune", done, total, f"{where} of {total}, {answers}, {size_text(ledger.bytes_up)} up"
        )

    return report


def evaluating(answered: int, asked: int) -> None:
    """Tell after each answer of the local evaluation."""
    show("evaluate", answered, asked, "clients measure their own models")


def surveying(answered: int, asked: int) -> None:
    """Tell after each answer of the survey."""
    show("survey", answered, asked, "clients measure the dense model")


def greeting(answered: int, asked: int) -> None:
    """Tell after each answer of the handshake."""
    show("handshake", answered, asked, "nodes have answered")


def announce(name: str, config: RunConfig, blocks: int, messages: int) -> None:
    """Log what a strategy is about to do."""
    log(
        INFO,
        "%s, %s: %s to sparsity %g (%s), %d blocks in %d messages each, at least %d clients",
        name,
        config.schedule.name,
        config.pruner.name,
        config.sparsity,
        config.pruner.pattern,
        blocks,
        messages,
        config.strategy.min_clients,
    )
