"""Answers in the right form that no texts can have made are refused; honest ones never are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_app.app import app
from fedprune.errors import WireError
from fedprune.methods.exchange import Contributor
from fedprune.methods.inputs import check_tokens
from fedprune.methods.moment_sums import check_moments
from fedprune.wire.moments import InputMoments, Triangle, decode_moments, encode_moments
from fedprune.wire.sums import InputSums, decode_sums, encode_sums
from tests.support.grid import LocalGrid
from tests.support.jobs import job


def moments(tokens: int, width: int, seed: int, spread: float = 0.0, dead: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    inputs = draw.standard_normal((tokens, width)) * np.exp(spread * draw.standard_normal(width))
    inputs[:, :dead] = 0
    inputs = inputs.astype(np.float32)
    return inputs.T @ inputs


def sent(matrix: np.ndarray, precision: str) -> Triangle:
    """A triangle as it arrives."""
    group = InputMoments(("a",), 5, Triangle.from_matrix(matrix.astype(np.float32), precision))
    (found,) = decode_moments(encode_moments([group]), {"a": (3, len(matrix))})
    return found.body


@given(
    st.integers(1, 80), st.integers(1, 48), st.integers(0, 99), st.floats(0, 4), st.integers(0, 3)
)
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_moments_of_any_inputs_pass(precision, tokens, width, seed, spread, dead):
    check_moments(sent(moments(tokens, width, seed, spread, dead), precision), "a")


def off_diagonal(factor: float):
    def change(matrix: np.ndarray) -> np.ndarray:
        return matrix * np.where(np.eye(len(matrix), dtype=bool), 1, factor)

    return change


def without_diagonal(matrix: np.ndarray) -> np.ndarray:
    return matrix * (1 - np.eye(len(matrix)))


def indefinite(matrix: np.ndarray) -> np.ndarray:
    """Every entry is allowed by its diagonal, and yet an eigenvalue is negative."""
    values, vectors = np.linalg.eigh(matrix)
    values[0] = -0.2 * values.mean()
    return (vectors * values) @ vectors.T


@pytest.mark.parametrize(
    "change",
    [off_diagonal(-1.0), off_diagonal(1e3), without_diagonal, indefinite],
    ids=["negated", "times 1000", "zero diagonal", "indefinite"],
)
@pytest.mark.parametrize("tokens", [20, 400])
def test_moments_of_no_inputs_are_refused(change, tokens):
    shared = np.outer(np.ones(32), np.ones(32)) * tokens  # so that inputs are correlated
    matrix = change(moments(tokens, 32, 1) + shared)
    assert np.linalg.eigvalsh(matrix).min() < -0.01 * np.abs(matrix).mean()
    with pytest.raises(WireError, match="moments of a "):
        check_moments(sent(matrix, "float32"), "a")


def test_tokens_are_those_of_the_handshake():
    check_tokens([96, 96, 40], Contributor("a", 1, 96))  # an input may be routed
    check_tokens([7], Contributor("a"))  # nobody promised any
    for claimed in ([1, 1], [97, 96], [2**63 - 1]):
        with pytest.raises(WireError, match="in the handshake it promised 96"):
            check_tokens(claimed, Contributor("a", 1, 96))


def lying(change):
    """Partition 1 says something else of every block."""

    def tamper(partition, reply):
        arrays = reply.content.array_records.get("arrays", {})
        for key in list(arrays) if partition == 1 else ():
            if key.startswith("block"):
                data = change(arrays[key].data)
                arrays[key] = type(arrays[key])("uint8", (len(data),), arrays[key].stype, data)
        return reply

    return tamper


SHAPES = {
    "self_attn.q_proj": (128, 128),
    "self_attn.k_proj": (64, 128),
    "self_attn.v_proj": (64, 128),
    "self_attn.o_proj": (128, 128),
    "mlp.gate_proj": (352, 128),
    "mlp.up_proj": (352, 128),
    "mlp.down_proj": (128, 352),
}


def one_token(data: bytes) -> bytes:
    groups = decode_sums(data, SHAPES)
    return encode_sums([InputSums(group.linears, group.sums, 1) for group in groups])


def negated(data: bytes) -> bytes:
    groups = []
    for group in decode_moments(data, SHAPES):
        changed = off_diagonal(-1.0)(group.body.matrix()).astype(np.float32)
        groups.append(InputMoments(group.linears, group.tokens, Triangle.from_matrix(changed)))
    return encode_moments(groups)


@pytest.mark.parametrize(
    ("options", "change", "words"),
    [
        (("strategy=fedstats", "strategy.pooling=clients"), one_token, "it promised 96"),
        (
            ("strategy=fedhessian", "pruner=sparsegpt", "schedule=iterative"),
            negated,
            "not those of any inputs",
        ),
    ],
    ids=["tokens", "moments"],
)
def test_a_run_goes_on_without_the_client_by_name(tmp_path, options, change, words):
    grid = LocalGrid(app, 3, tamper=lying(change))
    results = job(tmp_path / "run", *options, "data.partition=iid", grid=grid)
    assert results["ledger"]["refused"] == {"partition 1": 1}
    (refused,) = [e["refused"] for e in results["ledger"]["entries"] if e["refused"]]
    assert "block 0" in refused and words in refused
    assert results["sparsity"]["overall"] > 0.49
