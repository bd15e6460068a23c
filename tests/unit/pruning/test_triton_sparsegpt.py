"""The GPU's column loop does what the compiled one does, bit for bit."""

import pytest
import torch

from fedprune.pruning.elimination import eliminate
from tests.support.pruning_paths import DEVICE

triton_sparsegpt = pytest.importorskip("fedprune.pruning.triton_sparsegpt", exc_type=ImportError)


@pytest.mark.parametrize(
    ("rows", "width", "pattern"),
    [(37, 20, (1, 1)), (130, 16, (1, 1)), (37, 20, (2, 4)), (9, 15, (3, 5)), (5, 1, (1, 1))],
)
@pytest.mark.parametrize("values", ["normal", "few"])
def test_equals_the_compiled_loop(rows, width, pattern, values):
    rng = torch.Generator().manual_seed(rows + width)
    upper = torch.rand(width, width, generator=rng).triu() + torch.eye(width)
    weights = torch.randn(rows, width + 11, generator=rng)
    if values == "few":  # ties, zeros of both signs
        upper, weights = torch.eye(width), weights.round()
    keep = torch.rand(weights.shape, generator=rng) < 0.5
    expected = [weights.clone(), torch.empty(rows, width), keep.clone()]
    eliminate(*(tensor.numpy() for tensor in expected), upper.numpy(), 7, pattern)
    found = [weights.to(DEVICE), torch.empty(rows, width, device=DEVICE), keep.to(DEVICE)]
    triton_sparsegpt.eliminate(*found, upper.to(DEVICE), 7, pattern)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.cpu(), theirs)
