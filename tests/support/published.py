"""FedPrLLM as published (arXiv 2505.13547), slowly: no code of pruners, walk or votes.

Whole forward passes of a private model, hooks, stable sorts, whole numbers of votes; of equal
entries the lower index goes first, on both sides.
"""

from functools import cache, partial

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from fedprune.config import config_from_overrides
from fedprune.data.clients import client_samples
from fedprune.data.stdlib import stdlib_documents
from fedprune.models import embedded
from fedprune.models.loading import load_model

CLIENTS = 3
SMALL = ["pruner.num_calibration_samples=2", "pruner.seq_len=48", "evaluation.max_windows=1"]


def linears(layer):
    return {n: m for n, m in layer.named_modules() if isinstance(m, torch.nn.Linear)}


@cache
def samples_of(partition: int) -> tuple[torch.Tensor, ...]:
    config = config_from_overrides(SMALL)
    tokenizer = load_model(config.model).tokenizer
    documents = stdlib_documents("train")
    found = client_samples(config, documents, tokenizer, partition, CLIENTS)
    return tuple(sample.tokens for sample in found)


def private_model():
    return AutoModelForCausalLM.from_pretrained(embedded.demo_model_path(), dtype="auto").eval()


def add_squares(sums, name, module, args, output):
    squares = args[0].detach().float().reshape(-1, args[0].shape[-1]).square()
    sums[name] = sums.get(name, 0) + squares.sum(0)


def wanda_rows(model, block: int, partition: int) -> dict[str, np.ndarray]:
    """Masks of one block from whole forward passes, blocks before it as they are in the model."""
    layer, sums = model.model.layers[block], {}
    handles = [
        module.register_forward_hook(partial(add_squares, sums, name))
        for name, module in linears(layer).items()
    ]
    with torch.no_grad():
        for sample in samples_of(partition):
            model(input_ids=sample[None], use_cache=False)
    for handle in handles:
        handle.remove()
    masks = {}
    for name, module in linears(layer).items():
        scores = module.weight.detach().abs() * sums[name].sqrt()
        prune = scores.sort(dim=1, stable=True).indices[:, : scores.shape[1] // 2]
        masks[name] = torch.ones_like(scores, dtype=torch.bool).scatter_(1, prune, False).numpy()
    return masks


def most_voted(votes: np.ndarray, group: str) -> np.ndarray:
    """Keep mask: in each group the most voted go, of equally voted the lower index first."""
    if group == "column":
        return most_voted(np.ascontiguousarray(votes.T), "row").T
    rows = votes if group == "row" else votes.reshape(1, -1)
    keep = np.ones(rows.shape, dtype=bool)
    for row in range(len(rows)):
        order = np.argsort(-rows[row].astype(int), kind="stable")
        keep[row, order[: rows.shape[1] // 2]] = False
    return keep.reshape(votes.shape)


def pruned(weight: torch.Tensor, keep: np.ndarray, votes: np.ndarray, m: int, scaling: bool):
    factor = (m - votes).astype(np.float32) / np.float32(m) if scaling else np.float32(1)
    return np.where(keep, weight.detach().numpy() * factor, np.float32(0))


@cache
def alone() -> tuple[dict, ...]:
    """Each client's own masks: it prunes its own copy to the end and never hears back."""
    found = []
    for partition in range(CLIENTS):
        model, masks = private_model(), {}
        for block, layer in enumerate(model.model.layers):
            for name, keep in wanda_rows(model, block, partition).items():
                masks[block, name] = keep
                linears(layer)[name].weight.data.masked_fill_(torch.from_numpy(~keep), 0)
        found.append(masks)
    return tuple(found)


def oracle(schedule: str, group: str, scaling: bool, voters=lambda block: range(CLIENTS)):
    """Return masks and weights of the published algorithm."""
    model, masks, weights = private_model(), {}, {}
    for block, layer in enumerate(model.model.layers):
        clients = voters(block)
        if schedule == "one_shot":
            sent = [{n: alone()[c][block, n] for n in linears(layer)} for c in clients]
        else:
            sent = [wanda_rows(model, block, c) for c in clients]
        for name, module in linears(layer).items():
            votes = sum((~keep[name]).astype(int) for keep in sent)
            keep = masks[block, name] = most_voted(votes, group)
            made = pruned(module.weight, keep, votes, len(sent), scaling)
            weights[block, name] = made
            module.weight.data.copy_(torch.from_numpy(made))  # makes the next inputs
    return masks, weights
