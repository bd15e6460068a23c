import pytest

from client_app.resources import free_bytes, layer_permille, megaflops, memory_bytes
from fedprune.errors import ConfigError


def test_a_processor_has_memory_and_speed():
    assert 0 < free_bytes("cpu") < memory_bytes("cpu")
    assert megaflops("cpu") > 10
    assert megaflops("") == 0


@pytest.mark.parametrize(("value", "permille"), [(1, 1000), (0.25, 250), (1e-9, 1)])
def test_an_operator_may_limit_the_share_of_blocks(value, permille):
    assert layer_permille({"layer-fraction": value}) == permille
    assert layer_permille({}) == 0


@pytest.mark.parametrize("value", [0, -0.5, 1.5, "0.5", True, float("nan")])
def test_other_shares_are_refused(value):
    with pytest.raises(ConfigError, match="`layer-fraction` in the node's --node-config must be"):
        layer_permille({"layer-fraction": value})
