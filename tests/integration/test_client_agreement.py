"""Agreement client by client in a whole job, beside what the vote counts say of all weights."""

import pytest

from client_app.app import app
from tests.support.jobs import Shuffled, job


@pytest.mark.parametrize("overrides", [(), ("strategy=fedspallm",)], ids=["votes", "averages"])
def test_the_sample_says_what_all_weights_say(tmp_path, overrides):
    found = job(tmp_path / "run", *overrides)["agreement"]
    clients = found["clients"]
    names = clients["matrix_clients"]
    assert names == list(clients["result"]) == [f"partition {place}" for place in range(3)]
    matrix = clients["matrix"]
    pairs = [matrix[row][column] for row in range(3) for column in range(row)]
    assert sum(pairs) / len(pairs) == pytest.approx(found["pairwise"], abs=0.005)
    assert [matrix[place][place] for place in range(3)] == [1.0] * 3
    assert all(max(pairs) < share < 1 for share in clients["result"].values())


def test_neither_order_nor_chunks_decide(tmp_path):
    first = job(tmp_path / "one")
    other = job(tmp_path / "two", "schedule.blocks_per_message=2", grid=Shuffled(app, 3))
    assert first["agreement"] == other["agreement"]


def test_statistics_have_none(tmp_path):
    assert job(tmp_path / "run", "strategy=fedstats")["agreement"] is None
