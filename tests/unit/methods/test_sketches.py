"""Sketches against the matrices they stand for, and ranks against the budget."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import ConfigError
from fedprune.methods.sketches import (
    InputShape,
    eigen_sketch,
    nystrom_sketch,
    ranks_for_budget,
    rebuild,
    sketch_bits,
)

LLAMA_7B = [
    InputShape(4096, 3 * 4096**2, 4096),
    InputShape(4096, 4096**2, 4096),
    InputShape(4096, 2 * 4096 * 11008, 4096),
    InputShape(11008, 4096 * 11008, 4096),
]


def moments(width, tokens, seed=0, decay=0.7):
    """Second moments whose eigenvalues fall like those of a language model's inputs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, width, generator=generator)
    mixing = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    inputs = inputs * torch.arange(1, width + 1) ** -decay @ mixing
    return inputs.T @ inputs


def distance(one, other):
    return float((one - other).norm() / other.norm())


def is_psd(matrix):
    values = torch.linalg.eigvalsh(matrix.double())
    return values[0] > -1e-6 * values[-1]


@pytest.mark.parametrize("width", [1, 7, 40])
def test_all_eigenvectors_are_the_matrix(width):
    exact = moments(width, 100)
    assert distance(rebuild(eigen_sketch(exact, width)), exact) < 1e-5


@pytest.mark.parametrize("make", [eigen_sketch, lambda m, rank: nystrom_sketch(m, rank, 3)])
@pytest.mark.parametrize("rank", [0, 1, 6, 48])
def test_diagonal_is_exact_and_the_rest_semidefinite(make, rank):
    exact = moments(48, 200)
    exact[5, :] = exact[:, 5] = 0  # an input that is never used
    sketch = make(exact, rank)
    assert sketch.vectors.shape == (48, rank)
    rebuilt = rebuild(sketch, 3)
    assert torch.equal(rebuilt.diagonal(), exact.diagonal())
    assert torch.equal(rebuilt, rebuilt.T)
    assert is_psd(rebuilt)


def test_without_columns_the_diagonal_is_left():
    exact = moments(12, 50)
    assert torch.equal(rebuild(eigen_sketch(exact, 0)), exact.diagonal().diag())
    assert torch.equal(rebuild(nystrom_sketch(exact, 0, 1), 1), exact.diagonal().diag())


def test_no_factor_of_that_rank_is_closer():
    exact = moments(60, 300).double()
    values = torch.linalg.eigvalsh(exact)
    factor = torch.from_numpy(eigen_sketch(exact.float(), 8).vectors).double()
    left = exact - factor @ factor.T
    assert float(left.norm()) == pytest.approx(float(values[:-8].norm()), rel=1e-4)


@pytest.mark.parametrize("decay", [0.3, 1.0])
def test_iteration_on_wide_matrices_is_nearly_as_close(decay):
    exact = moments(700, 900, decay=decay)
    values = torch.linalg.eigvalsh(exact.double())
    sketch = eigen_sketch(exact, 24)
    factor = torch.from_numpy(sketch.vectors)
    assert float((exact - factor @ factor.T).norm()) < 1.01 * float(values[:-24].norm())
    assert is_psd(rebuild(sketch))


def test_fewer_tokens_than_columns_lose_nothing():
    exact = moments(64, 10)
    sketch = eigen_sketch(exact, 20)
    assert distance(rebuild(sketch), exact) < 1e-5
    assert np.abs(sketch.vectors[:, 10:]).max() < 1e-3 * np.abs(sketch.vectors).max()


def test_nystrom_is_exact_where_the_rank_suffices():
    exact = moments(64, 10)
    assert distance(rebuild(nystrom_sketch(exact, 14, 5), 5), exact) < 1e-4


def test_nystrom_bears_the_rounding_of_the_wire():
    exact = moments(64, 10)
    sketch = nystrom_sketch(exact, 14, 5)
    scale = np.abs(sketch.vectors).max(axis=0)
    coarse = (sketch.vectors / scale).astype(np.float16).astype(np.float32) * scale
    assert distance(rebuild(replace(sketch, vectors=coarse), 5), exact) < 5e-3


