"""The method: clients send the sums, the server prunes as if it held all texts."""

from fedprune.config import RunConfig
from fedprune.methods.registry import Method, Words
from fedprune.methods.statistics import StatisticExchange


class FedAbsolute(Method):
    """Pruning on summed absolute inputs; the pruner says that it needs them."""

    name = "fedabsolute"
    words = Words(
        label="FedAbsolute",
        does="clients send sums of absolute inputs, the server prunes with the sum",
        sends="for each column of a matrix the sum of its absolute inputs, and numbers of tokens",
        tells="The sums are exact statistics of each client's texts.",
    )

    def exchange(self, config: RunConfig) -> StatisticExchange:
        """Return the exchange that is held about every block."""
        return StatisticExchange(config)


METHOD = FedAbsolute()
