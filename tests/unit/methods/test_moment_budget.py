"""`strategy.budget_mb`: the form and the bits that follow, against trying every one of them."""

import pytest

from fedprune.config import config_from_overrides, replace
from fedprune.errors import ConfigError
from fedprune.methods.public_model import PublicModel
from fedprune.methods.registry import get_method

SHAPES = (
    {"q": (64, 64), "o": (64, 64), "up": (160, 64), "down": (64, 160)},
    {"q": (64, 64), "o": (64, 64), "up": (320, 64), "down": (64, 320)},
)
INPUTS = ((("q",), ("o",), ("up",), ("down",)),) * 2
MODEL = PublicModel(SHAPES, "", "", "", lambda *_: None, inputs=INPUTS)
METHOD = get_method("fedhessian")


def config(*overrides):
    return config_from_overrides(
        ["strategy=fedhessian", "pruner=sparsegpt", "pruner.seq_len=64", *overrides]
    )


def size(one):
    exchange = METHOD.exchange(one)
    return sum(exchange.most_bytes(MODEL, block) for block in range(2))


def settled(megabytes, *overrides):
    return METHOD.settled(config(f"strategy.budget_mb={megabytes}", *overrides), MODEL)


def test_without_a_budget_nothing_changes():
    given = config("strategy.moments=eigen")
    assert METHOD.settled(given, MODEL) is given


@pytest.mark.parametrize("moments", ["float32", "float16"])
def test_whole_moments_go_where_they_fit(moments):
    exact = size(config(f"strategy.moments={moments}"))
    found = settled(exact / 1e6).strategy
    assert (found.moments, found.bits_per_weight, found.budget_mb) == (moments, None, None)
    smaller = settled((exact - 1) / 1e6).strategy
    assert smaller.moments == ("float16" if moments == "float32" else "eigen")


def test_the_form_asked_for_is_where_it_begins():
    assert settled(100, "strategy.moments=float16").strategy.moments == "float16"
    assert settled(100, "strategy.moments=nystrom").strategy.moments == "nystrom"


@pytest.mark.parametrize("moments", ["eigen", "nystrom"])
@pytest.mark.parametrize("megabytes", [0.012, 0.02, 0.035])
def test_a_sketch_has_as_many_bits_as_the_budget_pays_for(moments, megabytes):
    found = settled(megabytes, f"strategy.moments={moments}")
    assert found.strategy.moments == moments and size(found) <= megabytes * 1e6
    # The next thousandths of a bit either change nothing or cost too much, whatever is tried.
    for step in range(1, 200):
        bits = found.strategy.bits_per_weight + step / 1e3
        more = size(replace(found, strategy=replace(found.strategy, bits_per_weight=bits)))
        assert more == size(found) or more > megabytes * 1e6


def test_a_survey_is_paid_for():
    plain, owl = settled(0.03), settled(0.03, "allocation=owl", "schedule=iterative")
    columns = 2 * (3 * 64) + 160 + 320
    assert size(owl) + 5 * columns <= 30_000
    assert owl.strategy.bits_per_weight < plain.strategy.bits_per_weight


def test_too_little_says_the_least_that_is_enough():
    with pytest.raises(ConfigError, match=r"budget_mb.*at least .*strategy=fedstats") as caught:
        settled(0.001)
    least = float(str(caught.value).split("at least ")[1].split()[0])
    assert settled(least).strategy.moments == "eigen"


def test_bits_and_a_budget_contradict_each_other():
    with pytest.raises(ConfigError, match="bits_per_weight.*must be null with.*budget_mb"):
        config("strategy.moments=eigen", "strategy.bits_per_weight=1", "strategy.budget_mb=1")


@pytest.mark.parametrize("megabytes", [0, -1, "nan"])
def test_a_budget_is_a_positive_number(megabytes):
    with pytest.raises(ConfigError, match="budget_mb"):
        config(f"strategy.budget_mb={megabytes}")


def test_under_masks_sketches_are_such_as_add_up():
    enough = ("strategy.min_clients=3", "federation.num_clients=3")
    assert settled(0.02, "privacy.secure=true", *enough).strategy.moments == "nystrom"
