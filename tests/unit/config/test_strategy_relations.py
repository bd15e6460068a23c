"""Which keys a strategy reads, which pruners it takes, and what every refusal tells."""

import pytest

from fedprune.config import compose_config
from fedprune.config.overrides import group_options
from fedprune.errors import ConfigError

MOMENTS = ("sparsegpt", "alps", "sparseswaps")


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
    "allocation=owl strategy=fedspallm sparsity=0.7 strategy.pooling=scaled",
]


@pytest.mark.parametrize("overrides", ACCEPTED)
def test_what_fits_together_is_accepted(overrides):
    composed(overrides)


@pytest.mark.parametrize("pruner", group_options("pruner"))
@pytest.mark.parametrize("strategy", group_options("strategy"))
def test_a_strategy_takes_the_pruners_that_use_its_statistics(strategy, pruner):
    takes = {"fedstats": ("wanda", "ria"), "fedhessian": MOMENTS}
    overrides = f"strategy={strategy} pruner={pruner}"
    if pruner in takes.get(strategy, group_options("pruner")):
        composed(overrides)
        return
    with pytest.raises(ConfigError, match=f"`pruner.name`.*strategy={strategy}.*'{pruner}'") as e:
        composed(overrides)
    told = str(e.value).partition("Set pruner=")[2].rstrip(".").split(", or strategy=")
    composed(f"strategy={strategy} pruner={told[0]}")
    composed(f"strategy={told[1]} pruner={pruner}")


REFUSED = [
    ("strategy=fedstats strategy.scaling=true", "scaling", "strategy=fedprllm"),
    ("strategy=fedspallm strategy.majority_floor=true", "majority_floor", "strategy=fedprllm"),
    ("strategy=fedspallm strategy.decode=true", "decode", "false"),
    ("strategy.average=fedavg", "average", "'l0' with strategy=fedprllm, got 'fedavg'"),
    ("strategy.expansion=false", "expansion", "true"),
    ("strategy.rounds=2", "rounds", "strategy=fedspallm"),
    ("strategy.ramp=linear", "ramp", "'none'"),
    ("strategy=fedstats strategy.layer_fraction=0.5", "layer_fraction", "0.5"),
    ("strategy=fedstats strategy.layer_resources=measured", "layer_resources", "'equal'"),
    ("strategy=fedstats strategy.layer_draw=independent", "layer_draw", "'stratified'"),
    ("strategy=fedstats strategy.layer_weights=inverse", "layer_weights", "'equal'"),
    ("strategy=fedstats strategy.coverage=2", "coverage", "strategy=fedspallm"),
    ("strategy.rounding=ceil", "rounding", "'floor'"),
    ("strategy=fedstats strategy.rounding=ceil", "rounding", "'floor'"),
    ("strategy.pooling=clients", "pooling", "'tokens' with strategy=fedprllm"),
    ("strategy=fedspallm strategy.pooling=scaled", "pooling", "allocation=owl"),
    ("strategy=fedstats strategy.moments=eigen", "moments", "strategy=fedhessian"),
    ("strategy=fedstats strategy.max_width=64", "max_width", "null"),
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
    ("strategy.decode=true strategy.majority_floor=true", "majority_floor", "false"),
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
        ("pruner.damping=0", ["`pruner.damping`", "above 0 and at most 1"]),
        ("strategy=fedstats pruner.batch_size=2", ["`pruner.batch_size`", "1 with", "got 2"]),
        ("pruner.block_size=0", ["`pruner.block_size`", "at least 1"]),
        ("schedule=iterative schedule.prefix=dense", ["`schedule.prefix`", "schedule=one_shot"]),
        ("allocation=owl pruner.pattern=2:4", ["`allocation.name`", "'owl'", "unstructured"]),
        ("allocation=owl allocation.blocks=0.5", ["`allocation.blocks`", "allocation=owl"]),
        ("allocation=owl sparsity=0.95", ["`allocation.spread`", "0.05", "got 0.08", "0.025"]),
        ("allocation=owl sparsity=0.05", ["`allocation.spread`", "below 0.05"]),
        ("allocation=owl allocation.threshold=0", ["`allocation.threshold`", "above 0"]),
        ("strategy.bits_per_weight=0", ["`strategy.bits_per_weight`", "above 0"]),
        ("strategy=fedspallm strategy.layer_fraction=0", ["`strategy.layer_fraction`", "above 0"]),
        ("strategy=fedspallm strategy.rounding=round", ["`strategy.rounding`", "'ceil', 'floor'"]),
    ],
)
def test_each_refusal_names_key_value_and_way_out(overrides, words):
    with pytest.raises(ConfigError) as caught:
        composed(overrides)
    for word in words:
        assert word in str(caught.value)


def test_keys_of_one_strategy_do_not_spill_into_the_next():
    for name in group_options("strategy"):
        pruner = "sparsegpt" if name == "fedhessian" else "wanda"
        strategy = composed(f"strategy={name} pruner={pruner}").strategy
        assert strategy.rounding == ("ceil" if name == "fedspallm" else "floor")
        assert (strategy.average, strategy.rounds, strategy.pooling) == ("l0", 1, "tokens")
