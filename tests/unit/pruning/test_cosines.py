"""Cosines as integers, token by token, over single blocks and over several in a row."""

import numpy as np
import pytest
import torch

from fedprune.errors import WireError
from fedprune.pruning.block_kinds import BlockSite
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.cosines import UNIT, Cosines, cosines
from tests.support.architectures import tiny_model, token_samples


class Spans(Cosines):
    together = True

    def spans(self, num_blocks):
        return 1, 2


def walked(kind, samples, family="llama"):
    walk, kept = BlockWalk(tiny_model(family), samples), {}
    return [walk.observe((), (kind,), kept).block["cosines"] for _ in walk.dense_blocks()]


def inputs_of(samples, family="llama"):
    walk, found = BlockWalk(tiny_model(family), samples), []
    while walk.blocks_left > 0:
        found.append([one.clone() for one in walk.hidden])
        walk.advance({})
    return [*found, list(walk.hidden)]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_sums_are_those_of_a_loop_over_tokens(family):
    samples = token_samples(3, 8)
    states = inputs_of(samples, family)
    for block, arrays in enumerate(walked(Spans(), samples, family)):
        for place, span in enumerate((1, 2)):
            total, tokens = 0, 0
            if block + 1 >= span:
                pairs = zip(states[block + 1 - span], states[block + 1], strict=True)
                for before, after in pairs:
                    for one, other in zip(before[0].double(), after[0].double(), strict=True):
                        total += round(float(one @ other / (one.norm() * other.norm())) * UNIT)
                        tokens += 1
            assert arrays["tokens"][place] == tokens
            assert abs(int(arrays["sums"][place]) - total) <= tokens  # the last bit of a cosine


def test_sums_do_not_depend_on_how_samples_are_spread():
    samples, kind = token_samples(4, 8), Cosines()
    whole = walked(kind, samples)
    parts = zip(walked(kind, samples[:1]), walked(kind, samples[1:]), strict=True)
    for together, (first, second) in zip(whole, parts, strict=True):
        added = kind.add(first, second)
        assert all(np.array_equal(together[name], added[name]) for name in together)


def test_what_has_no_direction_and_what_is_no_number():
    zero = torch.zeros(1, 4)
    assert cosines(zero, torch.ones(1, 4)).tolist() == [0]
    assert cosines(torch.ones(1, 4), -3 * torch.ones(1, 4)).tolist() == [-UNIT]
    with pytest.raises(WireError, match="not finite"):
        cosines(torch.full((1, 4), torch.nan), torch.ones(1, 4))


@pytest.mark.parametrize(
    ("sums", "tokens"), [([9 * UNIT], [8]), ([0], [7]), ([0], [-1]), ([0], [1 << 31])]
)
def test_sums_that_no_texts_have_are_refused(sums, tokens):
    site = BlockSite.of(tiny_model(), 0)
    with pytest.raises(WireError, match="'cosines' of"):
        Cosines().check({"sums": np.array(sums), "tokens": np.array(tokens)}, site, 8)
