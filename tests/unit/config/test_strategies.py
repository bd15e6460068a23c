"""Which keys a strategy reads, which pruners it takes, and what every refusal tells."""

import functools

import pytest

from fedprune.config import compose_config
from fedprune.config.keys import all_keys, owners
from fedprune.config.overrides import group_options
from fedprune.errors import ConfigError

MOMENTS = ("sparsegpt", "alps", "sparseswaps", "gptq", "structured")


def composed(overrides: str):
    return compose_config({"overrides": overrides})


ACCEPTED = [
    "strategy.decode=true",
    "strategy.decode=true allocation=owl schedule=iterative",
    "strategy=fedprllm pruner=sparsegpt schedule.prefix=dense",
    "strategy=fedspallm pruner=sparsegpt strategy.layer_fraction=0.5 strategy.rounds=2",
    "strategy=fedspallm strategy.ramp=cubic strategy.rounds=3 strategy.average=fedavg",
    "strategy=fedspallm strategy.rounding=floor pruner=wanda pruner.pattern=2:4",
    "strategy=fedspallm schedule=iterative pruner=alps",
    "strategy=fedspallm strategy.coverage=2 strategy.layer_draw=independent",
    "strategy=fedspallm strategy.layer_resources=measured strategy.layer_weights=inverse",
    "strategy=fedstats pruner=ria schedule=iterative strategy.pooling=scaled",
    "strategy=fedstats pruner.pattern=2:4 schedule.prefix=dense",
    "strategy=fedhessian pruner=alps strategy.moments=eigen strategy.bits_per_weight=0.5",
    "strategy=fedhessian pruner=sparseswaps strategy.max_width=4096 strategy.pooling=clients",
    "strategy=fedhessian pruner=sparsegpt pruner.pattern=2:4 pruner.block_size=6",
    "strategy=fedhessian pruner=sparsegpt pruner.pattern=2:4 pruner.bits=4 pruner.group_size=32",
    "strategy=fedhessian pruner=sparsegpt pruner.bits=4 pruner.group_size=null sparsity=0",
    "strategy=fedhessian pruner=gptq pruner.bits=8 pruner.symmetric=false pruner.act_order=false",
    "strategy=fedstats pruner=rounding schedule=iterative",
    "strategy=fedstats pruner=alps pruner.two_sided=true schedule=iterative",
    "allocation=owl strategy=fedspallm sparsity=0.7 strategy.pooling=scaled",
]


@pytest.mark.parametrize("overrides", ACCEPTED)
def test_what_fits_together_is_accepted(overrides):
    composed(overrides)


UNITS = ("depth", "fedexperts")


@pytest.mark.parametrize("pruner", group_options("pruner"))
@pytest.mark.parametrize("strategy", group_options("strategy"))
def test_a_strategy_takes_the_pruners_that_use_its_statistics(strategy, pruner):
    masks = set(group_options("pruner"))
    solvers = [name for name in MOMENTS if name != "structured"]
    takes = {"fedstats": ("wanda", "ria", "rounding", *solvers), "fedhessian": MOMENTS}
    overrides = f"strategy={strategy} pruner={pruner}"
    if strategy in UNITS:  # whose solvers look at no pruner; their sparsity is a share of units
        composed(f"strategy={strategy}")
        return
    if strategy != "collect":
        masks -= {"structured", "gptq", "rounding"}
    if pruner in takes.get(strategy, masks):
        composed(overrides)
        return
    with pytest.raises(ConfigError, match=f"`pruner.name`.*strategy={strategy}.*'{pruner}'") as e:
        composed(overrides)
    told = str(e.value).partition("Set pruner=")[2].rstrip(".").split(", or strategy=")
    composed(f"strategy={strategy} pruner={told[0]}")
    composed(f"strategy={told[1]} pruner={pruner}")


