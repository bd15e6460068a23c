"""What stays dense is named, with its share."""

import logging

import pytest

from fedprune.models.coverage import coverage
from tests.support.architectures import tiny_model


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "deepseek_v3", "llama4"])
def test_what_stays_dense_and_what_is_pruned_are_all_the_matrices(family):
    layout = tiny_model(family).layout
    found = coverage(layout)
    shapes = [shape for block in layout.shapes() for shape in block.values()]
    assert found.prunable == sum(rows * columns for rows, columns in shapes)
    every = sum(p.numel() for block in layout.blocks for p in block.parameters() if p.ndim > 1)
    biases = sum(
        p.numel()
        for block in layout.blocks
        for name, p in block.named_parameters()
        if p.ndim > 1 and "bias" in name
    )
    assert found.prunable + sum(found.dense.values()) == every - biases
    assert found.share == pytest.approx(1 - found.prunable / (every - biases))


def test_routers_are_named_and_nothing_of_a_plain_decoder():
    assert coverage(tiny_model("llama").layout).dense == {}
    found = coverage(tiny_model("mixtral").layout)
    assert found.dense == {"mlp.gate.weight": 2 * 4 * 32}
    assert list(coverage(tiny_model("llama4").layout).dense) == ["feed_forward.router.weight"]
    assert found.to_dict() == {
        "share": found.share,
        "dense": dict(found.dense),
        "why": {},
        "unasked": found.share,
    }


def test_much_that_stays_dense_is_a_warning(caplog):
    loaded = tiny_model("mixtral")
    with caplog.at_level(logging.INFO, logger="flwr"):
        coverage(loaded.layout).tell()
        assert [one.levelname for one in caplog.records] == ["INFO"]
        assert "mlp.gate.weight" in caplog.text
        # As if nothing but attention were prunable.
        for linears in loaded.layout._known.values():
            for name in [name for name in linears if "experts" in name]:
                del linears[name]
        coverage(loaded.layout).tell()
    assert caplog.records[-1].levelname == "WARNING"
    assert "mlp.experts.gate_up_proj" in caplog.text
