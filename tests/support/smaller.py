"""Models with fewer units, and what the dense one says in their place."""

import torch

from fedprune.models.changes import changed_tensors
from fedprune.pruning.compaction import Narrowing, narrowed_config
from fedprune.pruning.statistics import MomentStatistics
from fedprune.pruning.structured import StructuredPruner
from fedprune.pruning.units import find_units


def logits_without(loaded, removed, tokens):
    """What the dense model says when some of its blocks hand on what they are given."""

    def hand_on(_module, args, kwargs, output):
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handles = [
        loaded.layout.blocks[block].register_forward_hook(hand_on, with_kwargs=True)
        for block in removed
    ]
    with torch.no_grad():
        found = loaded.model(input_ids=tokens, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return found


def shrunk(loaded, structure, sparsity=0.5):
    """Changes of every block on moments of random inputs, and how the model is compacted."""
    units, pruner = find_units(loaded, structure), StructuredPruner(structure, 8, True, 0.01)
    changes = {}
    for block in range(len(loaded.layout.blocks)):
        weights = {name: loaded.weight(block, name) for name in units.linears}
        width = weights[units.linear].shape[1]
        inputs = torch.randn(4 * width, width, generator=torch.Generator().manual_seed(block))
        stats = MomentStatistics(inputs.T @ inputs, len(inputs))
        changes[block] = pruner.prune_units(weights, stats, units, sparsity)
    kept = changes[0][units.linear].mask.to_bool().any(0).sum() // units.size
    narrowing = Narrowing(loaded, units, narrowed_config(loaded, units, int(kept)))
    return changes, narrowing.reshape(changes)


def simulated(loaded, changes, tokens):
    """What the dense architecture says with the changed weights."""
    state = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    for block, done in changes.items():
        prefix = f"{loaded.layout.prefix}.{block}."
        tensors = changed_tensors(loaded.layout, block, loaded.block_tensors(block), done)
        state |= {prefix + n: t for n, t in tensors.items() if prefix + n in state}
    before = loaded.model.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    loaded.model.load_state_dict(state)
    with torch.no_grad():
        logits = loaded.model(input_ids=tokens).logits
    loaded.model.load_state_dict(before)
    return logits
