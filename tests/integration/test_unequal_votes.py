"""Layer sampling with clients that do not count alike: how many votes a block can have differs."""

from pathlib import Path

import pytest

from fedprune.report.page import render_page
from strategies import cohort
from tests.integration.test_resume import go_on, inputs, start, stopped  # noqa: F401 - a fixture
from tests.support.jobs import masks_of, same_masks

OPTIONS = ("strategy=fedspallm", "strategy.layer_fraction=0.67", "strategy.coverage=1")


@pytest.fixture(autouse=True)
def weigh_unequally(monkeypatch):
    def weights(clients, config):
        return {client.node_id: 1 + 2 * (client.node_id - 100) for client in clients}

    monkeypatch.setattr(cohort, "client_weights", weights)


def test_votes_are_counted_by_how_many_there_could_be(tmp_path, inputs):  # noqa: F811
    whole = start(tmp_path / "whole", inputs, *OPTIONS)
    found = whole["agreement"]["votes_by_voters"]
    assert len(found) > 1 and set(found) <= {"1", "3", "4", "5", "6", "8", "9"}
    assert all(len(counts) == int(total) + 1 for total, counts in found.items())
    assert sum(map(sum, found.values())) == whole["sparsity"]["weights"]
    assert "Votes to prune a weight" in render_page(whole, "", Path(tmp_path))
    folder = stopped(tmp_path / "run", inputs, *OPTIONS, after=3)
    resumed = go_on(folder)
    assert resumed["agreement"]["votes_by_voters"] == found
    assert same_masks(masks_of(folder), masks_of(tmp_path / "whole"))
