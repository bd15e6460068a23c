"""Compiled masks equal the tensor path bit for bit, whatever the scores."""

from concurrent.futures import ThreadPoolExecutor
from types import FunctionType

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.config.pattern import Pattern
from fedprune.errors import ModelError
from fedprune.jit import jit
from fedprune.jit_cache import HomeCacheLocator
from fedprune.pruning import selection_kernels
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.selection import prune_lowest
from fedprune.pruning.selection_kernels import prune_products
from fedprune.wire.masks import BitMask

FREE = Pattern()
SPECS = [
    MaskSpec(sparsity, FREE, group)
    for sparsity in (0.0, 0.3, 0.5, 0.9, 0.999)
    for group in ("layer", "row", "column")
] + [MaskSpec(0.5, Pattern(n, m), "row") for n, m in ((2, 4), (1, 4), (4, 8), (3, 5), (1, 2))]
MAKERS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "few values": lambda rng, shape: rng.integers(-2, 3, shape),
    "one value": lambda _, shape: np.full(shape, -0.25),
    "zeros": lambda _, shape: np.zeros(shape),
    "signed zeros": lambda rng, shape: rng.choice([0.0, -0.0, 1.0], shape),
    "denormal": lambda rng, shape: rng.integers(-9, 9, shape) * 1e-45,
    "all magnitudes": lambda rng, shape: 10.0 ** rng.uniform(-44, 18, shape),
    "one outlier": lambda rng, shape: np.where(rng.random(shape) < 0.02, 1e30, 1e-30),
}


def unscaled(scores, spec):
    """Return the mask of the lowest scores, whatever their signs."""
    return prune_products(scores, torch.ones(scores.shape[1]), spec)


def both(weight, norms, spec):
    """Return the compiled mask and that of the tensor path."""
    scores = weight.to(torch.float32).abs() * norms
    expected = prune_lowest(scores, spec)
    return prune_products(weight, norms, spec), BitMask.from_bool(expected.numpy())


@given(
    st.sampled_from(SPECS),
    st.sampled_from(sorted(MAKERS)),
    st.tuples(st.integers(1, 20), st.integers(1, 70)),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=200)
def test_equals_the_tensor_path(spec, maker, shape, dtype, seed):
    rng = np.random.default_rng(seed)
    shape = (shape[0], shape[1] * (spec.pattern.m or 1))
    values = torch.from_numpy(np.asarray(MAKERS[maker](rng, shape), dtype=np.float64))
    weight = torch.nan_to_num(values.to(dtype), posinf=0.0, neginf=0.0)
    norms = torch.from_numpy(rng.lognormal(0, 2, shape[1]).astype(np.float32))
    norms[torch.from_numpy(rng.random(shape[1]) < 0.1)] = 0.0
    found, expected = both(weight, norms, spec)
    assert found == expected


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_blocks_and_threads_do_not_show(monkeypatch, spec, threads):
    monkeypatch.setattr(selection_kernels, "_BLOCK", 1)
    monkeypatch.setattr(selection_kernels, "_LAYER_BLOCK", 1)  # the least: eight rows
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rng = np.random.default_rng(3)
    for columns in (40, 60, 120):
        columns *= spec.pattern.m or 1
        weight = torch.from_numpy(rng.integers(-6, 7, (43, columns)).astype(np.float32))
        found, expected = both(weight, torch.ones(columns), spec)
        assert found == expected


def test_scores_are_rounded_once_to_float32():
    steps = torch.arange(4000, 0, -1, dtype=torch.float32)
    weight = (1.9 + steps * 2.0**-23).reshape(1, -1)  # falling by one unit in the last place
    norms = torch.full((4000,), 1.1)  # products have half the digits: ties, lower index first
    scores = weight * norms
    assert scores.unique().numel() < scores.numel()
    for sparsity in (0.1234, 0.5, 0.777):
        found, expected = both(weight, norms, MaskSpec(sparsity, FREE, "row"))
        assert found == expected


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (1, 4096), (3, 4099), (300, 257)])
def test_shapes(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for spec in SPECS[:15]:
        found, expected = both(weight, torch.ones(shape[1]), spec)
        assert found == expected


@pytest.mark.parametrize(("n", "m"), [(1, 256), (255, 256), (1, 257), (300, 600)])
def test_large_groups(n, m):
    weight = torch.randn((2, 2 * m), generator=torch.Generator().manual_seed(m)).bfloat16()
    found, expected = both(weight, torch.ones(2 * m), MaskSpec(0.5, Pattern(n, m), "row"))
    assert found == expected


def test_transposed_weights_and_parameters():
    weight = torch.nn.Parameter(torch.randn(24, 16))
    for spec in SPECS[:16]:
        found = unscaled(weight.t(), spec)
        assert found == unscaled(weight.t().detach().clone(), spec)


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[1], SPECS[2], SPECS[-1]], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_scores_that_are_no_numbers(spec, bad):
    weight = torch.ones(12, 8)
    weight[11, 3] = bad
    with pytest.raises(ModelError, match="NaN or infinite"):
        prune_products(weight, torch.full((8,), 10.0), spec)


def test_infinite_norm_times_zero():
    norms = torch.ones(8)
    norms[2] = float("inf")
    with pytest.raises(ModelError, match="NaN or infinite"):
        prune_products(torch.zeros(4, 8), norms, MaskSpec(0.5, FREE, "row"))


def test_pattern_that_does_not_divide():
    with pytest.raises(ModelError, match="divisible by 4, got 6"):
        unscaled(torch.ones(2, 6), MaskSpec(0.5, Pattern(2, 4), "row"))


def doubled(number: int) -> int:
    """Return twice the number."""
    return 2 * number


def test_compiled_code_is_kept_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDPRUNE_HOME", str(tmp_path))
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    before = numba.config.CACHE_LOCATOR_CLASSES
    assert jit(doubled)(4) == 8
    assert list((tmp_path / "numba").rglob("*.nbc"))
    assert numba.config.CACHE_LOCATOR_CLASSES == before


def test_compiled_code_depends_on_the_compiled_functions_it_calls(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDPRUNE_HOME", str(tmp_path))
    alone = HomeCacheLocator(doubled, __file__).get_cache_path()
    calls = {"__name__": __name__, "histogram": selection_kernels.histogram.compiled()}
    caller = FunctionType(compile("histogram", __file__, "eval"), calls)
    assert HomeCacheLocator(caller, __file__).get_cache_path() != alone


def test_threads_may_be_the_first_to_call_at_once():
    compiled = jit(doubled)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(compiled, range(40))) == list(range(0, 80, 2))
    assert compiled.compiled() is compiled.compiled()


def test_compiles_without_a_folder_to_write_to(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDPRUNE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    assert jit(doubled)(5) == 10
