"""What anybody could make of the public model alone, beside what clients' texts make of it."""

import numpy as np
import pytest

from client_app import texts
from fedprune.config import config_from_overrides
from fedprune.data.samples import Sample
from fedprune.methods.public_model import PublicModel
from fedprune.methods.public_text import public_samples
from fedprune.models.loading import load_model
from server_app.measure import no_client_changes
from tests.support.jobs import QUIET, job, whole_model
from tests.support.slow_wanda import central

pytestmark = pytest.mark.usefixtures("three_blocks", "short_text")

ASKED = ("evaluation.no_client=true", "strategy.timeout=60", "schedule.name=iterative")


def test_it_is_the_slow_pruning_of_the_public_text(short_model):
    config = config_from_overrides([*QUIET, "strategy=fedstats", short_model])
    loaded = whole_model(short_model)
    samples = public_samples(config, loaded)
    changes = no_client_changes(config, loaded, PublicModel.of(loaded))
    expected = central(samples, short_model)
    found = {
        (block, name): mask.to_bool() for block in changes for name, mask in changes[block].items()
    }
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    "method",
    [
        ("strategy=fedstats", "allocation=owl"),
        ("strategy=fedstats", "allocation=sensitivity", "allocation.texts=2"),
        ("strategy=fedhessian", "pruner=alps", "pruner.two_sided=true", "allocation=sensitivity")
        + ("allocation.texts=2",),
    ],
)
def test_a_client_that_holds_the_public_text_adds_nothing(tmp_path, monkeypatch, method):
    def public(config, node):
        tokens = public_samples(config, load_model(config.model))
        return [Sample(one, "public", place) for place, one in enumerate(tokens)]

    monkeypatch.setattr(texts, "samples", public)
    results = job(tmp_path / "run", *ASKED, *method, "sparsity=0.6", clients=1)
    (found,) = results["perplexity"].values()
    assert found["dense"] < found["no_client"] == found["pruned"]
    (close,) = results["fidelity"].values()
    assert close["no_client"] == close["pruned"]


def test_clients_have_no_part_in_it(tmp_path):
    quick = (*ASKED, "strategy=fedstats")
    few = job(tmp_path / "few", *quick, clients=1)["perplexity"]
    many = job(tmp_path / "many", *quick, "data.partition=iid")["perplexity"]
    assert few["stdlib"]["no_client"] == many["stdlib"]["no_client"]
    assert few["stdlib"]["pruned"] != many["stdlib"]["pruned"]


def test_it_is_measured_where_it_is_asked_for(tmp_path):
    results = job(tmp_path / "run", "strategy=fedprllm", "strategy.timeout=60")
    assert results["perplexity"]["stdlib"]["no_client"] is None
