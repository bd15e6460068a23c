"""Perplexity of what the run made, and of what it is compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from fedprune.config import RunConfig
from fedprune.data.clients import client_samples
from fedprune.data.texts import load_documents
from fedprune.evaluation.perplexity import (
    LastStates,
    Perplexity,
    evaluation_windows,
    last_states,
    perplexity_of,
    scores,
)
from fedprune.evaluation.sizes import model_sizes
from fedprune.evaluation.throughput import compare_throughput
from fedprune.evaluation.zero_shot import Tasks, load_tasks, task_names, zero_shot
from fedprune.methods.public_model import PublicModel
from fedprune.methods.public_text import public_samples
from fedprune.methods.registry import Solution, exchanges
from fedprune.methods.survey import SurveyExchange
from fedprune.models.changes import Changes
from fedprune.models.device import Limits, pick_device
from fedprune.models.loading import LoadedModel
from fedprune.models.reshape import read_origin
from fedprune.models.sources import tied_names
from fedprune.pruning.blocks import BlockWalk, pruned_in_passing
from fedprune.pruning.groups import block_specs
from fedprune.pruning.paired import walk_for
from fedprune.pruning.registry import make_pruner, towards
from fedprune.results.build import Fidelity, Perplexities
from strategies import FederatedPruning
from strategies.progress import Report, measuring, show

Measured = Mapping[str, Perplexity]

# Models that are made of the same statistics share it. Bounded, since a process may see many, and
# each entry keeps hidden states in memory or on the disk.
_DENSE: dict[tuple[object, ...], tuple[Measured, Sequence[torch.Tensor]]] = {}
_MOST_DENSE = 2


def measure(
    config: RunConfig,
    loaded: LoadedModel,
    changes: Changes,
    strategy: FederatedPruning,
    smaller: LoadedModel | None = None,
) -> list[Perplexities]:
    """Measure the dense, the pruned and, where asked for and possible, the baseline models.

    `changes`: block -> linear -> what the run makes of it. `smaller`: what it made, where that is
    of another shape: it is measured in place of ``changes``. Returns one a data set, the run's own
    first; a part is None where there was no text for it here.
    """
    windows = evaluation_windows(config, loaded.tokenizer)
    wanted = config.evaluation
    steps = 2 + wanted.centralized + wanted.no_client

    def step(number: int, what: str) -> Report:
        return measuring(strategy.status, number, steps, what)

    dense, states = _dense_scores(
        config, loaded, strategy.model.weights_hash, windows, step(0, "dense model")
    )
    made = (loaded, changes) if smaller is None else (smaller, {})
    told = step(1, "pruned model")
    found = {"pruned": _scores(config, made[0], windows, made[1], states, told)}
    if windows and strategy.exchange.prunes:
        if wanted.centralized:
            told = step(2, "centralised baseline: one client with all samples")
            central = centralized_changes(config, loaded, strategy)
            found["centralized"] = _scores(config, loaded, windows, central, states, told)
        if wanted.no_client:
            told = step(steps - 1, "baseline without any client: public text")
            public = no_client_changes(strategy.wanted, loaded, strategy.model)
            found["no_client"] = _scores(config, loaded, windows, public, states, told)
    step(steps, "done")
    labels = dict.fromkeys([config.data.name, *windows])
    return [
        Perplexities(
            label,
            _figure(dense, label),
            _figure(found["pruned"], label),
            _figure(found.get("centralized", {}), label),
            _local(strategy, label, label == config.data.name),
            {
                model: Fidelity(one.kl, one.top1)
                for model, measured in found.items()
                if (one := measured.get(label)) and one.kl is not None and one.top1 is not None
            },
            _figure(found.get("no_client", {}), label),
        )
        for label in labels
    ]


def _figure(measured: Measured, label: str) -> float | None:
    return measured[label].perplexity if label in measured else None


def centralized_changes(
    config: RunConfig, loaded: LoadedModel, strategy: FederatedPruning
) -> Changes:
    """Prune with the samples of all clients pooled; simulation only, where they can be read here.

    The samples are exactly those the clients drew: same partitions, same seeds, and no more than
    a client's operator lets it use. A block is pruned when it is asked for.
    """
    documents = load_documents(config.data, "train")
    samples: list[torch.Tensor] = []
    for client in strategy.cohort.clients:
        report = client.report
        found = client_samples(
            config,
            documents,
            loaded.tokenizer,
            report.partition_id,
            report.num_partitions,
            report.samples,
        )
        samples += [sample.tokens for sample in found]
    return _changes_on(samples, config, loaded, strategy.model)


def no_client_changes(config: RunConfig, loaded: LoadedModel, model: PublicModel) -> Changes:
    """Prune with public text alone: what anybody who has the model could do without a client.

    An allocation that clients' statistics decide is decided by the public text's.
    """
    samples = public_samples(config, loaded)
    survey = exchanges(config).get("survey")
    if isinstance(survey, SurveyExchange):
        device, limits = _means(config)
        walk = BlockWalk(loaded, samples, device, limits=limits)
        config = survey.settled(survey.settle(survey.closed_on(walk, model))) or config
    return _changes_on(samples, config, loaded, model)


def _changes_on(
    samples: Sequence[torch.Tensor], config: RunConfig, loaded: LoadedModel, model: PublicModel
) -> Changes:
    """Prune as one client with these samples would, each block when it is asked for."""
    device, limits = pick_device(config.pruner.device), Limits.of(config.pruner)
    pruner = towards(make_pruner(config.pruner), config)
    walk = walk_for(pruner)(loaded, samples, device, limits=limits)
    walk.output_moments = model.output_moments
    count = len(loaded.layout.blocks)
    specs = block_specs(config, range(count), count)
    return pruned_in_passing(walk, pruner, specs)


def _dense_scores(
    config: RunConfig,
    loaded: LoadedModel,
    weights_hash: str,
    windows: Mapping[str, torch.Tensor],
    told: Report,
) -> tuple[Measured, LastStates]:
    """Return what the dense model makes of the windows, once for all runs of a process."""
    key = (weights_hash, config.evaluation, config.data, config.pruner.device)
    if key not in _DENSE:
        while len(_DENSE) >= _MOST_DENSE:
            _DENSE.pop(next(iter(_DENSE)))
        device, limits = _means(config)
        states = last_states(loaded, windows, device, limits=limits, told=told)
        _DENSE[key] = scores(states, windows, device, limits), states.hidden
    measured, hidden = _DENSE[key]
    return measured, LastStates(loaded, hidden)


def _scores(
    config: RunConfig,
    loaded: LoadedModel,
    windows: Mapping[str, torch.Tensor],
    changes: Changes,
    dense: LastStates,
    told: Report,
) -> Measured:
    device, limits = _means(config)
    states = last_states(loaded, windows, device, changes, limits, told)
    return scores(states, windows, device, limits, dense, changes)


def _means(config: RunConfig) -> tuple[torch.device, Limits]:
    return pick_device(config.pruner.device), Limits.of(config.pruner, "evaluation.seq_len")


def _local(strategy: FederatedPruning, label: str, own: bool) -> dict[str, float]:
    """Return client -> perplexity of its own pruned model on one data set, where it told."""
    found = {
        name: result.nll if own else result.others.get(label)
        for name, result in strategy.state.local.items()
    }
    return {name: perplexity_of(nll) for name, nll in found.items() if nll is not None}


def wanted_tasks(config: RunConfig) -> Tasks:
    """Return the tasks of `evaluation.tasks`, before any long work: they may not be there.

    Raises ConfigError, DataError as :func:`fedprune.evaluation.zero_shot.load_tasks`.
    """
    names = task_names(config.evaluation.tasks)
    return load_tasks(names) if names else {}


def further_results(
    strategy: FederatedPruning, loaded: LoadedModel, folder: Path, tasks: Tasks
) -> dict[str, object]:
    """Return more sections of `results.json` as plain JSON values.

    Returns `sizes`; `federated_evaluation`, `zero_shot` and `speed` where they were asked for.
    """
    found: dict[str, object] = {"sizes": {"base": _bytes(loaded), **model_sizes(folder).to_dict()}}
    if strategy.state.own_texts:
        found["federated_evaluation"] = strategy.state.own_texts
    if tasks:
        model, device = strategy.config.model, str(pick_device(strategy.config.pruner.device))
        show(strategy.status, "evaluate", 0, 2, "zero-shot tasks, dense model")
        dense = zero_shot(loaded.path, tasks, device, dtype=model.dtype, revision=model.revision)
        show(strategy.status, "evaluate", 1, 2, "zero-shot tasks, pruned model")
        pruned = zero_shot(str(folder), tasks, device)
        found["zero_shot"] = {"dense": dense.to_dict(), "pruned": pruned.to_dict()}
    if strategy.config.evaluation.speed:
        show(strategy.status, "evaluate", 0, 1, "speed of the dense and of this model")
        served = compare_throughput(
            (loaded.path, folder),
            pick_device(strategy.config.pruner.device),
            strategy.config.evaluation.seq_len,
            revision=strategy.config.model.revision,
        )
        found["speed"] = dict(zip(("dense", "pruned"), map(asdict, served), strict=True))
    return found


def _bytes(loaded: LoadedModel) -> int:
    """Return what the dense model's weights take."""
    tied = tied_names(loaded.model)
    state = loaded.model.state_dict()
    return sum(tensor.nbytes for name, tensor in state.items() if name not in tied)


def smaller_figures(folder: Path, solution: Solution) -> dict[str, object]:
    """Return what the results tell of a model with fewer units, as plain JSON values."""
    origin = read_origin(folder) or {}
    return {
        "summary": solution.summary,
        "parameters": origin.get("parameters", {}),
        "config": origin.get("config", {}),
        "header": list(solution.header),
        "rows": [list(row) for row in solution.rows],
    }
