"""Sparsity by block, the same everywhere or as listed, and by round: formulas and exact ends."""

import pytest

from fedprune.config import (
    block_sparsity,
    compose_config,
    for_round,
    from_yaml,
    linear_sparsities,
    resolved_allocation,
    resolved_linears,
    round_sparsity,
    to_yaml,
)
from fedprune.errors import ConfigError
from fedprune.pruning.groups import block_spec, check_allocation


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


def config(ramp, rounds, sparsity=0.7, more=""):
    return compose_config(
        {
            "sparsity": sparsity,
            "overrides": f"strategy=fedspallm strategy.rounds={rounds} strategy.ramp={ramp} {more}",
        }
    )


@pytest.mark.parametrize(
    ("ramp", "wanted"),
    [
        ("none", [0.7, 0.7, 0.7, 0.7]),
        ("linear", [0.175, 0.35, 0.525, 0.7]),
        ("cubic", [0.4046875, 0.6125, 0.6890625, 0.7]),  # 0.7 * 37/64, 7/8, 63/64
    ],
)
def test_sparsities_follow_the_formulas(ramp, wanted):
    found = [round_sparsity(config(ramp, 4), number) for number in (1, 2, 3, 4)]
    assert found == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("ramp", ["none", "linear", "cubic"])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.29, 0.7, 0.123456789, 0.99999999])
@pytest.mark.parametrize("rounds", [1, 3, 7, 10])
def test_the_last_round_is_the_configuration_itself(ramp, sparsity, rounds):
    whole = config(ramp, rounds, sparsity)
    assert round_sparsity(whole, rounds) == sparsity
    assert for_round(whole, rounds) == whole


def test_steps_are_decimal_numbers_that_print_short():
    # 0.6 * 2 / 3 is 0.39999999999999997 in binary, of which floor would lose a weight.
    assert round_sparsity(config("linear", 3, 0.6), 2) == 0.4


def test_a_round_changes_nothing_but_sparsities_and_is_a_configuration_that_holds():
    blocks = "allocation=per_block allocation.blocks=0.6,0.7,0.8"
    whole = config("linear", 2, more=blocks)
    first = for_round(whole, 1)
    assert first.sparsity == 0.35
    assert [float(s) for s in first.allocation.blocks.split(",")] == [0.3, 0.35, 0.4]
    assert (first.strategy, first.pruner) == (whole.strategy, whole.pruner)
    assert from_yaml(to_yaml(first)) == first
    uniform = config("linear", 2)
    assert for_round(uniform, 1).allocation == uniform.allocation


@pytest.mark.parametrize("number", [0, 4, -1])
def test_rounds_that_do_not_exist(number):
    for function in (round_sparsity, for_round):
        with pytest.raises(ValueError, match=f"from 1 to 3, got {number}"):
            function(config("cubic", 3), number)


def test_linears_have_sparsities_of_their_own_which_travel():
    config = compose_config({"sparsity": 0.5, "overrides": "allocation=sensitivity"})
    with pytest.raises(ConfigError, match=r"`allocation.name`.*'sensitivity'.*survey"):
        block_sparsity(config, 0, 2)
    config = resolved_linears(config, [{"a.q": 0.4, "b.*.up": 0.123456789}, {"a.q": 0.6}])
    config = from_yaml(to_yaml(config))
    assert linear_sparsities(config, 0, 2) == {"a.q": 0.4, "b.*.up": 0.123457}
    assert linear_sparsities(config, 1, 2) == {"a.q": 0.6}
    assert block_sparsity(config, 1, 2) == 0.5
    with pytest.raises(ConfigError, match=r"list 3 sparsities of 'a.q'.*got 2"):
        linear_sparsities(config, 0, 3)
    spec = block_spec(config, 0, 2)
    assert [spec.of(name).sparsity for name in ("a.q", "b.7.up", "c")] == [0.4, 0.123457, 0.5]


def test_listed_linears_grow_with_the_rounds():
    config = compose_config(
        {
            "sparsity": 0.6,
            "overrides": "strategy=fedspallm strategy.rounds=2 strategy.ramp=linear "
            "allocation=per_linear \"allocation.linears='a=0.4,-;b=0.8,0.6'\"",
        }
    )
    assert [linear_sparsities(for_round(config, 1), block, 2) for block in (0, 1)] == [
        {"a": 0.2, "b": 0.4},
        {"b": 0.3},
    ]
    assert for_round(config, 2) == config


@pytest.mark.parametrize(
    ("linears", "words"),
    [
        ("a=0.5;a=0.6", "each once"),
        ("a", "with its sparsity in every block"),
        ("a=1.0", "with its sparsity"),
        ("a=0.5,;b=0.1", "with its sparsity"),
        ("=0.5", "with its sparsity"),
    ],
)
def test_lists_of_linears_that_are_none(linears, words):
    with pytest.raises(ConfigError, match=words):
        compose_config({"overrides": f"allocation=per_linear \"allocation.linears='{linears}'\""})


@pytest.mark.parametrize(
    ("linears", "words"),
    [
        ("b=0.5", "names 'b', which no block of the model has. Its linears are a, c"),
        ("a=0.9", r"mean of `allocation.linears`.*0.5, got 0.7"),
    ],
)
def test_lists_of_another_models_linears_are_refused(linears, words):
    config = compose_config(
        {"overrides": f"allocation=per_linear sparsity=0.5 \"allocation.linears='{linears}'\""}
    )
    with pytest.raises(ConfigError, match=words):
        check_allocation(config, [{"a": (4, 4), "c": (4, 4)}])
