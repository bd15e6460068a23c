"""Depth: the blocks that change least go, and a linear map stands in for them.

Which ones follows from cosines between what enters and what leaves blocks, the map from products of
one matrix's outputs with what the blocks changed. Both are sums over tokens, so a federation finds
what one machine with all texts would. There are two passes over the dense model: the cosines, and
the products at the cut that follows from them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from fedprune.config import RunConfig, replace
from fedprune.config.pattern import pruned_count
from fedprune.errors import ConfigError, ModelError
from fedprune.methods.collection import BlockStatistics, Collection
from fedprune.methods.depth.transitions import StandIn, Transitions, rows_of, stand_in
from fedprune.methods.registry import Method, Solution, Words
from fedprune.methods.statistics_folder import StatisticsFolder
from fedprune.methods.survey import SurveyExchange
from fedprune.models.loading import LoadedModel
from fedprune.models.reshape import Reshape, check_reshape
from fedprune.pruning.cosines import UNIT, Cosines
from fedprune.pruning.units import last_writer


def removed_count(remove: int | None, share: float, num_blocks: int, first: int) -> int:
    """Return how many blocks go, by `strategy.remove` or, where that is None, a share of them.

    `first`: the first that may go. Raises ConfigError if none would go, or too few would remain.
    """
    count = pruned_count(num_blocks, share) if remove is None else remove
    if count < 1:
        raise ConfigError(
            f"`sparsity` {share:g} removes none of the model's {num_blocks} blocks. Set "
            f"strategy.remove=1, or sparsity={1 / num_blocks:.3g} or more."
        )
    most = num_blocks - max(first, 1)
    if count > most:
        named = "`strategy.remove`" if remove is not None else f"`sparsity` {share:g} of all blocks"
        kept = "the first block stays, the map is put into it" if first else "one must remain"
        raise ConfigError(
            f"{named} must be at most {most} of the model's {num_blocks} blocks, since {kept}, got "
            f"{count}. Lower it."
        )
    return count


def most_alike(influence: Sequence[float], count: int, first: int) -> tuple[int, ...]:
    """Return the blocks of least influence, ascending; of equal ones the later go first.

    `influence`: block -> one minus the mean cosine between its input and output.
    """
    order = sorted(range(first, len(influence)), key=lambda block: (influence[block], -block))
    return tuple(sorted(order[:count]))


def most_alike_in_a_row(distances: Sequence[float], count: int, first: int) -> tuple[int, ...]:
    """Return the blocks in a row whose input and output are most alike.

    `distances`: last block of ``count`` in a row -> one minus the mean cosine over them.
    """
    ends = range(first + count - 1, len(distances))
    last = min(ends, key=lambda block: (distances[block], -block))
    return tuple(range(last + 1 - count, last + 1))


_FIGURES = "removed_blocks"


class RowCosines(Cosines):
    """The cosines over each block, and over as many blocks in a row as shall go."""

    together = True

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def spans(self, num_blocks: int) -> tuple[int, ...]:
        return 1, _count(self._config, num_blocks)


class CosineSurvey(SurveyExchange, Collection):
    """Ask for the cosines of the dense model's blocks, from which follows which ones go."""

    def __init__(self, config: RunConfig) -> None:
        Collection.__init__(self, config, [_cosines(config)])

    def settle(self, found: Sequence[BlockStatistics]) -> dict[str, Any]:
        """Return which blocks go, and by what they were chosen."""
        arrays = [
            {name.partition(".")[2]: one for name, one in block.arrays.items()} for block in found
        ]
        return {_FIGURES: _chosen(self.config, arrays)}

    def settled(self, figures: Mapping[str, Any]) -> RunConfig | None:
        """Return the configuration that names the blocks."""
        if _FIGURES not in figures:
            return None
        blocks = ",".join(str(block) for block in figures[_FIGURES]["blocks"])
        return _with_blocks(self.config, blocks)

    def foreseen(self, num_blocks: int) -> Iterator[RunConfig]:
        """See `SurveyExchange.foreseen`: any block may be the last of those that go in a row."""
        for start in (1, 2):
            yield _with_blocks(self.config, ",".join(map(str, range(start, num_blocks, 2))))


def _with_blocks(config: RunConfig, blocks: str) -> RunConfig:
    return replace(config, strategy=replace(config.strategy, blocks=blocks))


def _cosines(config: RunConfig) -> Cosines:
    return RowCosines(config) if config.strategy.contiguous else Cosines()


def _first(config: RunConfig) -> int:
    """Return the first block that may go: the map is put into the one before."""
    return 1 if config.strategy.repair else 0


def _count(config: RunConfig, num_blocks: int) -> int:
    return removed_count(config.strategy.remove, config.sparsity, num_blocks, _first(config))


def _chosen(config: RunConfig, arrays: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, Any]:
    """Return which blocks go by the sums of all blocks, and the figures behind it."""
    count, first = _count(config, len(arrays)), _first(config)
    influence = [_distance(one, 0) for one in arrays]
    told: dict[str, Any] = {"influence": influence}
    if not config.strategy.contiguous:
        return {"blocks": list(most_alike(influence, count, first)), **told}
    if any(len(one["sums"]) < 2 for one in arrays):
        raise ConfigError(
            "`strategy.contiguous` needs cosines over blocks in a row, these statistics have those "
            "of single blocks. Set strategy.contiguous=false, name them by strategy.blocks, or run "
            "the federation itself."
        )
    distances = [_distance(one, 1) for one in arrays]
    blocks = list(most_alike_in_a_row(distances, count, first))
    return {"blocks": blocks, **told, "distances": distances[count - 1 :]}


