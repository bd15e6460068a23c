"""One pass over the dense model that gathers several statistics: collect once, solve many.

Clients see the dense model, so that what they send does not depend on what is made of it later:
one collection serves every sparsity, pattern, allocation and solver
(:mod:`fedprune.methods.statistics_folder`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.config import RunConfig
from fedprune.config.schema import PAYLOADS
from fedprune.errors import WireError
from fedprune.methods.exchange import (
    Aggregator,
    Answer,
    BlockExchange,
    BlockTask,
    Contributor,
    Pooled,
    can_have_noise,
)
from fedprune.methods.parts import Part, Sums, make_part
from fedprune.methods.public_model import PublicModel
from fedprune.methods.state import Arrays, gathered, numbers, scattered
from fedprune.methods.word_sums import Layout, Words, part_of, prefixed
from fedprune.pruning.block_kinds import BlockKind, BlockSite
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.groups import BlockSpec
from fedprune.pruning.kinds import find_kind
from fedprune.pruning.statistics import StatisticKind
from fedprune.results.text import size_text
from fedprune.wire.arrays import Arrays as Message
from fedprune.wire.arrays import encode_arrays

_HEAD_BYTES = 4096  # the names and lengths of a block's statistics


@dataclass(frozen=True)
class BlockStatistics:
    """What a collection found out of a block."""

    block: int
    # ``{kind}.{input}.{array}`` and ``{kind}.{array}`` -> values, as a statistics folder has them
    arrays: Mapping[str, NDArray[Any]]
    clients: int


class Collection(BlockExchange):
    """Ask every client for several statistics of the dense model.

    `kinds`: what is collected; names are looked up (:func:`fedprune.pruning.kinds.find_kind`).
    """

    prunes = False
    payload = "sums"

    def __init__(
        self, config: RunConfig, kinds: Iterable["str | StatisticKind[Any] | BlockKind"]
    ) -> None:
        super().__init__(config)
        found = [find_kind(kind) if isinstance(kind, str) else kind for kind in kinds]
        self.parts: Mapping[str, Part] = {kind.name: make_part(kind, config) for kind in found}
        self.payload = max((kind.payload for kind in found), key=PAYLOADS.index)
        self.together = any(isinstance(kind, BlockKind) and kind.together for kind in found)
        self._inputs = [kind for kind in found if isinstance(kind, StatisticKind)]
        self._blocks = [kind for kind in found if isinstance(kind, BlockKind)]
        self.shares_inputs = bool(self._inputs)
        summed = [kind for kind in found if can_have_noise(kind)]
        self.summed = tuple(summed) if len(summed) == len(found) else ()
        self.collects = tuple(kind.name for kind in found)
        self._kept: dict[str, Any] = {}

    @property
    def form(self) -> str:
        """The format of the payloads, with its version."""
        return "fedprune.collection.v1"

    def answer(self, walk: BlockWalk, spec: BlockSpec, local_prefix: bool) -> Answer:
        """Return this client's statistics of the block where a walk stands."""
        if walk.position == 0:
            self._kept.clear()
        width = self.config.strategy.max_width
        observed = walk.observe(self._inputs, self._blocks, self._kept, width)
        site = BlockSite.of(walk.model, walk.position)
        sections = {
            name: np.frombuffer(part.encode(observed, site), dtype=np.uint8)
            for name, part in self.parts.items()
        }
        return Answer(encode_arrays(sections))

    def most_bytes(self, model: PublicModel, block: int) -> int:
        """Return the most bytes that a client's statistics of a block can take."""
        return _HEAD_BYTES + sum(part.most_bytes(model, block) for part in self.parts.values())

    def aggregator(self, task: BlockTask) -> "CollectionAggregator":
        """Return empty sums for a block."""
        return CollectionAggregator(task, self.parts)

    def announcement(self, model: PublicModel) -> str:
        """Say what is collected and what that costs."""
        total = self.total_bytes(model)
        return f"collects {', '.join(self.parts)}: at most {size_text(total)} from every client"


class CollectionAggregator(Aggregator[dict[str, Any], BlockStatistics]):
    """The running sums of every statistic of a block.

    `sums_integers`: whether all of them are sums of integers.
    """

    def __init__(self, task: BlockTask, parts: Mapping[str, Part]) -> None:
        self.task = task
        self._sums: dict[str, Sums] = {name: part.sums(task) for name, part in parts.items()}
        self.sums_integers = all(sums.sums_integers for sums in self._sums.values())
        self._most = {name: part.most_bytes(task.model, task.block) for name, part in parts.items()}
        self._clients = 0

    def check(self, payload: bytes, client: Contributor) -> dict[str, Any]:
        """Decode every statistic; all must be there, and nothing else."""
        found: dict[str, Any] = {}
        message = Message(payload, self._sums)
        for name, sums in self._sums.items():
            announced = message.announced(name)
            if announced.nbytes > self._most[name]:
                raise WireError(f"'{name}' can have {self._most[name]} bytes at most.")
            section = message.take(name, announced)
            if section.dtype != np.uint8 or section.ndim != 1:
                raise WireError(f"'{name}' must be bytes.")
            found[name] = sums.check(section.tobytes(), client)
        message.finish()
        return found

    def add(self, answer: dict[str, Any], client: Contributor) -> None:
        """Add one client's checked statistics."""
        for name, found in answer.items():
            self._sums[name].add(found, client)
        self._clients += 1

    def layout(self, clients: int) -> Layout:
        """Return the words of every statistic."""
        return prefixed({name: sums.layout(clients) for name, sums in self._sums.items()})

    def words(self, answer: dict[str, Any], client: Contributor, clients: int) -> Words:
        """Return one client's checked statistics as words."""
        return prefixed(
            {name: sums.words(answer[name], client, clients) for name, sums in self._sums.items()}
        )

    def add_total(self, total: Mapping[str, NDArray[Any]], clients: Sequence[Contributor]) -> None:
        """Add the sums of all clients."""
        for name, sums in self._sums.items():
            sums.add_total(part_of(total, name), clients)
        self._clients = len(clients)

    def add_pooled(self, pooled: Pooled, clients: int) -> None:
        """See `Aggregator.add_pooled`."""
        for sums in self._sums.values():
            sums.add_pooled(pooled, clients)
        self._clients += clients

    def close(self) -> BlockStatistics:
        """Return the sums of every statistic."""
        arrays = {
            f"{name}.{array}": values
            for name, sums in self._sums.items()
            for array, values in sums.close().items()
        }
        return BlockStatistics(self.task.block, arrays, self._clients)

    def state(self) -> Arrays:
        """Return the sums as arrays."""
        return {"clients": numbers(self._clients), **gathered(self._sums)}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; errors as there."""
        (self._clients,) = (int(n) for n in arrays["clients"])
        scattered(arrays, self._sums)