REFUSED = [
    ("strategy.pooling=clients", "pooling", "'tokens' with strategy=fedprllm"),
    ("strategy=fedspallm strategy.pooling=scaled", "pooling", "allocation=owl"),
    ("strategy=fedspallm strategy.coverage=3", "coverage", "`strategy.min_clients` 2"),
    ("strategy=fedspallm strategy.rounds=2 schedule=iterative", "rounds", "schedule=one_shot"),
    (
        "strategy=fedspallm strategy.layer_fraction=0.5 schedule=iterative",
        "layer_fraction",
        "must be 1 with schedule=iterative",
    ),
    (
        "strategy=fedspallm strategy.ramp=cubic pruner.pattern=2:4",
        "ramp",
        "pruner.pattern=unstructured",
    ),
    (
        "strategy=fedhessian pruner=alps strategy.bits_per_weight=1",
        "bits_per_weight",
        "strategy.moments=eigen",
    ),
    ("strategy.decode=true strategy.scaling=true", "scaling", "strategy.decode=false"),
]


@pytest.mark.parametrize(("overrides", "key", "words"), REFUSED)
def test_what_does_not_fit_names_the_key_and_the_way_out(overrides, key, words):
    with pytest.raises(ConfigError) as caught:
        composed(overrides)
    message = str(caught.value)
    assert message.startswith(f"`strategy.{key}` must be ")
    assert words in message and "got" in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("strategy.decode=true pruner=ria", ["`pruner.name`", "'wanda'", "'ria'", "pruner=wanda"]),
        ("strategy.decode=true pruner.group=layer", ["`pruner.group`", "pruner.group=row"]),
        ("strategy.decode=true pruner.pattern=2:4", ["`pruner.pattern`", "'2:4'", "row"]),
        ("pruner=sparsegpt pruner.group=column", ["`pruner.group`", "'layer' or 'row'"]),
        ("pruner=alps pruner.group=column", ["`pruner.group`", "Set pruner.group=layer"]),
        ("pruner=sparseswaps pruner.group=layer", ["`pruner.group`", "Set pruner.group=row"]),
        ("pruner=alps pruner.damping=0", ["`pruner.damping`", "above 0 and at most 1"]),
        (
            "strategy=fedstats pruner=structured",
            ["`pruner.name`", "'alps'", "'structured'", "strategy=fedhessian"],
        ),
        (
            "strategy=fedstats pruner=alps strategy.pooling=worst schedule=iterative",
            ["`strategy.pooling`", "must not be 'worst'", "strategy=fedhessian"],
        ),
        (
            "strategy=fedstats pruner=alps strategy.downlink=sums schedule=iterative",
            ["`strategy.downlink`", "must not be 'sums'", "pruner=wanda"],
        ),
        ("strategy=fedstats pruner.batch_size=2", ["`pruner.batch_size`", "1 with", "got 2"]),
        ("pruner=sparsegpt pruner.block_size=0", ["`pruner.block_size`", "at least 1"]),
        ("schedule=iterative schedule.prefix=dense", ["`schedule.prefix`", "schedule=one_shot"]),
        ("allocation=owl pruner.pattern=2:4", ["`allocation.name`", "'owl'", "unstructured"]),
        ("allocation=owl allocation.blocks=0.5", ["`allocation.blocks`", "allocation=owl"]),
        ("allocation=owl sparsity=0.95", ["`allocation.spread`", "0.05", "got 0.08", "0.025"]),
        ("allocation=owl sparsity=0.0", ["`sparsity`", "above 0", "got 0", "allocation=uniform"]),
        ("allocation=owl sparsity=0.05", ["`allocation.spread`", "below 0.05"]),
        ("allocation=owl allocation.threshold=0", ["`allocation.threshold`", "above 0"]),
        (
            "strategy=fedhessian pruner=alps strategy.bits_per_weight=0",
            ["`strategy.bits_per_weight`", "above 0"],
        ),
        ("strategy=fedspallm strategy.layer_fraction=0", ["`strategy.layer_fraction`", "above 0"]),
        ("strategy=fedspallm strategy.rounding=round", ["`strategy.rounding`", "'ceil', 'floor'"]),
    ],
)
def test_each_refusal_names_key_value_and_way_out(overrides, words):
    with pytest.raises(ConfigError) as caught:
        composed(overrides)
    for word in words:
        assert word in str(caught.value)


KEYS = {
    key.partition(".")[2]: owners(key)
    for key in all_keys()
    if key.startswith("strategy.") and owners(key)
}


