"""GPU kernels give the masks of the tensor path and of the compiled loops, bit for bit."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.config.pattern import Pattern
from fedprune.errors import ModelError
from fedprune.pruning import kernels, select
from fedprune.pruning.spec import MaskSpec
from fedprune.wire.masks import BitMask
from tests.support.pruning_paths import DEVICE

triton_masks = pytest.importorskip("fedprune.pruning.triton_masks", exc_type=ImportError)

FREE = Pattern()
SPECS = [
    MaskSpec(sparsity, FREE, group)
    for sparsity in (0.0, 0.37, 0.5, 0.99)
    for group in ("layer", "row", "column")
] + [MaskSpec(0.5, Pattern(n, m), "row") for n, m in ((2, 4), (3, 5), (1, 2), (4, 8))]
MAKERS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "few values": lambda rng, shape: rng.integers(-2, 3, shape),
    "one value": lambda _, shape: np.full(shape, -0.25),
    "signed zeros": lambda rng, shape: rng.choice([0.0, -0.0, 1.0], shape),
    "denormal": lambda rng, shape: rng.integers(-9, 9, shape) * 1e-45,
    "all magnitudes": lambda rng, shape: 10.0 ** rng.uniform(-44, 18, shape),
    "one outlier": lambda rng, shape: np.where(rng.random(shape) < 0.02, 1e30, 1e-30),
}


def on_gpu(weight, norms, spec):
    """Return the mask that the kernels make."""
    return triton_masks.wanda_mask(weight.to(DEVICE), norms.to(DEVICE), spec)


def by_tensors(weight, norms, spec):
    """Return the mask by its definition."""
    scores = weight.to(torch.float32).abs() * norms
    return BitMask.from_bool(select.prune_lowest(scores, spec).numpy())


@given(
    st.sampled_from(SPECS),
    st.sampled_from(sorted(MAKERS)),
    st.tuples(st.integers(1, 5), st.integers(1, 40)),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=25)
def test_all_paths_give_the_same_mask(spec, maker, shape, dtype, seed):
    rng = np.random.default_rng(seed)
    shape = (shape[0], shape[1] * (spec.pattern.m or 1))
    values = torch.from_numpy(np.asarray(MAKERS[maker](rng, shape), dtype=np.float64))
    weight = torch.nan_to_num(values.to(dtype), posinf=0.0, neginf=0.0)
    norms = torch.from_numpy(rng.lognormal(0, 2, shape[1]).astype(np.float32))
    norms[torch.from_numpy(rng.random(shape[1]) < 0.1)] = 0.0
    expected = by_tensors(weight, norms, spec)
    assert on_gpu(weight, norms, spec) == expected
    assert kernels.wanda_mask(weight, norms, spec) == expected


@pytest.mark.parametrize("spec", [SPECS[3], SPECS[4], SPECS[-2]], ids=str)
def test_scores_are_rounded_once_to_float32(spec):
    steps = torch.arange(200, 0, -1, dtype=torch.float32)
    weight = (1.9 + steps * 2.0**-23).reshape(1, -1)  # falling by one unit in the last place
    norms = torch.full((200,), 1.1)  # products have half the digits: ties, lower index first
    assert (weight * norms).unique().numel() < 200
    assert on_gpu(weight, norms, spec) == by_tensors(weight, norms, spec)


@pytest.mark.parametrize("values", [3, 1000])
def test_a_layer_of_many_programs(monkeypatch, values):
    monkeypatch.setattr(triton_masks, "_LAYER_TILE", 64)
    monkeypatch.setattr(triton_masks, "_CHUNKS", 3)
    rng = np.random.default_rng(values)
    weight = torch.from_numpy(rng.integers(0, values, (19, 23)).astype(np.float32))
    for sparsity in (0.2, 0.5, 0.9):
        spec = MaskSpec(sparsity, FREE, "layer")
        assert on_gpu(weight, torch.ones(23), spec) == by_tensors(weight, torch.ones(23), spec)


@pytest.mark.parametrize(("rows", "columns", "count"), [(1, 37, 20), (4, 9, 9), (3, 8, 0)])
def test_counts_of_groups(rows, columns, count):
    scores = torch.rand(rows, columns, generator=torch.Generator().manual_seed(1))
    found = triton_masks.prune_count(scores.to(DEVICE), count)
    assert torch.equal(found.cpu(), select.prune_count(scores, count))


@pytest.mark.filterwarnings("ignore:overflow encountered in multiply")
@pytest.mark.parametrize("spec", [SPECS[3], SPECS[4], SPECS[5], SPECS[-1]], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), -float("inf"), 1e38])
def test_scores_that_are_no_numbers(spec, bad):
    weight = torch.ones(3, 16)
    weight[2, 3] = bad
    with pytest.raises(ModelError, match="NaN or infinite"):
        on_gpu(weight, torch.full((16,), 10.0), spec)


def test_pattern_that_does_not_divide():
    with pytest.raises(ModelError, match="divisible by 4, got 6"):
        on_gpu(torch.ones(2, 6), torch.ones(6), MaskSpec(0.5, Pattern(2, 4), "row"))


@pytest.mark.slow
def test_kernels_compile_to_plain_float32_operations():
    """Compiling needs no GPU; the interpreter is not as strict as the compiler."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.compile_kernels"],
        env={"TRITON_INTERPRET": "0", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kinds = set(done.stdout.split())
    assert {"mul.rn.f32", "div.rn.f32", "sub.rn.f32"} <= kinds
    assert not {kind for kind in kinds if "ftz" in kind or "fma" in kind}