def test_nystrom_is_nearer_than_the_diagonal_and_needs_its_seed():
    exact = moments(80, 400)
    sketch = nystrom_sketch(exact, 20, 1)
    near, far = distance(rebuild(sketch, 1), exact), distance(rebuild(sketch, 2), exact)
    assert near < 0.5 * distance(exact.diagonal().diag(), exact)
    assert near < 0.8 * far


def test_the_same_moments_give_the_same_sketch():
    exact = moments(600, 200)
    for make in (lambda: eigen_sketch(exact, 20), lambda: nystrom_sketch(exact, 20, 4)):
        one, other = make(), make()
        assert np.array_equal(one.vectors, other.vectors)
        assert np.array_equal(one.diagonal, other.diagonal)
    other = nystrom_sketch(exact, 20, 5)
    assert not np.array_equal(nystrom_sketch(exact, 20, 4).vectors, other.vectors)


def test_a_factor_beyond_its_diagonal_is_shortened():
    honest = eigen_sketch(moments(30, 90), 6)
    lying = replace(honest, vectors=honest.vectors * np.float32(100))
    rebuilt = rebuild(lying)
    assert torch.equal(rebuilt.diagonal(), torch.from_numpy(honest.diagonal))
    assert is_psd(rebuilt)


def test_bits_of_a_sketch():
    assert sketch_bits(4096, 256) == 256 * (16 * 4096 + 32) + 32 * 4096
    assert sketch_bits(10, 0) == 320


shapes = st.lists(
    st.builds(InputShape, st.integers(2, 300), st.integers(2000, 50_000), st.integers(1, 400)),
    min_size=1,
    max_size=5,
)


@settings(deadline=None)
@given(shapes, st.floats(5, 60))
def test_budget_is_kept_and_used(inputs, bits):
    ranks = ranks_for_budget(inputs, bits)
    assert ranks == ranks_for_budget(inputs, bits)
    spent = sum(sketch_bits(each.width, rank) for each, rank in zip(inputs, ranks, strict=True))
    left = bits * sum(each.weights for each in inputs) - spent
    assert left >= 0
    for each, rank in zip(inputs, ranks, strict=True):
        full = min(each.tokens, each.width // 2)
        assert 0 <= rank <= full
        assert rank == full or left < sketch_bits(each.width, 1) - sketch_bits(each.width, 0)


def test_ranks_follow_the_outputs_served():
    ranks = ranks_for_budget(LLAMA_7B, 0.5)
    shares = [rank * each.width / each.weights for rank, each in zip(ranks, LLAMA_7B, strict=True)]
    assert max(shares) < 1.03 * min(shares)


def test_a_model_of_seven_billion_in_less_than_a_mask():
    ranks = ranks_for_budget(LLAMA_7B, 0.85)
    spent = sum(sketch_bits(each.width, rank) for each, rank in zip(LLAMA_7B, ranks, strict=True))
    assert 0.849 < spent / sum(each.weights for each in LLAMA_7B) <= 0.85
    assert min(ranks) > 100


def test_tokens_leave_the_budget_to_other_inputs():
    few = [each._replace(tokens=64) if place == 2 else each for place, each in enumerate(LLAMA_7B)]
    ranks, capped = ranks_for_budget(LLAMA_7B, 0.5), ranks_for_budget(few, 0.5)
    assert capped[2] == 64 < ranks[2]
    assert all(capped[place] > ranks[place] for place in (0, 1, 3))


def test_a_budget_below_the_diagonals_says_what_works():
    with pytest.raises(ConfigError, match=r"`strategy\.bits_per_weight` must be at least") as error:
        ranks_for_budget(LLAMA_7B, 0.001)
    least = float(str(error.value).split("at least ")[1].split()[0])
    assert 0.003 < least < 0.005
    assert ranks_for_budget(LLAMA_7B, least) == [0, 0, 0, 0]
