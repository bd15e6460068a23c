"""Sparsity by block: the same everywhere, or as listed."""

import pytest

from fedprune.config import (
    block_sparsity,
    compose_config,
    from_yaml,
    resolved_allocation,
    to_yaml,
)
from fedprune.errors import ConfigError


def test_uniform_is_the_sparsity_of_every_block():
    config = compose_config({"sparsity": 0.6})
    assert [block_sparsity(config, block, 3) for block in range(3)] == [0.6] * 3


def test_listed_sparsities_are_those_of_the_blocks():
    config = compose_config({"overrides": "allocation=per_block allocation.blocks=0.4,0.5,0.6"})
    assert [block_sparsity(config, block, 3) for block in range(3)] == [0.4, 0.5, 0.6]


def test_a_list_for_another_model_is_refused():
    config = compose_config({"overrides": "allocation=per_block allocation.blocks=0.4,0.6"})
    with pytest.raises(ConfigError, match=r"`allocation.blocks` must list 3 sparsities.*got 2"):
        block_sparsity(config, 0, 3)


def owl(sparsity=0.5):
    return compose_config({"sparsity": sparsity, "overrides": "allocation=owl"})


def test_an_allocation_by_statistics_must_be_resolved_first():
    with pytest.raises(ConfigError, match=r"`allocation.name`.*'owl'.*survey"):
        block_sparsity(owl(), 0, 3)


def test_a_resolved_allocation_lists_six_decimals_and_travels():
    sparsities = [0.4 + 1e-7, 0.5, 0.6 + 1 / 3e4]
    config = resolved_allocation(owl(), sparsities)
    assert [block_sparsity(config, block, 3) for block in range(3)] == [0.4, 0.5, 0.600033]
    assert config.allocation.name == "per_block"
    assert (config.allocation.threshold, config.sparsity) == (5.0, 0.5)
    assert from_yaml(to_yaml(config)) == config


def test_a_thousand_blocks_fit():
    config = resolved_allocation(owl(), [0.499999, 0.500001] * 512)
    assert block_sparsity(from_yaml(to_yaml(config)), 1023, 1024) == 0.500001


def test_zero_is_a_sparsity_whatever_its_sign():
    config = resolved_allocation(owl(0.1), [-1e-9, 0.0, 0.3])
    assert [block_sparsity(config, block, 3) for block in range(3)] == [0.0, 0.0, 0.3]


@pytest.mark.parametrize(
    ("sparsities", "words"),
    [
        ([0.5, 0.6], r"mean of `allocation.blocks`.*0.55"),
        ([0.0, 0.9999999], "below 1"),
        ([-0.1, 1.1], "at least 0"),
        ([], "must list a sparsity"),
        ([float("nan")], "at least 0"),
        ([0.5] * 1025, "allocation.blocks"),
    ],
)
def test_sparsities_that_no_configuration_can_have(sparsities, words):
    with pytest.raises(ConfigError, match=words):
        resolved_allocation(owl(), sparsities)
