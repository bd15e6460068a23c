"""Second moments of sums and of public text, against plain loops over inputs."""

import math

import pytest
import torch

from fedprune.config import config_from_overrides
from fedprune.methods.moments import completed
from fedprune.methods.public_text import PublicMoments, public_samples
from fedprune.pruning.statistics import ColumnStatistics, MomentStatistics
from tests.support.jobs import QUIET, whole_model

WIDTH = 6


def inputs(seed: int, tokens: int = 40, scale: float = 1.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, WIDTH, generator=draw) @ torch.randn(WIDTH, WIDTH, generator=draw)
    return mixed * scale


def known(private: torch.Tensor, public: torch.Tensor):
    sums = ColumnStatistics(private.square().sum(0), len(private))
    return sums, MomentStatistics(public.T @ public, len(public))


def test_scales_are_the_clients_and_correlations_the_public_text_s():
    private, public = inputs(1, scale=3.0), inputs(2, 70)
    found = completed(*known(private, public))
    for i in range(WIDTH):
        for j in range(WIDTH):
            shared = sum(float(x[i]) * float(x[j]) for x in public)
            alone = math.sqrt(
                sum(float(x[i]) ** 2 for x in public) * sum(float(x[j]) ** 2 for x in public)
            )
            size = math.sqrt(
                sum(float(x[i]) ** 2 for x in private) * sum(float(x[j]) ** 2 for x in private)
            )
            assert float(found.moments[i, j]) == pytest.approx(shared / alone * size, rel=1e-4)
    assert torch.equal(found.moments.diagonal(), private.square().sum(0))
    assert found.tokens == len(private)
    assert float(torch.linalg.eigvalsh(found.moments.double()).min()) > -1e-3


def test_a_column_that_public_text_leaves_silent_stands_alone():
    private, public = inputs(4), inputs(5)
    public[:, 2] = 0.0
    found = completed(*known(private, public)).moments
    expected = torch.zeros(WIDTH)
    expected[2] = private[:, 2].square().sum()
    assert torch.equal(found[2], expected) and torch.equal(found[:, 2], expected)


def test_a_column_that_the_clients_leave_silent_is_zero():
    private, public = inputs(6), inputs(7)
    private[:, 0] = 0.0
    found = completed(*known(private, public)).moments
    assert not found[0].any() and not found[:, 0].any() and torch.isfinite(found).all()


def test_public_moments_are_those_of_whole_forward_passes():
    overrides = [*QUIET, "pruner.seq_len=24"]
    config, loaded = config_from_overrides(overrides), whole_model(*overrides)
    sums: dict[tuple[int, str], torch.Tensor] = {}

    def hook(key):
        def add(module, args, output):
            flat = args[0].detach().reshape(-1, args[0].shape[-1]).double()
            sums[key] = sums.get(key, 0) + flat.T @ flat

        return add

    samples = public_samples(config, loaded)
    handles = [
        module.register_forward_hook(hook((block, name)))
        for block, layer in enumerate(loaded.layout.blocks)
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.no_grad():
        for sample in samples:
            loaded.model(input_ids=sample[None], use_cache=False)
    for handle in handles:
        handle.remove()
    moments = PublicMoments(config, loaded)
    found = {
        (block, name): one
        for block in reversed(range(len(loaded.layout.blocks)))  # in any order, as often as wanted
        for name, one in moments(block).items()
    }
    assert set(found) == set(sums)
    for key, one in found.items():
        assert one.tokens == sum(map(len, samples))
        gap = (one.moments.double() - sums[key]).norm() / sums[key].norm()
        assert gap < 1e-5, key
