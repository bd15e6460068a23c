"""Whole runs under masks end with the very bytes of plain ones, whoever vanishes meanwhile."""

import pytest

from client_app.app import app
from fedprune.models.export import SIDECAR
from tests.support.grid import LocalGrid
from tests.support.jobs import job, opt_folder

SECURE = "privacy.secure=true"
HESSIAN = ["strategy=fedhessian", "pruner=sparsegpt", "schedule=iterative"]
RUNS = {
    "fedstats": ["strategy=fedstats"],
    "fedstats, iterative": ["strategy=fedstats", "schedule=iterative", "strategy.pooling=clients"],
    "fedstats, alps": ["strategy=fedstats", "pruner=alps", "schedule=iterative"],
    "fedstats, owl": ["strategy=fedstats", "allocation=owl", "pruner=ria"],
    "fedprllm": ["strategy=fedprllm", "strategy.scaling=true", "schedule=iterative"],
    "fedspallm": ["strategy=fedspallm", "pruner=sparsegpt"],
    "fedspallm, two rounds": ["strategy=fedspallm", "strategy.rounds=2"],
    "fedhessian, sketches": [*HESSIAN, "strategy.moments=nystrom"],
    "fedhessian, whole": [*HESSIAN, "strategy.moments=float32"],
}


def made(folder):
    """Return the bytes of the masks and of the model that a run exported."""
    model = folder / "model"
    weights = sorted(model.glob("*.safetensors"))
    assert weights
    return [(model / SIDECAR).read_bytes(), *(path.read_bytes() for path in weights)]


def secure(folder, *overrides, clients=3, grid=None, cohort=3):
    least = [f"privacy.min_cohort={cohort}", f"strategy.min_clients={cohort}"]
    # Plain runs tell of their own first inputs; so that the same is summed, these do, too.
    same = "privacy.first_input=own"
    return job(folder, SECURE, same, *least, *overrides, clients=clients, grid=grid)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of three small blocks."""
    return f"model={opt_folder(tmp_path_factory.mktemp('opt') / 'opt')}"


@pytest.mark.parametrize("name", RUNS)
def test_the_masks_are_those_of_a_plain_run_byte_for_byte(tmp_path, model, name):
    job(tmp_path / "plain", model, *RUNS[name])
    results = secure(tmp_path / "secure", model, *RUNS[name])
    assert made(tmp_path / "secure") == made(tmp_path / "plain")
    told = results["strategy"]["secure"]
    assert (told["clients"], told["threshold"], told["min_cohort"]) == (3, 2, 3)
    assert not told["authenticated"]


def test_what_travels_is_not_what_a_plain_run_sends(tmp_path, model):
    plain, hidden = LocalGrid(app, 3), LocalGrid(app, 3)
    sent = {}
    for name, grid in (("plain", plain), ("secure", hidden)):
        kept = sent[name] = []

        def keep(partition, reply, kept=kept):
            if reply.metadata.message_type == "train.prune":
                kept.append(b"".join(array.data for array in reply.content["arrays"].values()))
            return reply

        grid._tamper = keep
        more = [SECURE] if name == "secure" else []
        job(tmp_path / name, model, "strategy=fedstats", "strategy.min_clients=3", *more, grid=grid)
    assert len(sent["plain"]) == len(sent["secure"]) == 3
    for data in sent["secure"]:
        words = data[-3000:]
        # Bytes of AES are spread evenly: none of 256 is missing for long.
        assert len(set(words)) > 250
