"""Kinds of statistics: what is sent, how it adds up, and those of other packages."""

import numpy as np
import pytest
import torch

from fedprune.errors import ConfigError, ModelError, WireError
from fedprune.methods.sums import StatisticPool
from fedprune.pruning import statistics
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.pruner import column_sums, input_norms
from fedprune.pruning.registry import get_pruner
from fedprune.pruning.statistics import KINDS, ColumnKind, ColumnSums, get_kind
from tests.support.architectures import tiny_model, token_samples


class AbsoluteInputs(ColumnKind):
    name = "absolute"

    def sums(self, inputs):
        return inputs.float().abs().reshape(-1, inputs.shape[-1]).sum(0)


class NeedsMissing:
    name, needs, updates = "needy", "missing", False

    def prune(self, weight, stats, spec): ...


@pytest.fixture
def installed(monkeypatch):
    """Act as if packages with these entry points were installed."""

    def install(**plugins):
        for module in ("fedprune.pruning.statistics", "fedprune.pruning.registry"):
            monkeypatch.setattr(f"{module}.plugin_names", lambda _: tuple(plugins))
            monkeypatch.setattr(f"{module}.load_plugin", lambda _, name: plugins[name])
        statistics._plugin.cache_clear()

    yield install
    statistics._plugin.cache_clear()


def recorded(kind, *samples):
    recording = kind.start(samples[0].shape[-1])
    for sample in samples:
        recording.add(sample)
    return recording.close()


def same(kind, first, second):
    """Return whether two statistics are the same."""
    arrays = kind.arrays(second)
    return first.tokens == second.tokens and all(
        np.array_equal(array, arrays[name]) for name, array in kind.arrays(first).items()
    )


def inputs(*shape, seed=0):
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", KINDS)
def test_arrays_are_read_back(name):
    kind = get_kind(name)
    found = recorded(kind, inputs(2, 5, 7))
    assert found.tokens == 10
    assert same(kind, kind.read(kind.arrays(found), 7, 10), found)


@pytest.mark.parametrize("name", KINDS)
def test_statistics_of_clients_add_up_to_those_of_all_texts(name):
    kind, samples = get_kind(name), [inputs(5, 7, seed=seed) for seed in range(4)]
    pool = StatisticPool(kind, 7)
    for sample in samples:
        found = recorded(kind, sample)
        pool.add(pool.read(kind.arrays(found), found.tokens))
    resumed = StatisticPool(kind, 7)
    resumed.restore(pool.state())
    together = recorded(kind, *samples)
    assert pool.result().tokens == together.tokens == 20
    assert same(kind, resumed.result(), pool.result())
    for name, array in kind.arrays(together).items():
        np.testing.assert_allclose(kind.arrays(pool.result())[name], array, rtol=1e-5, atol=1e-4)
        assert not kind.exact or np.array_equal(kind.arrays(pool.result())[name], array)


def test_exact_arrays_add_up_elementwise_as_integers():
    kind = get_kind("columns")
    clients = [recorded(kind, 1e6 * inputs(9, 6, seed=seed)) for seed in range(50)]
    summed = sum(kind.arrays(client)["digits"].astype(np.int64) for client in clients)
    expected = clients[0]
    for client in clients[1:]:
        expected = kind.add(expected, client)
    assert same(kind, kind.read({"digits": summed}, 6, expected.tokens), expected)


def test_sums_that_are_too_large_saturate():
    digits = np.full((4, 2), 0xFFFFFFFF, np.uint64) * np.uint64(3)
    found = get_kind("columns").read({"digits": digits}, 2, 1)
    assert found.sums.tolist() == [2.0**64] * 2


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("columns", {}),
        ("columns", {"other": np.zeros((4, 3), np.uint32)}),
        ("columns", {"digits": np.zeros((4, 3), np.uint32), "more": np.zeros(1)}),
        ("columns", {"digits": np.zeros((4, 2), np.uint32)}),
        ("columns", {"digits": np.zeros((4, 3), np.float32)}),
        ("columns", {"digits": np.full((4, 3), -1, np.int64)}),
        ("columns", {"digits": np.full((4, 3), 1 << 63, np.uint64)}),
        ("columns", {"digits": np.full((4, 3), 1 << 62, np.int64)}),
        ("moments", {}),
        ("moments", {"moments": np.zeros((3, 2), np.float32)}),
        ("moments", {"moments": np.zeros((3, 3), np.float64)}),
        ("moments", {"moments": np.full((3, 3), np.nan, np.float32)}),
    ],
)
def test_other_arrays_are_refused(name, arrays):
    with pytest.raises(WireError):
        get_kind(name).read(arrays, 3, 1)
    with pytest.raises(WireError):
        StatisticPool(get_kind(name), 3).read(arrays, 0)


def test_a_statistic_of_another_package(installed):
    installed(absolute=AbsoluteInputs)
    walk = BlockWalk(tiny_model(), token_samples(3, 16))
    found, squares = walk.collect("absolute"), walk.collect("columns")
    assert found.keys() == squares.keys()
    for name, sums in found.items():
        assert type(sums) is ColumnSums and sums.tokens == 48
        assert bool((sums.sums**2 <= 48 * squares[name].sums * (1 + 1e-5)).all())  # Cauchy, Schwarz
    assert found["self_attn.q_proj"] is found["self_attn.k_proj"]
    kind, sums = get_kind("absolute"), found["mlp.down_proj"]
    assert same(kind, kind.read(kind.arrays(sums), sums.sums.numel(), sums.tokens), sums)


def test_a_pruner_that_is_handed_another_statistic():
    weight, absolute = torch.ones(2, 3), ColumnSums(torch.ones(3), 1)
    assert column_sums("ours", weight, absolute) is absolute
    with pytest.raises(ModelError, match="'ours' needs sums of squared inputs"):
        input_norms("ours", weight, absolute)


@pytest.mark.parametrize("made", [AbsoluteInputs, lambda: 3, 3])
def test_a_plugin_that_is_no_statistic(installed, made):
    installed(relative=made)
    with pytest.raises(ConfigError, match="'relative' is no statistic of that name"):
        get_kind("relative")


def test_unknown_statistic(installed):
    installed(absolute=AbsoluteInputs)
    known = "only 'columns', 'values', 'moments', 'paired_moments', 'absolute'"
    with pytest.raises(ConfigError, match=known):
        get_kind("cubes")


def test_a_pruner_that_needs_what_nothing_records(installed):
    installed(needy=NeedsMissing)
    with pytest.raises(ConfigError, match="There is no statistic 'missing'"):
        get_pruner("needy")


def test_nothing_is_recorded_without_running_a_block():
    assert BlockWalk(tiny_model(), []).collect("nothing") == {}