@functools.cache
def default(strategy: str):
    pruner = "sparsegpt" if strategy == "fedhessian" else "wanda"
    return composed(f"strategy={strategy} pruner={pruner}")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("strategy", group_options("strategy"))
def test_a_key_of_another_strategy_cannot_be_written(strategy, key):
    config = default(strategy)
    value = getattr(default(KEYS[key][0]).strategy, key)
    word = "null" if value is None else str(value).lower()
    overrides = f"strategy={strategy} pruner={config.pruner.name} strategy.{key}={word}"
    if strategy in KEYS[key]:
        assert getattr(composed(overrides).strategy, key) == getattr(config.strategy, key)
        return
    with pytest.raises(ConfigError) as caught:
        composed(overrides)
    message = str(caught.value)
    assert message.startswith(f"`strategy.{key}` is a key of {KEYS[key][0]}")
    assert f"; {strategy} has " in message and f"strategy={KEYS[key][0]}" in message


def test_a_refused_key_tells_what_there_is():
    with pytest.raises(ConfigError) as caught:
        composed("strategy=fedstats strategy.ties=index")
    assert str(caught.value) == (
        "`strategy.ties` is a key of fedprllm and fedspallm; fedstats has `downlink` besides those "
        "of all. Leave it out, or set strategy=fedprllm."
    )
    with pytest.raises(ConfigError, match="wanda has no key besides"):
        composed("pruner.damping=0.1")


def test_code_for_all_strategies_reads_what_a_strategy_without_the_key_does():
    for name in group_options("strategy"):
        strategy = default(name).strategy
        assert strategy.rounding == ("ceil" if name == "fedspallm" else "floor")
        assert (strategy.rounds, strategy.ramp, strategy.pooling) == (1, "none", "tokens")
        assert not strategy.decode and strategy.layer_fraction == 1.0
        assert (strategy.client_weights, strategy.layer_resources) == ("equal", "equal")
        with pytest.raises(AttributeError, match="has no key 'nothing'"):
            strategy.nothing  # noqa: B018


def test_a_choice_by_its_key_brings_its_group():
    config = composed("strategy.name=fedspallm strategy.rounds=2 pruner.name=sparsegpt")
    assert config == composed("strategy=fedspallm strategy.rounds=2 pruner=sparsegpt")
    assert composed("data.source=hub data.path=a/b") == composed("data=hub data.path=a/b")


def test_magnitude_compares_whole_matrices_unless_told_otherwise():
    assert composed("pruner=magnitude").pruner.group == "layer"
    assert composed("pruner=magnitude pruner.group=row").pruner.group == "row"
    assert composed("pruner=wanda").pruner.group == "row"


STATS, HESSIAN = "strategy=fedstats pruner=rounding", "strategy=fedhessian pruner="


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        ("strategy=fedspallm pruner=sparsegpt pruner.bits=4", "bits", "Set pruner.bits=null, or"),
        (f"{STATS} pruner.pattern=2:4", "pattern", "must be unstructured"),
        (f"{HESSIAN}gptq pruner.bits=3", "bits", "must be one of 4, 8, got 3"),
        (f"{HESSIAN}gptq pruner.bits=null", "bits", "one of 4, 8, got null"),
        (f"{HESSIAN}gptq pruner.group_size=48", "group_size", "32, 64, 128, null, got"),
        (
            f"{HESSIAN}sparsegpt pruner.pattern=2:5 sparsity=0.6 pruner.bits=4",
            "group_size",
            "multiple of 5 with `pruner.pattern` '2:5', got 128",
        ),
        (f"{HESSIAN}alps pruner.bits=4", "bits", "is a key of sparsegpt, gptq and rounding"),
    ],
)
def test_what_is_quantised_by_whom(overrides, key, words):
    with pytest.raises(ConfigError) as error:
        composed(overrides)
    assert f"`pruner.{key}`" in str(error.value) and words in str(error.value)


def test_quantisers_prune_nothing():
    with pytest.raises(ConfigError, match="`sparsity` must be 0 .*pruner=sparsegpt pruner.bits=4"):
        composed(f"{HESSIAN}gptq sparsity=0.5")
