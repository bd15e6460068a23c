"""FedPrLLM: clients vote with their masks, the most voted weights are pruned.

Guo et al., "FedPrLLM" (arXiv 2505.13547): every client prunes its own copy and sends masks only;
the server prunes, in each comparison group, the weights that most clients prune. Of equally voted
weights the smaller goes first, then the lower index; the published choices, the lower index or a
random one, are options. So is decoding: a mask tells its client's input norms up to a scale, and
the pooled norms prune better than votes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from fedprune.methods.state import Arrays
from fedprune.pruning.groups import block_specs
from fedprune.records import PruneReply
from strategies.ballot import Ballot
from strategies.cohort import Client
from strategies.course import FederatedPruning
from strategies.state import BlockResult


class FedPrLLM(FederatedPruning):
    """Voting on masks, one-shot or block by block, with or without scaling (arXiv 2505.13547)."""

    _ballot: Ballot | None = None

    def open_chunk(self, blocks: range) -> None:
        """Start the count of a chunk's votes."""
        specs = block_specs(self.config, blocks, len(self.plan.shapes))
        self._ballot = Ballot(self.plan, blocks, self.config, specs)

    def fold(self, reply: PruneReply, client: Client) -> None:
        """Count one client's masks; nothing of them is kept but what decoding finds odd."""
        weight = self.cohort.weights[client.node_id]
        share = self._open_ballot().fold(reply, weight, client.name)
        if self.config.strategy.decode:
            violations = self.state.figures.setdefault("violations", {})
            violations[client.name] = max(share, violations.get(client.name, 0.0))

    def close_chunk(self) -> Iterator[BlockResult]:
        """Decide the chunk's blocks one by one and forget their votes."""
        ballot = self._open_ballot()
        for block in ballot.blocks:
            yield ballot.decide(block)
        self._ballot = None

    def votes(self) -> Arrays:
        """Return the open chunk's votes."""
        return self._open_ballot().state()

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on with an open chunk's votes."""
        self._open_ballot().restore(arrays)

    def _open_ballot(self) -> Ballot:
        if self._ballot is None:
            raise RuntimeError("no chunk is open: call `open_chunk` first.")
        return self._ballot
