"""A run's course in TensorBoard, Weights & Biases, MLflow or trackio, as accelerate knows them.

Sums over all clients only: no client's name, text or samples, no path of any machine. Whatever a
tracker does, the run goes on.
"""

import importlib.util
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from fedprune.config import RunConfig, TrackingConfig
from fedprune.config.keys import flatten
from fedprune.errors import ConfigError
from fedprune.models.folder import is_local
from fedprune.results.build import LinearFigures
from fedprune.results.ledger import Ledger
from fedprune.results.perplexity import MODELS, perplexity_at

_log = logging.getLogger("flwr")
_IDS = ("model.path", "data.path")  # or a folder, which is nobody's business
_PATHS = ("output_dir", "data.heldout_path", "evaluation.datasets", "evaluation.tasks")


def check_tracker(config: TrackingConfig) -> None:
    """Raise ``ConfigError`` if the tracker's library is not installed; nothing is imported."""
    name = config.name  # that of the package, too
    if name != "none" and importlib.util.find_spec(name) is None:
        raise ConfigError(
            f"`tracking.name` '{name}' needs a library that is not installed on this machine. "
            f"Run `pip install {name}`, or set tracking=none."
        )


class Tracking:
    """Tells a tracker what a run does; nobody where `tracking.name` is 'none'.

    `folder`: the run's folder; local trackers write into it.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._tracker: GeneralTracker | None = None
        self._started = time.monotonic()
        self._last = 0
        if config.tracking.name != "none":
            with self._unharmed("start"):
                self._tracker = _start(config.tracking, folder)
                self._tracker.store_init_configuration(public_config(config))

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the tracker, also of a run that failed."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            with self._unharmed("finish"):
                tracker.finish()

    def block(self, step: int, linears: Sequence[LinearFigures], ledger: Ledger) -> None:
        """Tell of an aggregated block.

        `step`: number of the block over all rounds, from 1 on; a run that is resumed goes on with
        it.
        """
        self._last = step
        weights = sum(linear.weights for linear in linears)
        agreed = [linear for linear in linears if linear.agreement is not None]
        values = {
            "block/sparsity": sum(linear.zeros for linear in linears) / max(1, weights),
            "block/clients": max((linear.voters for linear in linears), default=0),
            "bytes/up": ledger.bytes_up,
            "bytes/down": ledger.bytes_down,
            "clients/refused_replies": sum(ledger.refused().values()),
            "seconds/elapsed": time.monotonic() - self._started,
        }
        if agreed:
            shares = sum((linear.agreement or 0.0) * linear.weights for linear in agreed)
            values["block/agreement"] = shares / sum(linear.weights for linear in agreed)
        self._log(values)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Tell how the run ended.

        `results`: the content of `results.json`.
        """
        self._last += 1
        self._log(final_figures(results))

    def _log(self, values: Mapping[str, float]) -> None:
        if self._tracker is not None:
            with self._unharmed("take values"):
                self._tracker.log(dict(values), step=self._last)

    @contextmanager
    def _unharmed(self, what: str) -> Iterator[None]:
        """Let a tracker fail, once: it is asked no more then."""
        try:
            yield
        except Exception as error:  # foreign code, networks: nothing of it may end a run
            self._tracker = None
            _log.warning("the tracker could not %s and is left out: %s", what, error)


def public_config(config: RunConfig) -> dict[str, str | int | float | bool]:
    """Return the configuration as far as a tracker may have it: no paths, no connection.

    Returns dotted key -> value; 'null' for a key without one, which not all trackers take.
    """
    values = flatten(config)
    hidden = {*_PATHS, "federation.connection"}
    hidden |= {key for key in _IDS if values[key] and is_local(str(values[key]))}
    shown = {key: value for key, value in values.items() if key not in hidden}
    return {key: "null" if value is None else value for key, value in shown.items()}


def final_figures(results: Mapping[str, Any]) -> dict[str, float]:
    """Return a run's headline figures by name; parameters as :meth:`Tracking.finish`."""
    found: dict[str, Any] = {
        "sparsity": results["sparsity"]["overall"],
        "clients/taking_part": len(results["clients"]),
        "bytes/up": results["ledger"]["bytes_up"],
        "bytes/down": results["ledger"]["bytes_down"],
        "agreement": (results["agreement"] or {}).get("pairwise"),
    }
    found |= {f"seconds/{phase}": value for phase, value in results["seconds"].items()}
    for dataset, values in results["perplexity"].items():
        for path in MODELS:
            name = path.replace("local_only.", "local_")
            found[f"perplexity/{dataset}/{name}"] = perplexity_at(values, path)
    for dataset, models in results.get("fidelity", {}).items():
        for model, figures in models.items():
            found |= {f"{name}/{dataset}/{model}": value for name, value in figures.items()}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _start(config: TrackingConfig, folder: Path) -> GeneralTracker:
    PartialState()  # which the trackers' own log asks for; it names a device and takes none
    kind = LOGGER_TYPE_TO_CLASS[config.name]
    tracker: GeneralTracker = _STARTS[config.name](kind, config.project, folder)
    tracker.start()
    return tracker


def _mlflow(kind: type[GeneralTracker], project: str, folder: Path) -> GeneralTracker:
    artifacts = None
    if "MLFLOW_TRACKING_URI" not in os.environ:
        import mlflow

        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        # That sets the variable, too, and the next run in this process has a folder of its own.
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        artifacts = (folder / "mlflow").as_uri()
    return kind(project, logging_dir=artifacts, run_name=folder.name)


_STARTS: Mapping[str, Callable[[type[GeneralTracker], str, Path], GeneralTracker]] = {
    "tensorboard": lambda kind, project, folder: kind(project, folder / "tensorboard"),
    "wandb": lambda kind, project, folder: kind(project, name=folder.name, dir=str(folder)),
    "mlflow": _mlflow,
    "trackio": lambda kind, project, folder: kind(project, name=folder.name),
}
