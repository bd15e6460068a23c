"""Perplexity of what the run made, and of what it is compared with."""

from collections.abc import Mapping

import torch

from fedprune.config import RunConfig
from fedprune.data.clients import client_samples
from fedprune.data.sources import load_documents
from fedprune.evaluation.perplexity import perplexity, perplexity_of
from fedprune.evaluation.texts import evaluation_windows
from fedprune.models.device import pick_device
from fedprune.models.loading import LoadedModel
from fedprune.models.masking import masked
from fedprune.pruning.blocks import prune_blocks
from fedprune.pruning.driver import BlockWalk
from fedprune.pruning.registry import make_pruner
from fedprune.pruning.spec import block_specs
from fedprune.reporting.results import Perplexities
from fedprune.wire.change import Change
from strategies import FederatedPruning
from strategies.progress import show

# A sweep's runs share model and texts. Bounded, since a process may see many.
_DENSE: dict[tuple[object, ...], dict[str, float]] = {}
_MOST_DENSE = 8

Masks = Mapping[int, Mapping[str, Change]]


def measure(
    config: RunConfig, loaded: LoadedModel, masks: Masks, strategy: FederatedPruning
) -> list[Perplexities]:
    """Measure the dense, the pruned and, where asked for and possible, the baseline models.

    Parameters
    ----------
    config : RunConfig
        `evaluation` says how and on which data sets besides the held-out part of `data`.
    loaded : LoadedModel
        The dense model; unchanged afterwards.
    masks : Mapping
        Block -> linear -> global mask, or update where survivors are scaled.
    strategy : FederatedPruning
        Carries the clients and what they measured on their own.

    Returns
    -------
    list of Perplexities
        One a data set, the run's own first; a part is None where there was no text for it here.
    """
    windows = evaluation_windows(config, loaded.tokenizer)
    steps = 3 if config.evaluation.centralized else 2
    device = pick_device(config.pruner.device)

    def step(number: int, what: str) -> None:
        show("evaluate", number, steps, what)

    step(0, "dense model")
    dense = _dense_scores(config, loaded, strategy.plan.weights_hash, windows, device)
    step(1, "pruned model")
    with masked(loaded, masks):
        pruned = _scores(loaded, windows, device)
    central: dict[str, float] = {}
    if config.evaluation.centralized and windows:
        step(2, "centralised baseline: one client with all samples")
        with masked(loaded, centralized_masks(config, loaded, strategy)):
            central = _scores(loaded, windows, device)
    step(steps, "done")
    labels = dict.fromkeys([config.data.name, *windows])
    return [
        Perplexities(
            label,
            dense.get(label),
            pruned.get(label),
            central.get(label),
            _local(strategy, label, label == config.data.name),
        )
        for label in labels
    ]


def centralized_masks(
    config: RunConfig, loaded: LoadedModel, strategy: FederatedPruning
) -> dict[int, dict[str, Change]]:
    """Prune with the samples of all clients pooled; simulation only, where they can be read here.

    The samples are exactly those the clients drew: same partitions, same seeds.
    """
    documents = load_documents(config.data, "train")
    samples: list[torch.Tensor] = []
    for client in strategy.cohort.clients:
        report = client.report
        found = client_samples(
            config, documents, loaded.tokenizer, report.partition_id, report.num_partitions
        )
        samples += [sample.tokens for sample in found]
    walk = BlockWalk(loaded, samples, pick_device(config.pruner.device))
    count = len(loaded.layout.blocks)
    specs = block_specs(config, range(count), count)
    return dict(prune_blocks(walk, make_pruner(config.pruner), specs))


def _dense_scores(
    config: RunConfig,
    loaded: LoadedModel,
    weights_hash: str,
    windows: Mapping[str, torch.Tensor],
    device: torch.device,
) -> dict[str, float]:
    """Return the dense model's perplexities, measured once for all runs of a process."""
    key = (weights_hash, config.evaluation, config.data, device)
    if key not in _DENSE:
        while len(_DENSE) >= _MOST_DENSE:
            _DENSE.pop(next(iter(_DENSE)))
        _DENSE[key] = _scores(loaded, windows, device)
    return dict(_DENSE[key])


def _scores(
    loaded: LoadedModel, windows: Mapping[str, torch.Tensor], device: torch.device
) -> dict[str, float]:
    return {
        label: perplexity(loaded.model, rows, device).perplexity for label, rows in windows.items()
    }


def _local(strategy: FederatedPruning, label: str, own: bool) -> dict[str, float]:
    """Return client -> perplexity of its own pruned model on one data set, where it told."""
    found = {
        name: result.nll if own else result.others.get(label)
        for name, result in strategy.local.items()
    }
    return {name: perplexity_of(nll) for name, nll in found.items() if nll is not None}
