"""What `pruner.targets` and `pruner.ignore` leave of a model's matrices, and what is said of it."""

import pytest
import torch

from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError
from fedprune.models.coverage import NEVER_CALLED, NOT_SELECTED, coverage
from fedprune.models.layout import find_layout
from fedprune.models.selection import select, selected
from tests.support.architectures import tiny_model

MLP = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
ALL = MLP | {f"self_attn.{name}_proj" for name in "qkvo"}


def chosen(targets=(), ignore=(), family="llama"):
    layout = selected(tiny_model(family).layout, targets, ignore)
    return [set(layout.linears(block)) for block in range(len(layout.blocks))]


@pytest.mark.parametrize(
    ("targets", "ignore", "expected"),
    [
        (["mlp"], [], [MLP] * 3),
        (["re:.*mlp"], [], [MLP] * 3),
        (["mlp.up_proj", "model.layers.1.mlp.down_proj"], [], None),
        ([], ["model.layers.0"], [set(), ALL, ALL]),
        ([], [r"re:model\.layers\.[01]\b"], [set(), set(), ALL]),
        (["Linear"], ["re:.*self_attn"], [MLP] * 3),
        (["self_attn", "mlp"], [r"re:.*\.(q|k|v|o)_proj$"], [MLP] * 3),
        ([r"re:model\.layers\.\d{1,2}\.mlp"], [], [MLP] * 3),
    ],
)
def test_entries_are_names_of_blocks_modules_and_linears_or_patterns(targets, ignore, expected):
    if expected is None:
        expected = [{"mlp.up_proj"}, {"mlp.up_proj", "mlp.down_proj"}, {"mlp.up_proj"}]
    assert chosen(targets, ignore) == expected


def test_a_pattern_must_match_from_the_beginning_of_a_name():
    with pytest.raises(ConfigError, match="'re:up' matches nothing"):
        chosen(["re:up"])  # "mlp.up_proj" does not begin so


@pytest.mark.parametrize(
    ("targets", "ignore", "message"),
    [
        (["mlp", "ffn"], [], r"`pruner.targets`: 'ffn' matches nothing.*'model.layers.0'.*mlp"),
        ([], ["re:.*router"], r"`pruner.ignore`: 're:.*router' matches nothing"),
        (["mlp"], ["re:.*"], "leaves nothing to prune"),
        (["up_proj"], [], "'up_proj' matches nothing"),
    ],
)
def test_entries_that_cannot_be_meant_are_refused(targets, ignore, message):
    with pytest.raises(ConfigError, match=message):
        chosen(targets, ignore)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("re:(", r"`pruner.ignore` must have regular expressions after 're:'.*'re:\('"),
        ("mlp,,x", "`pruner.ignore` must be names or 're:' patterns"),
        ("re:", "`pruner.ignore` must be names or 're:' patterns"),
        ("x" * 2001, "`pruner.ignore`"),
    ],
)
def test_bad_entries_are_told_before_a_model_is_looked_at(value, message):
    with pytest.raises(ConfigError, match=message):
        config_from_overrides([f"pruner.ignore={value}"])


def test_a_comma_in_braces_belongs_to_its_expression():
    config = config_from_overrides([r"pruner.targets=mlp, re:model\.layers\.\d{1,2}"])
    assert config.pruner.target_entries == ("mlp", r"re:model\.layers\.\d{1,2}")


def test_without_entries_a_model_stays_as_it_is():
    loaded = tiny_model()
    assert select(loaded, config_from_overrides([]).pruner) is loaded


def test_what_is_not_selected_is_counted_and_no_warning():
    loaded = tiny_model()
    assert not coverage(loaded.layout).dense
    half = coverage(selected(loaded.layout, ["mlp"], ["model.layers.0.mlp.up_proj"]))
    sizes = loaded.layout.shapes()[0]
    attention = sum(a * b for name, (a, b) in sizes.items() if "attn" in name)
    up = sizes["mlp.up_proj"][0] * sizes["mlp.up_proj"][1]
    assert half.dense["mlp.up_proj.weight"] == up
    assert sum(half.dense.values()) == half.not_selected == 3 * attention + up
    assert half.unasked == 0 < half.share
    assert half.why["mlp.up_proj.weight"] == NOT_SELECTED


def test_what_is_never_called_is_told_from_what_is_not_selected():
    loaded = tiny_model()
    loaded.layout.blocks[1].spare = torch.nn.Linear(32, 64)
    found = coverage(selected(find_layout(loaded.model), ["mlp"], []))
    assert found.why["spare.weight"] == NEVER_CALLED
    total = sum(found.dense.values()) + found.prunable
    assert found.unasked == 32 * 64 / total
