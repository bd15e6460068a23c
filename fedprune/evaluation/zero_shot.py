"""Zero-shot tasks through EleutherAI's lm-evaluation-harness, which the extra `eval` installs."""

import importlib.metadata
import io
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from fedprune.config.overrides import dataset_names, is_task_file
from fedprune.config.suggest import did_you_mean
from fedprune.errors import ConfigError, DataError, ModelError
from fedprune.models.architecture import auto_class, read_config

PAPER_TASKS = (
    "boolq",
    "rte",
    "hellaswag",
    "winogrande",
    "arc_easy",
    "arc_challenge",
    "openbookqa",
)
"""What 'paper' stands for: the tasks of Wanda (arXiv 2306.11695) and of those who follow it."""

Tasks = dict[str, Any]
"""Name -> task of the harness, whose classes are there only where it is installed."""

_METRIC = "acc"
_SEED = 1234  # of the harness's own draws, which tasks without examples do not use
# What `datasets` raises where a set is not there: all of it is one of these.
_FETCH_ERRORS = (OSError, ValueError, RuntimeError, ImportError, KeyError)


@dataclass(frozen=True)
class ZeroShot:
    """What a model scores."""

    harness: str  # version of lm-evaluation-harness: scores of different versions do not compare
    # task -> metric, for example "acc" or "acc_stderr" -> value
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """The mean accuracy of the tasks; None where one has none."""
        found = [metrics.get(_METRIC) for metrics in self.tasks.values()]
        known = [value for value in found if value is not None]
        return fmean(known) if known and len(known) == len(found) else None

    def to_dict(self) -> dict[str, object]:
        """Return it as plain JSON values."""
        tasks = {name: dict(metrics) for name, metrics in self.tasks.items()}
        return {"harness": self.harness, "tasks": tasks, "mean": self.mean}


def task_names(text: str) -> list[str]:
    """Return the tasks that `evaluation.tasks` lists, 'paper' spelt out."""
    listed = [PAPER_TASKS if name == "paper" else (name,) for name in dataset_names(text)]
    return list(dict.fromkeys(name for names in listed for name in names))


def load_tasks(names: Sequence[str]) -> Tasks:
    """Return the harness's tasks, their data sets at hand.

    `names`: names that the harness knows, or paths of YAML files that describe a task as its guide
    says; such a file may use data sets of local files. Raises ConfigError if the harness is not
    installed, or knows no such task. Raises DataError if a data set cannot be fetched.
    """
    _harness_version()
    from lm_eval.tasks import TaskManager

    # Its loading of a thousand descriptions is not worth a line each.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_defaults=not all(map(is_task_file, names)))
    found: Tasks = {}
    for name in names:
        _check_known(name, manager.all_tasks)
        try:
            with _quiet_off_terminal():
                found.update(manager.load([name])["tasks"])
        except _FETCH_ERRORS as error:
            detail = str(error).partition("\n")[0]
            raise DataError(
                f"The data set of task '{name}' (`evaluation.tasks`) cannot be had: {detail} "
                "Check the connection to the hub, or name a YAML file of a task whose data set "
                "is in local files."
            ) from error
    return found


def zero_shot(
    model: str, tasks: Tasks, device: str, *, dtype: str = "auto", revision: str | None = None
) -> ZeroShot:
    """Score a model on tasks without examples in the prompt.

    `model`: a Hugging Face folder or hub id; the whole model is put on the device. `tasks`: from
    :func:`load_tasks`; they may be used for several models. `device`: 'cpu', 'cuda' or 'cuda:N'.
    `dtype`: 'auto' (as stored), 'float32', 'bfloat16' or 'float16'. Raises ModelError if the
    harness cannot load the model.
    """
    version = _harness_version()
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    # The harness guesses that what it does not know is a causal model, not one of images and text.
    kind = type("Model", (HFLM,), {"AUTO_MODEL_CLASS": auto_class(read_config(model, revision))})

    for task in tasks.values():
        task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(_SEED)
    with _quiet_off_terminal():
        try:
            scored = kind(
                pretrained=model,
                revision=revision or "main",
                dtype=dtype,
                device=device,
                batch_size="auto" if device.startswith("cuda") else 1,
                trust_remote_code=False,
            )
        except (OSError, ValueError, RuntimeError) as error:
            detail = str(error).partition("\n")[0]
            raise ModelError(
                f"lm-evaluation-harness cannot load the model '{model}': {detail}"
            ) from error
        loaded = {"tasks": tasks, "groups": {}, "group_map": {}}
        found = evaluate(lm=scored, task_dict=loaded, log_samples=False)
    return ZeroShot(version, {name: _metrics(row) for name, row in found["results"].items()})


@contextmanager
def _quiet_off_terminal() -> Iterator[None]:
    """Keep progress bars out of log files; messages of loggers still come through."""
    if sys.stderr.isatty():
        yield
        return
    with redirect_stderr(io.StringIO()):
        yield


def _metrics(row: Mapping[str, object]) -> dict[str, float]:
    """Return the figures of a task; the harness writes "acc,none": metric and filter."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in row.items()
        if "," in key and isinstance(value, int | float) and math.isfinite(value)
    }


def _harness_version() -> str:
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            "`evaluation.tasks` needs lm-evaluation-harness, which is not installed. "
            "Install the extra: pip install 'fedprune[eval]'."
        ) from None


def _check_known(name: str, known: Sequence[str]) -> None:
    if is_task_file(name):
        if not Path(name).is_file():
            raise ConfigError(f"`evaluation.tasks` names the file '{name}', which does not exist.")
    elif name not in known:
        raise ConfigError(
            "`evaluation.tasks` must list tasks of lm-evaluation-harness (`lm_eval ls tasks`), "
            f"YAML files or 'paper', got '{name}'.{did_you_mean(name, known)}"
        )
