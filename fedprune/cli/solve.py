"""`fedprune solve`: a model of collected statistics, without any client."""

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fedprune.cli.job import Job, check_inputs, plan_job
from fedprune.cli.run import carry_out
from fedprune.config import RunConfig, StrategyConfig, config_from_overrides, to_overrides
from fedprune.errors import ConfigError

if TYPE_CHECKING:  # it loads torch
    from fedprune.methods.statistics_folder import StatisticsFolder

_TAKEN = ("seed=", "model.", "data.", "evaluation.", "card.")
_TEXTS = ("pruner.seq_len", "pruner.num_calibration_samples")
_NO_CLIENTS = (
    "evaluation.local_only=false",
    "evaluation.centralized=false",
    "evaluation.federated=false",
    "federation.backend=inline",
)
_OF_CLIENTS = ("federation", "schedule", "resume", *_TEXTS, "pruner.batch_size", "seed")


def run_solve(statistics: str, overrides: Sequence[str]) -> int:
    """Make a model of statistics and return the exit code.

    `overrides`: what to make of them: ``["pruner=ria", "sparsity=0.6"]``. Model, texts and windows
    are those of the collection unless they are given.
    """
    from fedprune.methods.statistics_folder import StatisticsFolder

    found = StatisticsFolder.open(statistics)
    config = solve_config(found, overrides)
    check_inputs(config)
    return carry_out(plan_solve(found.path, config, Path.cwd(), datetime.now()))


def plan_solve(statistics: Path, config: RunConfig, cwd: Path, now: datetime) -> Job:
    """Return the job that makes a model of statistics; parameters as `job.plan_job`."""
    job = plan_job(config, cwd, now)
    return dataclasses.replace(job, statistics=str(statistics))


def solve_config(statistics: "StatisticsFolder", overrides: Sequence[str]) -> RunConfig:
    """Return the configuration to make a model of statistics with.

    `statistics`: their collection's configuration says model, texts, windows and method.
    `overrides`: what is different from that, and all that is about pruning. Raises ConfigError if a
    value is wrong, or asks something of clients.
    """
    for text in overrides:
        key, _, value = text.partition("=")
        flag = f"{key}=false"
        if key.partition(".")[0] in _OF_CLIENTS or key in _OF_CLIENTS:
            raise ConfigError(
                f"`{key}` is about what clients do, and a model of collected statistics asks none "
                f"of them anything, got {text}. Leave it out, or collect again with it."
            )
        if flag in _NO_CLIENTS and value.lower() != "false":
            raise ConfigError(
                f"`{key}` must be false where a model is made of collected statistics: it is "
                f"measured with the clients, got {value}. Leave it out, or use `fedprune run`."
            )
    given = set(map(_key, overrides))
    before = to_overrides(statistics.manifest.config)
    taken = [text for text in before if text.startswith(_TAKEN) or _key(text) in _TEXTS]
    if "strategy" not in given:
        common = {f"strategy.{key}" for key in StrategyConfig.model_fields} - {"strategy.name"}
        own = [text for text in before if text.startswith("strategy.")]
        taken += [text for text in own if _key(text) not in common]
    # A group that is given is taken whole: nothing of the collection's stays in it.
    taken = [text for text in taken if _key(text).partition(".")[0] not in given]
    few = ["strategy.min_clients=1"]
    return config_from_overrides([*taken, *few, *overrides, *_NO_CLIENTS])


def _key(text: str) -> str:
    return text.partition("=")[0]
