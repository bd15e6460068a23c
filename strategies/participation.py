"""Who of the accepted clients takes part, and how much each one's vote counts."""

from collections.abc import Sequence
from fractions import Fraction
from math import ceil, gcd

from fedprune.config import RunConfig
from fedprune.seeds import derive_seed
from strategies.handshake import Client


def take_part(clients: Sequence[Client], config: RunConfig) -> list[Client]:
    """Return `strategy.fraction` of the clients, rounded up, in their order.

    Never fewer than `strategy.min_clients` if there are as many. The seed and the partitions
    decide, not who answered first.
    """
    wanted = ceil(Fraction(str(config.strategy.fraction)) * len(clients))
    wanted = max(wanted, config.strategy.min_clients)

    def draw(client: Client) -> int:
        return derive_seed(config.seed, "participation", client.report.partition_id)

    drawn = {client.node_id for client in sorted(clients, key=draw)[:wanted]}
    return [client for client in clients if client.node_id in drawn]


def client_weights(clients: Sequence[Client], config: RunConfig) -> dict[int, int]:
    """Return node id -> for how many votes its mask counts, in the smallest whole numbers.

    A client counts for no more samples than the configuration asks of it, whatever it reports.
    """
    found = {client.node_id: _raw_weight(client, config) for client in clients}
    common = gcd(*found.values()) or 1
    return {node_id: weight // common for node_id, weight in found.items()}


def _raw_weight(client: Client, config: RunConfig) -> int:
    if config.strategy.client_weights == "equal":
        return 1
    samples = _clamped(client.report.samples, config.pruner.num_calibration_samples)
    if config.strategy.client_weights == "samples":
        return samples
    return _clamped(client.report.tokens, samples * config.pruner.seq_len)


def _clamped(value: int, most: int) -> int:
    return max(1, min(value, most))
