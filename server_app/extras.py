"""What a run measures of its exported model beside perplexity, and what its clients did."""

from pathlib import Path

from fedprune.config import RunConfig
from fedprune.evaluation.sizes import model_sizes
from fedprune.evaluation.zero_shot import Tasks, load_tasks, task_names, zero_shot
from fedprune.models.device import pick_device
from fedprune.models.loading import LoadedModel
from strategies import FederatedPruning
from strategies.progress import show


def wanted_tasks(config: RunConfig) -> Tasks:
    """Return the tasks of `evaluation.tasks`, before any long work: they may not be there.

    Raises
    ------
    ConfigError, DataError
        As :func:`fedprune.evaluation.zero_shot.load_tasks`.
    """
    names = task_names(config.evaluation.tasks)
    return load_tasks(names) if names else {}


def further_results(
    strategy: FederatedPruning, loaded: LoadedModel, folder: Path, tasks: Tasks
) -> dict[str, object]:
    """Return more sections of `results.json` as plain JSON values.

    Parameters
    ----------
    strategy : FederatedPruning
        Carries the configuration, and what clients measured on their own texts.
    loaded : LoadedModel
        The dense model.
    folder : Path
        The exported model.
    tasks : dict
        From :func:`wanted_tasks`.

    Returns
    -------
    dict
        `sizes`; `federated_evaluation` and `zero_shot` where they were asked for.
    """
    found: dict[str, object] = {"sizes": model_sizes(folder).to_dict()}
    if strategy.state.own_texts:
        found["federated_evaluation"] = strategy.state.own_texts
    if tasks:
        model, device = strategy.config.model, str(pick_device(strategy.config.pruner.device))
        show(strategy.status, "evaluate", 0, 2, "zero-shot tasks, dense model")
        dense = zero_shot(loaded.path, tasks, device, dtype=model.dtype, revision=model.revision)
        show(strategy.status, "evaluate", 1, 2, "zero-shot tasks, pruned model")
        pruned = zero_shot(str(folder), tasks, device)
        found["zero_shot"] = {"dense": dense.to_dict(), "pruned": pruned.to_dict()}
    return found
