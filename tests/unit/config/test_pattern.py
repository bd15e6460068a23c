"""Reading and writing sparsity patterns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.config.pattern import Pattern
from fedprune.errors import ConfigError


@given(st.integers(1, 500), st.integers(1, 500))
def test_round_trip(n, more):
    pattern = Pattern.parse(f"{n}:{n + more}")
    assert (pattern.n, pattern.m) == (n, n + more)
    assert pattern.structured
    assert pattern.density == n / (n + more)
    assert Pattern.parse(str(pattern)) == pattern


def test_unstructured():
    pattern = Pattern.parse("unstructured")
    assert pattern == Pattern()
    assert not pattern.structured
    assert pattern.density is None
    assert str(pattern) == "unstructured"


@pytest.mark.parametrize(
    "text",
    [
        "4:2",
        "4:4",
        "0:4",
        "-1:4",
        "2:4 ",
        " 2:4",
        "2:4:8",
        "2/4",
        "",
        "Unstructured",
        "02:4",
        "٢:٤",
    ],
)
def test_bad_text(text):
    with pytest.raises(ConfigError) as caught:
        Pattern.parse(text)
    assert f"got '{text}'" in str(caught.value)
    assert "`pruner.pattern` must be 'unstructured' or 'N:M' with 0 < N < M" in str(caught.value)


@pytest.mark.parametrize(("n", "m"), [(None, 4), (2, None), (4, 4), (0, 2)])
def test_bad_fields(n, m):
    with pytest.raises(ConfigError, match=f"got '{n}:{m}'"):
        Pattern(n, m)
