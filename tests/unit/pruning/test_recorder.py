"""What the recorder adds up: shared inputs, second moments, sums that do not depend on order."""

import numpy as np
import pytest
import torch

from fedprune.errors import ModelError
from fedprune.models.layout import LinearRef
from fedprune.pruning.blocks import BlockWalk, input_groups
from fedprune.pruning.recorder import StatisticsRecorder
from fedprune.pruning.statistics import MomentStatistics, get_kind, shared_inputs
from tests.support.architectures import tiny_model, token_samples


def watched(*modules: torch.nn.Linear, kind="columns") -> StatisticsRecorder:
    refs = {
        str(place): LinearRef(str(place), module, tuple(module.weight.shape))
        for place, module in enumerate(modules)
    }
    return StatisticsRecorder(refs, get_kind(kind))


def test_moments_are_sums_of_products_with_the_column_sums_on_their_diagonal():
    walk = BlockWalk(tiny_model(), token_samples(3, 16))
    columns, moments = walk.collect("columns"), walk.collect("moments")
    for name, found in moments.items():
        assert isinstance(found, MomentStatistics) and found.tokens == columns[name].tokens == 48
        assert torch.equal(found.moments, found.moments.T)
        expected = columns[name].sum_squares
        assert torch.allclose(found.columns.sum_squares, expected, rtol=1e-5)


def test_moments_of_samples_add_up_to_those_of_all():
    inputs = [torch.randn(1, 7, 5) for _ in range(4)]
    recording = get_kind("moments").start(5)
    for sample in inputs:
        recording.add(sample)
    flat = torch.cat(inputs).reshape(-1, 5).double()
    found = recording.close()
    assert found.tokens == 28
    assert torch.allclose(found.moments.double(), flat.T @ flat, rtol=1e-5, atol=1e-5)
    half = get_kind("moments").start(5)
    half.add(inputs[0].bfloat16())
    assert half.close().moments.dtype == torch.float32


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gpt_neox", "falcon"])
def test_linears_that_read_one_tensor_share_one_record(family):
    model = tiny_model(family)
    groups = input_groups(model)
    assert len(groups) == len(model.layout.blocks)
    for block, inputs in enumerate(groups):
        names = [name for linears in inputs for name in linears]
        assert sorted(names) == sorted(model.layout.linears(block))
    if family == "llama":
        attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        gated = ("mlp.gate_proj", "mlp.up_proj")
        assert groups[0] == (attention, ("self_attn.o_proj",), gated, ("mlp.down_proj",))
    found = BlockWalk(model, token_samples(2, 8)).collect("moments")
    assert tuple(names for names, _ in shared_inputs(found)) == groups[0]


def test_column_sums_do_not_depend_on_the_order_of_samples():
    model, samples = tiny_model(), token_samples(9, 16)
    first = BlockWalk(model, samples).collect()
    second = BlockWalk(model, samples[::-1]).collect()
    for name, found in first.items():
        assert found.exact == second[name].exact
        assert torch.equal(found.sum_squares, second[name].sum_squares)
        assert np.array_equal(found.exact.to_float32(), found.sum_squares.numpy())


def test_an_input_changed_in_between_is_another_input():
    first, second = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
    inputs = torch.ones(3, 4)
    with torch.no_grad(), watched(first, second) as recorder:
        first(inputs)
        inputs += 1
        second(inputs)
    found = recorder.statistics()
    assert found["0"] is not found["1"]
    assert found["0"].sum_squares.tolist() == [3.0] * 4
    assert found["1"].sum_squares.tolist() == [12.0] * 4


def test_sharing_for_one_sample_only_is_refused():
    first, second = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
    with torch.no_grad(), watched(first, second):
        shared = torch.ones(3, 4)
        first(shared)
        second(shared)
        with pytest.raises(ModelError, match="'1' shared the input of '0' for one sample"):
            second(torch.ones(3, 4))


def test_zeros_beside_a_shared_input_add_nothing():
    first, second = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
    with torch.no_grad(), watched(first, second) as recorder:
        shared = torch.ones(3, 4)
        first(shared)
        second(shared)
        second(torch.zeros(1, 4))
    found = recorder.statistics()
    assert found["0"] is found["1"]
    assert found["1"].tokens == 3 and found["1"].sum_squares.tolist() == [3.0] * 4


def test_a_linear_that_runs_twice_adds_both_inputs():
    linear = torch.nn.Linear(4, 2)
    with torch.no_grad(), watched(linear, kind="moments") as recorder:
        linear(torch.ones(3, 4))
        linear(2 * torch.ones(1, 4))
    found = recorder.statistics()["0"]
    assert found.tokens == 4 and torch.equal(found.moments, torch.full((4, 4), 7.0))


def test_wide_inputs_leave_their_sums_only():
    walk = BlockWalk(tiny_model(), token_samples(1, 8))
    found = walk.collect("moments", max_width=32)
    kinds = {name: isinstance(stats, MomentStatistics) for name, stats in found.items()}
    assert kinds.pop("mlp.down_proj") is False and all(kinds.values())
    assert torch.equal(
        found["mlp.down_proj"].sum_squares, walk.collect()["mlp.down_proj"].sum_squares
    )
