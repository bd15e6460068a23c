"""How many partitions there are, by what most nodes say: one node's slip makes no run wait."""

from collections import Counter
from dataclasses import dataclass, field
from logging import WARNING

from flwr.common.logger import log

from fedprune.records import NodeReport


@dataclass
class Partitions:
    """What nodes say in the handshake; those that say nothing of it do not count."""

    _said: list[tuple[str, int]] = field(default_factory=list)
    _counts: Counter[int] = field(default_factory=Counter)

    def note(self, report: NodeReport) -> None:
        """Take what a node says."""
        if report.num_partitions:
            self._said.append((report.name, report.num_partitions))
            self._counts[report.num_partitions] += 1

    @property
    def most(self) -> int:
        """The number that most nodes say, the smallest of several; 0 if none says any."""
        counts = self._counts
        return min(counts, key=lambda number: (-counts[number], number), default=0)

    def warn(self) -> None:
        """Log the nodes that say another number."""
        most = self.most
        for name, number in self._said:
            if number != most:
                log(
                    WARNING,
                    "%s says that there are %d partitions, but %d is what counts here: look at "
                    "`num-partitions` in its --node-config.",
                    name,
                    number,
                    most,
                    extra={"node": name},
                )
