"""What files take and how fast models are; the parts that need a device are skipped without one."""

import pytest
import torch
from safetensors.torch import load_file

from fedprune.config import config_from_overrides
from fedprune.evaluation import speed
from fedprune.evaluation.sizes import ModelSizes, model_sizes
from fedprune.evaluation.speed import is_two_four, measure_speed, why_not_sparse
from fedprune.models.embedded import demo_model_path
from fedprune.models.export import SIDECAR
from fedprune.models.loading import load_model
from tests.support.jobs import striped_demo

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """The demo model with two of every four weights gone, as a folder."""
    return striped_demo(tmp_path_factory.mktemp("pruned") / "model", 4)


def test_sizes_by_counting_every_weight(pruned):
    state = load_file(pruned / "model.safetensors")
    names = set(load_file(pruned / SIDECAR))
    expected = 0
    for name, weight in state.items():
        if name in names:
            expected += (weight.numel() + 7) // 8 + int((weight != 0).sum()) * 4
        else:
            expected += weight.nbytes
    found = model_sizes(pruned)
    assert found.bits_and_values == expected
    assert found.dense == (pruned / "model.safetensors").stat().st_size
    assert found.masks == (pruned / SIDECAR).stat().st_size
    assert expected < 0.6 * found.dense


def test_a_dense_folder_has_no_masks():
    weights = demo_model_path() / "model.safetensors"
    assert model_sizes(demo_model_path()) == ModelSizes(dense=weights.stat().st_size)


def test_two_four_is_at_most_two_of_every_four_inputs():
    weight = torch.tensor([[1.0, 0, 2, 0, 0, 0, 0, 3], [0, 0, 0, 0, 1, 2, 0, 0]])
    assert is_two_four(weight)
    weight[0, 1] = 1
    assert not is_two_four(weight)
    assert not is_two_four(torch.zeros(2, 6))


def test_a_cpu_is_timed_dense_and_says_why_not_sparse(pruned, monkeypatch):
    monkeypatch.setattr(speed, "_LEAST_SECONDS", 0.0)
    found = measure_speed(pruned, CPU, seq_len=16, batch=2)
    assert (found.device, found.dtype, found.tokens) == ("cpu", "float32", 32)
    assert found.dense > 0 and found.pruned > 0 and found.sparse is None
    assert "compute capability 8.0" in found.why_not_sparse and "CPU" in found.why_not_sparse
    shapes = load_model(config_from_overrides([]).model).layout.shapes()[0]
    assert {linear.name: linear.shape for linear in found.linears} == shapes
    assert all(linear.dense_seconds > 0 for linear in found.linears)
    assert all(linear.sparse_seconds is None for linear in found.linears)


@pytest.mark.parametrize(("capability", "words"), [((7, 5), "Old has 7.5"), ((9, 0), "")])
def test_a_device_is_asked_what_it_can(monkeypatch, capability, words):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old")
    found = why_not_sparse(torch.device("cuda", 0))
    assert words in found if words else found == ""


def test_noise_takes_the_place_of_zeros_only(pruned, monkeypatch):
    monkeypatch.setattr(speed, "_LEAST_SECONDS", 0.0)
    seen = []
    fill = speed._Bench._fill

    def watched(bench):
        weight = bench.layout.linears(1)["mlp.up_proj"].module.weight
        before = weight.clone()
        fill(bench)
        seen.append((before, weight.clone()))

    monkeypatch.setattr(speed._Bench, "_fill", watched)
    measure_speed(pruned, CPU, seq_len=8, batch=1)
    ((before, after),) = seen
    kept = before != 0
    assert torch.equal(after[kept], before[kept]) and (after != 0).all()
    assert 0.5 < (after[~kept].std() / before.std()).item() < 2


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or bool(why_not_sparse(torch.device("cuda"))),
    reason="no CUDA device with 2:4 kernels",
)
def test_sparse_kernels_are_used_and_right(pruned):
    found = measure_speed(pruned, torch.device("cuda"), seq_len=128)
    assert found.sparse is not None and found.why_not_sparse == ""
    weight = torch.randn(256, 256, dtype=torch.bfloat16, device="cuda")
    weight.view(-1, 4)[:, :2] = 0
    inputs = torch.randn(64, 256, dtype=torch.bfloat16, device="cuda")
    sparse = speed._sparse_form(weight)
    assert sparse is not None
    exact = torch.nn.functional.linear(inputs, weight)
    torch.testing.assert_close(
        torch.nn.functional.linear(inputs, sparse), exact, rtol=0.05, atol=0.3
    )
