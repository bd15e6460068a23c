"""Who takes part, and how much each vote counts."""

from dataclasses import replace

import pytest

from fedprune.config import config_from_overrides
from strategies.cohort import Client, client_weights, take_part
from tests.support.scripted import REPORT


def clients(count, samples=lambda partition: 4, tokens=lambda partition: 4):
    return [
        Client(
            100 + partition,
            replace(
                REPORT,
                partition_id=partition,
                samples=samples(partition),
                tokens=tokens(partition),
            ),
        )
        for partition in range(count)
    ]


def config(**values):
    return config_from_overrides(
        ["strategy.min_clients=1", *(f"{key.replace('__', '.')}={v}" for key, v in values.items())]
    )


@pytest.mark.parametrize(
    ("fraction", "count", "least", "expected"),
    [(1.0, 5, 1, 5), (0.5, 5, 1, 3), (0.1, 10, 1, 1), (0.3, 10, 1, 3), (0.01, 7, 1, 1)]
    + [(0.25, 8, 2, 2), (0.1, 6, 2, 2), (0.5, 1, 2, 1)],
)
def test_the_fraction_is_rounded_up_and_never_below_the_minimum(fraction, count, least, expected):
    chosen = config(
        strategy__fraction=fraction, strategy__min_clients=least, federation__num_clients=8
    )
    found = take_part(clients(count), chosen)
    assert len(found) == expected
    assert [client.node_id for client in found] == sorted(client.node_id for client in found)


def test_seed_and_partitions_choose_not_node_ids_or_order():
    half = config(strategy__fraction=0.5)
    first = [client.report.partition_id for client in take_part(clients(12), half)]
    renamed = [replace(client, node_id=999 - client.node_id) for client in clients(12)]
    again = take_part(renamed[::-1], half)
    assert sorted(client.report.partition_id for client in again) == first
    others = [
        [client.report.partition_id for client in take_part(clients(12), config(seed=s, **HALF))]
        for s in range(1, 6)
    ]
    assert any(other != first for other in others)


HALF = {"strategy__fraction": 0.5}


def test_weights_are_the_smallest_whole_numbers():
    some = clients(3, samples=lambda p: (4, 6, 8)[p], tokens=lambda p: (512, 768, 1024)[p])
    assert client_weights(some, config()) == {100: 1, 101: 1, 102: 1}
    for how in ("samples", "tokens"):
        chosen = config(strategy__client_weights=how)
        assert client_weights(some, chosen) == {100: 2, 101: 3, 102: 4}
    assert client_weights([], config()) == {}


@pytest.mark.parametrize(("most", "expected"), [(1, 1), (2, 2), (4, 4), (8, 8), (100, 16)])
def test_no_claim_counts_for_more_than_so_many_median_clients(most, expected, caplog):
    chosen = config(
        strategy__client_weights="samples",
        strategy__most_weight=most,
        pruner__num_calibration_samples=128,
    )
    # One of five claims all that is asked for, the others have a few.
    some = clients(5, samples=lambda p: (128, 8, 8, 8, 8)[p], tokens=lambda p: 1000)
    weights = client_weights(some, chosen)
    assert weights == {100: expected, 101: 1, 102: 1, 103: 1, 104: 1}
    assert ("`strategy.most_weight`" in caplog.text) is (expected < 16)
    if expected < 16:
        assert f"counts for {8 * most} samples, not for 128" in caplog.text
    # Equal clients are not weighed.
    assert set(client_weights(some, config()).values()) == {1}


@pytest.mark.parametrize("how", ["samples", "tokens"])
def test_nobody_counts_for_more_than_the_configuration_asks_or_for_nothing(how):
    chosen = config(strategy__client_weights=how, pruner__num_calibration_samples=8)
    some = clients(3, samples=lambda p: (8, 2**60, -5)[p], tokens=lambda p: (1024, 2**61, -1)[p])
    weights = client_weights(some, chosen)
    assert weights[101] == weights[100] > weights[102] >= 1
