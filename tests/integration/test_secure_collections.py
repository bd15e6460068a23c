"""Statistics that are collected under masks are those of a plain run, and so is what they make."""

import pytest
import torch
from safetensors.torch import load_file

from fedprune.methods.statistics_folder import StatisticsFolder
from tests.support.jobs import job, opt_folder
from tests.support.mixtures import mixture_folder

SECURE = ("privacy.secure=true", "strategy.min_clients=3")
OWN = ("privacy.first_input=own",)


def both(folder, *overrides):
    job(folder / "plain", *OWN, *overrides)
    return job(folder / "secure", *OWN, *SECURE, *overrides)


def same_files(folder, pattern):
    plain, secure = (
        sorted((folder / "plain").glob(pattern)),
        sorted((folder / "secure").glob(pattern)),
    )
    return bool(plain) and [p.read_bytes() for p in plain] == [p.read_bytes() for p in secure]


@pytest.fixture(scope="module")
def opt(tmp_path_factory):
    return f"model={opt_folder(tmp_path_factory.mktemp('opt') / 'opt')}"


@pytest.mark.parametrize(
    "overrides",
    [("strategy=collect",), ("strategy=fedstats", "allocation=owl", "schedule=iterative")],
    ids=["collection", "survey"],
)
def test_public_first_inputs_are_heard_by_all_alike(tmp_path, opt, overrides):
    results = job(tmp_path / "run", opt, *SECURE, *overrides)
    assert not any(entry["refused"] for entry in results["ledger"]["entries"])
    assert results["strategy"]["secure"]["clients"] == 3


def test_collected_statistics_are_the_very_same(tmp_path, opt):
    both(tmp_path, opt, "strategy=collect", "strategy.statistics='columns,values,cosines,moments'")
    found = [StatisticsFolder.open(tmp_path / name / "statistics") for name in ("plain", "secure")]
    for block in range(3):
        for kind in ("columns", "values", "cosines", "moments"):
            plain, secure = (one.block(block, kind) for one in found)
            assert plain.keys() == secure.keys()
            for name in plain:
                assert plain[name].tobytes() == secure[name].tobytes(), (block, kind, name)


@pytest.mark.parametrize("pooling", ["tokens", "scaled"])
def test_the_same_experts_go(tmp_path, pooling):
    model = f"model={mixture_folder(tmp_path / 'mixture')}"
    told = both(
        tmp_path, model, "strategy=fedexperts", f"strategy.pooling={pooling}", "sparsity=0.25"
    )
    assert same_files(tmp_path, "model/*.safetensors")
    assert told["strategy"]["secure"]["clients"] == 3


def test_the_same_blocks_go_and_the_map_is_the_same_but_for_rounding(tmp_path, opt):
    both(tmp_path, opt, "strategy=depth", "sparsity=0.34")
    plain, secure = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "secure")
    )
    assert plain.keys() == secure.keys()
    assert all(torch.allclose(plain[name], secure[name], rtol=1e-6, atol=1e-7) for name in plain)
