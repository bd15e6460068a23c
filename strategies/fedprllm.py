"""FedPrLLM: clients vote with their masks, the most voted weights are pruned.

Guo et al., "FedPrLLM" (arXiv 2505.13547): every client prunes its own copy and sends masks only;
the server prunes, in each comparison group, the weights that most clients prune. Of equally voted
weights the smaller goes first, then the lower index; the published choices, the lower index or a
random one, are options.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from flwr.app import Message

from fedprune.config import RunConfig
from fedprune.pruning.spec import block_specs
from fedprune.records import read_prune
from fedprune.reporting.ledger import Entry, Ledger
from strategies.ballot import Ballot
from strategies.base import FederatedPruning
from strategies.block import BlockResult
from strategies.plan import Plan


class FedPrLLM(FederatedPruning):
    """Voting on masks, one-shot or block by block, with or without scaling (arXiv 2505.13547).

    Parameters
    ----------
    config : RunConfig
        The checked configuration.
    plan : Plan
        The public model's shapes, hashes and weights.
    on_block : Callable[[BlockResult], None]
        Told of each aggregated block.
    ledger : Ledger
        Gets an entry for every request and reply.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: Plan,
        on_block: Callable[[BlockResult], None],
        ledger: Ledger,
    ) -> None:
        super().__init__(config, plan, on_block, ledger)
        num_blocks = len(plan.shapes)
        self._specs = block_specs(config, range(num_blocks), num_blocks)
        self._ballot: Ballot | None = None

    def open_chunk(self, blocks: range) -> None:
        """Start the count of a chunk's votes."""
        self._ballot = Ballot(self.plan, blocks, self.config, self._specs)

    def fold(self, message: Message, entry: Entry) -> Entry:
        """Count one client's masks; nothing of them is kept."""
        ballot = self._open_ballot()
        most = {block: self.plan.block_bytes(block) for block in ballot.blocks}
        reply = read_prune(message, ballot.blocks, most)
        ballot.fold(reply, self.cohort.weights[message.metadata.src_node_id])
        return replace(
            entry,
            client_seconds=reply.seconds,
            peak_rss_bytes=reply.peak_rss_bytes,
            peak_device_bytes=reply.peak_device_bytes,
        )

    def close_chunk(self) -> Iterator[BlockResult]:
        """Decide the chunk's blocks one by one and forget their votes."""
        ballot = self._open_ballot()
        for block in ballot.blocks:
            yield ballot.decide(block)
        self._ballot = None

    def _open_ballot(self) -> Ballot:
        if self._ballot is None:
            raise RuntimeError("no chunk is open: call `open_chunk` first.")
        return self._ballot
