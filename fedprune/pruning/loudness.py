"""How large a model's inputs get, told of the public model alone, without anybody's text."""

from collections.abc import Mapping

import torch

from fedprune.models.loading import LoadedModel
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.statistics import ColumnStatistics, get_kind

_PROBES = 4
_TOKENS = 8
_ROOM = 8.0  # real texts, dense and at sparsity 0.8, stay below 5 where tokens differ little


def most_mean_squares(model: LoadedModel) -> tuple[Mapping[str, float], ...]:
    """Return for each block and linear the mean square that its input can have at most.

    A few tokens of the vocabulary run through the dense model. What follows a norm is as large for
    any token; what does not may differ by more, and gets as much more room as the probes differ.

    `model`: the dense model; unchanged. Returns block -> name of the linear -> mean over columns
    and tokens of the squared input; experts that a probe has not reached are missing.
    """
    table = model.model.get_input_embeddings()
    # The upper half of a vocabulary has tokens that stand for other things than text.
    last = int(table.weight.shape[0]) // 2
    tokens = torch.linspace(0, last, _PROBES * _TOKENS).long()
    walks = [BlockWalk(model, [tokens[number::_PROBES]]) for number in range(_PROBES)]
    found, columns = [], get_kind("columns")
    while walks[0].blocks_left:
        probes: dict[str, list[float]] = {}
        for walk in walks:
            for name, sums in walk.observe([columns]).linears[columns.name].items():
                if isinstance(sums, ColumnStatistics) and sums.tokens:
                    mean = float(sums.sum_squares.mean(dtype=torch.float64)) / sums.tokens
                    probes.setdefault(name, []).append(mean)
            if walk.blocks_left > 1:
                walk.advance({})
            else:
                walk.skip()
        reached = {name: means for name, means in probes.items() if len(means) == _PROBES}
        found.append({name: _most(means) for name, means in reached.items() if min(means) > 0})
    return tuple(found)


def _most(means: list[float]) -> float:
    return _ROOM * max(means) * max(means) / min(means)
