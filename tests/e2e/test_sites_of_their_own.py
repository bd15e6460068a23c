"""Sites with texts of their own and no model, on real processes; broken ones are told by name."""

import json

import pytest

from client_app.app import app
from fedprune.models.embedded import demo_model_path
from fedprune.models.export import SIDECAR
from tests.support.federation import Federation
from tests.support.grid import LocalGrid
from tests.support.jobs import QUIET, job, refusals

PATIENT = "mrs-smith-1950"
SITES = ("north", "east", "typo")


def texts(folder, count: int):
    folder.mkdir()
    lines = [json.dumps({"note": f"{PATIENT} was seen at noon {n}. " * 9}) for n in range(count)]
    (folder / f"{PATIENT}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.e2e
@pytest.mark.faults
def test_sites_get_the_model_and_broken_ones_are_refused_by_name(tmp_path):
    folders = [texts(tmp_path / site, 40) for site in SITES]
    nodes = {
        n: {
            "partition-id": n,
            "num-partitions": len(SITES),
            "site": site,
            "data-path": str(folders[n]),
            "text-key" if site != "typo" else "txt-key": "note",
        }
        for n, site in enumerate(SITES)
    }
    public = tmp_path / "public.txt"
    public.write_text("Return the path of the file. " * 200)
    shared = [*QUIET, "data=node", f"data.heldout_path={public}", "data.text_key=note"]
    shared += ["strategy.min_clients=2", "pruner.num_calibration_samples=4"]
    local = {n: {**nodes[n], "num-partitions": 2} for n in range(2)}
    job(tmp_path / "local", *shared, grid=LocalGrid(app, 2, node_configs=local))
    words = [" ".join(f"{key}={json.dumps(v)}" for key, v in own.items()) for own in nodes.values()]
    folder = tmp_path / "federation"
    folder.mkdir()
    with Federation(folder, nodes=words, tls=False) as federation:
        more = ("model.source=server", "strategy.wait=60", "data.text_key=text")
        run = federation.run(tmp_path / "run", *shared, *more)
        assert run.wait(900) == 0, run.out + run.err + federation.logs()
        log = federation.nodes[2].executor.log
        homes = [node.home for node in federation.nodes]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [client["name"] for client in results["clients"]] == [
        "'north' (partition 0)",
        "'east' (partition 1)",
    ]
    refused = refusals(results)
    assert set(refused) == {"'typo' (partition 2)"}
    assert "no text in its field" in refused["'typo' (partition 2)"]
    assert PATIENT not in json.dumps(results) + run.out + run.err
    assert f"{PATIENT}.jsonl' line 1" in log and "Did you mean 'text-key'?" in log
    # The model came to those that could use it, byte for byte, and the masks are the same.
    weights = (demo_model_path() / "model.safetensors").read_bytes()
    for home in homes[:2]:
        (model,) = home.glob("models/*/model.safetensors")
        assert model.read_bytes() == weights
    assert not list(homes[2].glob("models/*/model.safetensors"))
    assert results["ledger"]["model_bytes"] > 2 * len(weights)
    found = [(tmp_path / name / "model" / SIDECAR).read_bytes() for name in ("run", "local")]
    assert found[0] == found[1]
