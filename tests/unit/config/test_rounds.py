"""Sparsity by round: the formulas, the exact end, and lists of blocks that grow along."""

import pytest

from fedprune.config import compose_config, for_round, from_yaml, round_sparsity, to_yaml


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
