"""`fedprune collect`: statistics of a model from all clients, once, to make models of."""

from collections.abc import Sequence

from fedprune.cli.run import run_job
from fedprune.errors import ConfigError


def run_collection(overrides: Sequence[str]) -> int:
    """Run a collection to its end and return the exit code, as :func:`fedprune.cli.run.run_job`.

    `strategy.statistics` says what is collected; another strategy is refused.
    """
    keys = [text.partition("=")[0] for text in overrides]
    if "strategy" in keys or "strategy.name" in keys:
        raise ConfigError(
            "`fedprune collect` stands for `fedprune run strategy=collect`: leave `strategy` out, "
            "or run another strategy with `fedprune run`."
        )
    asked = [] if "resume" in keys else ["strategy=collect"]
    return run_job([*asked, *overrides])
