"""Sparsity by block: the same everywhere, or as listed."""

import pytest

from fedprune.config import block_sparsity, compose_config
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
