"""What the server keeps of several clients' sums, where it is more than their total.

By tokens (`strategy.pooling`) the sums add up as they are, and nothing else is kept. Otherwise each
client's scores become whole numbers by themselves and are added: as they are (clients), or as
shares of their total (scaled). Where no client may lose more than it must (worst_client) the
clients' needs are looked at side by side, and only the choice that follows is kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.config import RunConfig
from fedprune.config.pattern import pruned_count
from fedprune.methods.collection import Part, Sums, make_part
from fedprune.methods.exchange import Aggregator, BlockTask, Contributor
from fedprune.methods.fedexperts.ranking import (
    drop_fairly,
    grouped,
    mean_scores,
    need_shares,
    score_shares,
)
from fedprune.methods.state import Arrays, gathered, scattered
from fedprune.methods.word_sums import Layout, Words, part_of, prefixed, signed
from fedprune.models.mixture import router_groups
from fedprune.privacy.secure_sums import WordSpec
from fedprune.pruning.experts import TOKENS, ExpertSums

SCORES, DROPPED, LOST, EXCESS = "scores", "dropped", "lost", "excess"

_ROWS = {"clients": mean_scores, "scaled": score_shares, "worst_client": need_shares}


def pooled_experts(config: RunConfig, kind: ExpertSums) -> Part:
    """Return the part of the sums of experts, pooled as `strategy.pooling` says."""
    part = make_part(kind, config)

    def sums(task: BlockTask) -> Sums:
        total, some = part.sums(task), kind.specs(task.model.sites[task.block])
        by_tokens = config.strategy.pooling == "tokens" or not some
        return total if by_tokens else _SideBySide(total, task, config)

    return replace(part, sums=sums)


class _SideBySide(Aggregator[Any, Arrays]):
    """Total sums, and beside them a row of numbers of each client, or the sum of these rows."""

    def __init__(self, total: Sums, task: BlockTask, config: RunConfig) -> None:
        self._total, self._task, self._config = total, task, config
        self._pooling, self._ranking = str(config.strategy.pooling), config.strategy.ranking
        self._fair = self._pooling == "worst_client"
        self.sums_integers = not self._fair
        self._rows: list[NDArray[np.int64]] = []

    def check(self, payload: bytes, client: Contributor) -> Any:
        return self._total.check(payload, client)

    def add(self, answer: Any, client: Contributor) -> None:
        row = _ROWS[self._pooling](answer, self._ranking)
        self._rows = [*self._rows, row] if self._fair or not self._rows else [self._rows[0] + row]
        self._total.add(answer, client)

    def layout(self, clients: int) -> Layout:
        experts = self._task.model.sites[self._task.block]
        (count,) = ExpertSums().specs(experts)[TOKENS].shape
        return {"row": WordSpec(count, 64), **prefixed({"total": self._total.layout(clients)})}

    def words(self, answer: Any, client: Contributor, clients: int) -> Words:
        row = _ROWS[self._pooling](answer, self._ranking)
        total = self._total.words(answer, client, clients)
        return {"row": signed(row), **prefixed({"total": total})}

    def add_total(self, total: Mapping[str, NDArray[Any]], clients: Sequence[Contributor]) -> None:
        self._total.add_total(part_of(total, "total"), clients)
        self._rows = [total["row"].view(np.int64).copy()]

    def close(self) -> Arrays:
        kept = dict(self._total.close())
        return {**kept, **(self._choice() if self._fair else {SCORES: self._rows[0]})}

    def state(self) -> Arrays:
        rows = {"rows": np.stack(self._rows)} if self._rows else {}
        return {**gathered({"total": self._total}), **rows}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        scattered(arrays, {"total": self._total})
        self._rows = [np.array(row, dtype=np.int64) for row in arrays.get("rows", ())]

    def _choice(self) -> Arrays:
        site, needs = self._task.model.sites[self._task.block], np.stack(self._rows)
        groups = grouped(needs.shape[1], router_groups(site.config)[0])
        found = drop_fairly(needs, groups, pruned_count(len(groups[0]), self._config.sparsity))
        return {
            DROPPED: np.array(found.dropped, dtype=np.int64),
            LOST: np.array([found.lost]),
            EXCESS: np.array([found.excess]),
        }
