"""Wanda on samples in one place, as its definition says."""

from functools import partial

import torch

from tests.support.jobs import whole_model


def add_squares(sums, name, module, args, output):
    squares = args[0].detach().float().reshape(-1, args[0].shape[-1]).square().sum(0)
    sums[name] = sums.get(name, 0) + squares.double()


def central(samples, *overrides: str, sparsity: float = 0.5, prune_on: bool = True) -> dict:
    """Wanda on pooled samples, slowly: whole forward passes, hooks and stable sorts.

    Sums of float32 numbers in float64 are exact at this size, and rounded once.
    """
    loaded = whole_model(*overrides)
    masks = {}
    for block, layer in enumerate(loaded.layout.blocks):
        linears = {n: m for n, m in layer.named_modules() if isinstance(m, torch.nn.Linear)}
        sums = {}
        handles = [
            m.register_forward_hook(partial(add_squares, sums, n)) for n, m in linears.items()
        ]
        with torch.no_grad():
            for sample in samples:
                loaded.model(input_ids=sample[None], use_cache=False)
        for handle in handles:
            handle.remove()
        for name, module in linears.items():
            norms = sums[name].float().double().sqrt().float()
            scores = module.weight.detach().float().abs() * norms
            count = int(scores.shape[1] * sparsity + 1e-9)
            prune = scores.sort(dim=1, stable=True).indices[:, :count]
            mask = torch.ones_like(scores, dtype=torch.bool).scatter_(1, prune, False)
            masks[block, name] = mask.numpy()
            if prune_on:
                module.weight.data.masked_fill_(~mask, 0)
    return masks
