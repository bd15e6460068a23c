"""Perplexity of what the run made, and of what it is compared with."""

from collections.abc import Mapping
from logging import WARNING

import torch
from flwr.common.logger import log

from fedprune.config import RunConfig
from fedprune.data.partitions import partition_documents
from fedprune.data.samples import calibration_samples
from fedprune.data.sources import load_documents
from fedprune.errors import DataError
from fedprune.evaluation.perplexity import perplexity, perplexity_of, token_windows
from fedprune.models.loading import LoadedModel
from fedprune.models.masking import masked
from fedprune.pruning.driver import BlockWalk, prune_blocks
from fedprune.pruning.pruners import get_pruner
from fedprune.pruning.spec import MaskSpec
from fedprune.reporting.results import Perplexities
from fedprune.seeds import derive_seed
from fedprune.wire.bitmask import BitMask
from strategies import FederatedPruning
from strategies.progress import show

Masks = Mapping[int, Mapping[str, BitMask]]


def measure(
    config: RunConfig, loaded: LoadedModel, masks: Masks, strategy: FederatedPruning
) -> Perplexities:
    """Measure the dense, the pruned and, where asked for and possible, the baseline models.

    Parameters
    ----------
    config : RunConfig
        `evaluation` says how; the held-out part of `data` is the text.
    loaded : LoadedModel
        The dense model; unchanged afterwards.
    masks : Mapping
        Block -> linear -> global mask.
    strategy : FederatedPruning
        Carries the clients and what they measured on their own.

    Returns
    -------
    Perplexities
        A part is None where there was no text for it here.
    """
    local = {name: perplexity_of(found.nll) for name, found in strategy.local.items()}
    windows = _windows(config, loaded)
    if windows is None:
        return Perplexities(config.data.name, None, None, None, local)
    steps = 3 if config.evaluation.centralized else 2
    device = torch.device("cpu")

    def step(number: int, what: str) -> None:
        show("evaluate", number, steps, what)

    step(0, "dense model")
    dense = perplexity(loaded.model, windows, device).perplexity
    step(1, "pruned model")
    with masked(loaded, masks):
        pruned = perplexity(loaded.model, windows, device).perplexity
    central = None
    if config.evaluation.centralized:
        step(2, "centralised baseline: one client with all samples")
        with masked(loaded, centralized_masks(config, loaded, strategy)):
            central = perplexity(loaded.model, windows, device).perplexity
    step(steps, "done")
    return Perplexities(config.data.name, dense, pruned, central, local)


def centralized_masks(
    config: RunConfig, loaded: LoadedModel, strategy: FederatedPruning
) -> dict[int, dict[str, BitMask]]:
    """Prune with the samples of all clients pooled; simulation only, where they can be read here.

    The samples are exactly those the clients drew: same partitions, same seeds.
    """
    documents = load_documents(config.data, "train")
    samples: list[torch.Tensor] = []
    for client in strategy.cohort.clients:
        report = client.report
        share = partition_documents(
            documents,
            max(1, report.num_partitions),
            report.partition_id,
            config.data.partition,
            derive_seed(config.seed, "partition"),
        )
        samples += calibration_samples(
            share,
            loaded.tokenizer,
            config.pruner.num_calibration_samples,
            config.pruner.seq_len,
            derive_seed(config.seed, "calibration", report.partition_id),
        )
    walk = BlockWalk(loaded, samples, torch.device("cpu"))
    spec = MaskSpec(config.sparsity, config.pruner.pattern, config.pruner.group)
    blocks = range(len(loaded.layout.blocks))
    return dict(prune_blocks(walk, blocks, get_pruner(config.pruner.name), spec))


def _windows(config: RunConfig, loaded: LoadedModel) -> torch.Tensor | None:
    if config.data.source == "node" and config.data.heldout_path is None:
        log(WARNING, "no text to evaluate on here: set `data.heldout_path` to a text on the server")
        return None
    documents = load_documents(config.data, "heldout")
    chosen = config.evaluation
    try:
        return token_windows(documents, loaded.tokenizer, chosen.seq_len, chosen.max_windows)
    except DataError as error:
        # The masks are worth more than their evaluation: keep them and say so.
        log(WARNING, "not evaluated: %s", error)
        return None