def _distance(arrays: Mapping[str, NDArray[Any]], place: int) -> float:
    """Return one minus the mean cosine, 0 where there is none."""
    total, tokens = int(arrays["sums"][place]), int(arrays["tokens"][place])
    return 1 - total / (tokens * UNIT) if tokens else 0.0


class Depth(Method):
    """Fewer blocks, by their influence, with a map that makes up for them."""

    name = "depth"
    words = Words(
        label="Depth",
        does="clients send how little each block changes its input, the blocks that change least "
        "go",
        sends="sums of cosines between what enters and what leaves blocks; with repair also "
        "products of one matrix's outputs with what the blocks changed",
        tells="The cosines are one number a block. Products of hidden states tell more: they are "
        "to be treated like gradients.",
    )

    with_noise = "strategy.repair=false"

    def exchange(self, config: RunConfig) -> Collection:
        if config.strategy.repair:
            return Collection(config, [Transitions(config.strategy.chosen)])
        return Collection(config, [_cosines(config)])

    def survey(self, config: RunConfig) -> SurveyExchange | None:
        """Return the first of two passes, where the second needs to know which blocks go."""
        asks = config.strategy.repair and not config.strategy.chosen
        return CosineSurvey(config) if asks else None

    def check_model(self, config: RunConfig, loaded: LoadedModel) -> None:
        """Refuse too many blocks, and a map that can be put into no matrix."""
        total, chosen = len(loaded.layout.blocks), config.strategy.chosen
        if chosen:
            check_reshape(loaded, Reshape(blocks=_kept(chosen, total)))
        else:
            _count(config, total)
        if config.strategy.repair:
            for block in [first - 1 for first in rows_of(chosen).values()] or range(total - 1):
                _writer(loaded, block)

    def solve(
        self, config: RunConfig, loaded: LoadedModel, statistics: StatisticsFolder
    ) -> Solution:
        """Return the model without the blocks, the map put into the matrix before them."""
        total, chosen = statistics.num_blocks, config.strategy.chosen
        figures: dict[str, Any] = {}
        if not chosen:
            statistics.require("cosines", f"`strategy.name` '{self.name}'")
            found = _chosen(config, [statistics.block(b, "cosines") for b in range(total)])
            chosen, figures = tuple(found["blocks"]), {_FIGURES: found}
        maps: dict[str, StandIn] = {}
        if config.strategy.repair:
            statistics.require("transitions", "`strategy.repair`")
            for last, first in rows_of(chosen).items():
                linear = _writer(loaded, first - 1)
                arrays = statistics.block(last, "transitions")
                if not arrays:
                    raise ConfigError(
                        f"The statistics in '{statistics.path}' are of other cuts than blocks "
                        f"{','.join(map(str, chosen))}. Set strategy.repair=false, or collect with "
                        "these `strategy.blocks`."
                    )
                where = f"{loaded.layout.prefix}.{first - 1}.{linear}"
                maps[where] = stand_in(arrays, config.strategy.damping)
            explained = {where: one.explained for where, one in maps.items()}
            figures = {**figures, "stand_ins": explained}
        reshape = Reshape(blocks=_kept(chosen, total), tensors=_Merging(loaded, maps))
        check_reshape(loaded, reshape)
        named = " ".join(map(str, chosen))
        rows = [(where, f"{share:.0%}") for where, share in figures.get("stand_ins", {}).items()]
        return Solution(
            reshape=reshape,
            figures=figures,
            summary=f"{len(chosen)} of {total} blocks removed ({named})"
            + (", a linear map stands in for them" if maps else ""),
            header=("matrix with a map", "of what the blocks change") if rows else (),
            rows=tuple(rows),
        )


def _kept(removed: Sequence[int], num_blocks: int) -> tuple[int, ...]:
    if removed and max(removed) >= num_blocks:
        raise ConfigError(
            f"`strategy.blocks` must be among 0 to {num_blocks - 1}, got {max(removed)}."
        )
    return tuple(block for block in range(num_blocks) if block not in removed)


def _writer(loaded: LoadedModel, block: int) -> str:
    try:
        return last_writer(loaded, block)
    except ModelError as error:
        raise ModelError(f"{error} Set strategy.repair=false.") from error


class _Merging:
    """Puts maps into the matrices that they follow: name and tensor -> tensor."""

    def __init__(self, loaded: LoadedModel, maps: Mapping[str, StandIn]) -> None:
        self._maps = maps
        self._linears = loaded.layout.linears(0)
        self._prefix = f"{loaded.layout.prefix}."

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        where, _, kind = name.rpartition(".")
        if where not in self._maps:
            return tensor
        matrix = self._maps[where].matrix
        if kind == "bias":
            return (matrix.T @ tensor.double()).to(tensor.dtype)
        ref = self._linears[where.removeprefix(self._prefix).partition(".")[2]]
        return ref.orient((matrix.T @ ref.orient(tensor).double()).to(tensor.dtype))


METHOD = Depth()
