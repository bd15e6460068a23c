"""Which linears of a block read the same input, found by running the model on two tokens."""

import torch

from fedprune.models.loading import LoadedModel
from fedprune.pruning.driver import BlockWalk
from fedprune.pruning.statistics import shared_inputs

Groups = tuple[tuple[tuple[str, ...], ...], ...]


def input_groups(model: LoadedModel) -> Groups:
    """Return for each block its distinct inputs, each as the linears that read it.

    Parameters
    ----------
    model : LoadedModel
        The dense model; unchanged.

    Returns
    -------
    tuple
        Block -> inputs, in the order of their first linear -> names of linears.

    Raises
    ------
    ModelError
        If a linear is never called, as experts of a routed block may not be.
    """
    walk = BlockWalk(model, [torch.tensor([0, 1])])
    groups = []
    while walk.blocks_left:
        groups.append(tuple(names for names, _ in shared_inputs(walk.collect())))
        if walk.blocks_left > 1:
            walk.advance({})
        else:
            walk.skip()
    return tuple(groups)
