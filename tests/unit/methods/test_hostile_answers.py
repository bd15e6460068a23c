"""Answers in the right form that no texts can have made are refused; honest ones never are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client_app.app import app
from fedprune.config import Pattern, config_from_overrides
from fedprune.errors import WireError
from fedprune.methods.exchange import BlockTask, Contributor
from fedprune.methods.fedspallm import average
from fedprune.methods.fedspallm.average import check_survivors
from fedprune.methods.inputs import check_tokens
from fedprune.methods.moments import check_cross, check_moments
from fedprune.methods.public_model import PublicModel
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.registry import make_pruner
from fedprune.pruning.statistics import MomentStatistics
from fedprune.wire.changes import SparseWeight, decode_update, encode_update
from fedprune.wire.moments import Cross, InputMoments, Triangle, decode_moments, encode_moments
from fedprune.wire.sums import ExactSums, InputSums, decode_sums, encode_sums
from tests.support.grid import LocalGrid, answering
from tests.support.jobs import DEMO_SHAPES, job
from tests.support.moments import correlated


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


def crossed(width: int = 24, seed: int = 0) -> tuple[Triangle, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    own = (draw.standard_normal((50, width)) * draw.lognormal(0, 2, width)).astype(np.float32)
    away = (own * draw.normal(-0.3, 0.5, own.shape)).astype(np.float32)
    return Triangle.from_matrix(own.T @ own), away.T @ own, np.square(away).sum(0)


@given(st.integers(1, 40), st.integers(0, 99))
def test_cross_moments_of_any_inputs_pass(width, seed):
    triangle, cross, squares = crossed(width, seed)
    for precision in ("float32", "float16"):
        group = InputMoments(("a",), 5, triangle, Cross(cross, squares, precision))
        (found,) = decode_moments(encode_moments([group]), {"a": (3, width)})
        dense = triangle.diagonal + 2 * cross.diagonal() + squares
        total = check_cross(found.body, found.cross, "a")
        assert total == pytest.approx(float(dense.clip(0).sum()), rel=0.01, abs=1e-3)


@pytest.mark.parametrize("factor", [3.0, 1e6])
def test_cross_moments_of_no_inputs_are_refused(factor):
    triangle, cross, squares = crossed()
    parallel = np.sqrt(np.outer(squares, triangle.diagonal)).astype(np.float32)
    for wrong in (parallel * factor, -parallel * factor, cross + factor * parallel):
        with pytest.raises(WireError, match="cross moment of a"):
            check_cross(triangle, Cross(wrong, squares), "a")
    with pytest.raises(WireError, match="cross moment of a"):
        check_cross(triangle, Cross(cross, np.zeros_like(squares)), "a")
    check_cross(triangle, Cross(np.zeros_like(cross), squares), "a")


def test_tokens_are_those_of_the_handshake():
    def check(*tokens, promised=96):
        named = {str(place): found for place, found in enumerate(tokens)}
        model = PublicModel(({},), "c", "w", "s", None, experts=(frozenset("12"),))
        check_tokens(named, BlockTask(model, 0), Contributor("a", 1, promised))

    check(96, 96, 40)  # 1 and 2 are experts'
    check(96, 0, 0)
    check(7, promised=0)  # nobody promised any
    for claimed in ([1, 1], [97, 96], [2**63 - 1], [96, 97], [40, 96, 97]):
        with pytest.raises(WireError, match="in the handshake it promised 96"):
            check(*claimed)


def test_a_block_of_experts_alone_may_see_fewer_tokens_than_were_promised():
    model = PublicModel(({},), "c", "w", "s", None, experts=(frozenset("ab"),))
    check_tokens({"a": 3, "b": 0}, BlockTask(model, 0), Contributor("a", 1, 96))
    with pytest.raises(WireError, match="of 97 tokens"):
        check_tokens({"a": 97, "b": 0}, BlockTask(model, 0), Contributor("a", 1, 96))


FREE = Pattern()
SPECS = [
    MaskSpec(0.1, FREE, "layer"),
    MaskSpec(0.5, FREE, "row"),
    MaskSpec(0.9, FREE, "layer"),
    MaskSpec(0.5, Pattern(2, 4), "row"),
]


def solved(name: str, spec: MaskSpec) -> tuple[SparseWeight, torch.Tensor]:
    """What an honest client sends of a weight, and the public weight."""
    weight, moments = correlated(24, 64)
    pruner = make_pruner(config_from_overrides([f"pruner={name}"]).pruner)
    change = pruner.prune(weight, MomentStatistics(moments, 500), spec)
    if not isinstance(change, SparseWeight):
        change = SparseWeight.from_dense(weight, change)
    return change, weight


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", ["sparsegpt", "alps", "sparseswaps", "magnitude"])
def test_survivors_of_any_solver_pass(name, spec):
    change, public = solved(name, spec)
    check_survivors(change, public, 0 if name == "magnitude" else 1)


def times_ten(dense: torch.Tensor) -> torch.Tensor:
    return 10 * dense


def a_row_times_six(dense: torch.Tensor) -> torch.Tensor:
    return dense * torch.where(torch.arange(len(dense)) == 3, 6.0, 1.0)[:, None]


def other_signs(dense: torch.Tensor) -> torch.Tensor:
    return -dense


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (times_ten, "its survivors differ from the public weights by"),
        (a_row_times_six, "a row of its survivors differs from the public"),
        (other_signs, "its survivors differ"),
    ],
)
@pytest.mark.parametrize("name", ["sparsegpt", "magnitude"])
def test_survivors_of_no_solver_are_refused(name, change, words):
    honest, public = solved(name, MaskSpec(0.5, FREE, "row"))
    forged = SparseWeight.from_dense(change(honest.dense()), honest.mask)
    with pytest.raises(WireError, match=words):
        check_survivors(forged, public, 1)
    if name == "magnitude":
        with pytest.raises(WireError, match="changes no weights, and its survivors are not"):
            check_survivors(forged, public, 0)


def test_more_rounds_leave_more_room_and_steps_do_not_show(monkeypatch):
    honest, public = solved("sparsegpt", MaskSpec(0.5, FREE, "row"))
    forged = SparseWeight.from_dense(2.5 * honest.dense(), honest.mask)
    told = []
    for chunk in (1, 1 << 20):
        monkeypatch.setattr(average, "_CHUNK", chunk)
        with pytest.raises(WireError) as refused:
            check_survivors(forged, public, 1)
        told.append(str(refused.value))
        check_survivors(forged, public, 3)
    assert told[0] == told[1]


def one_token(data: bytes) -> bytes:
    groups = decode_sums(data, DEMO_SHAPES)
    return encode_sums([InputSums(group.linears, group.sums, 1) for group in groups])


def loud_sums(data: bytes) -> bytes:
    groups = []
    for group in decode_sums(data, DEMO_SHAPES):
        sums = ExactSums(group.sums.size)
        for _ in range(30):
            sums.merge(group.sums)
        groups.append(InputSums(group.linears, sums, group.tokens))
    return encode_sums(groups)


def loud_moments(data: bytes) -> bytes:
    groups = []
    for group in decode_moments(data, DEMO_SHAPES):
        loud = Triangle.from_matrix(30 * group.body.matrix())
        groups.append(InputMoments(group.linears, group.tokens, loud))
    return encode_moments(groups)


def negated(data: bytes) -> bytes:
    groups = []
    for group in decode_moments(data, DEMO_SHAPES):
        changed = off_diagonal(-1.0)(group.body.matrix()).astype(np.float32)
        groups.append(InputMoments(group.linears, group.tokens, Triangle.from_matrix(changed)))
    return encode_moments(groups)


def with_cross(change):
    """Change the first cross moment and its squares; the first block has none."""

    def changed(data: bytes) -> bytes:
        first, *rest = decode_moments(data, DEMO_SHAPES)
        if first.cross is None:
            return data
        return encode_moments([replace(first, cross=Cross(*change(first.cross))), *rest])

    return changed


def far_away(cross: Cross):
    return cross.values, cross.squares * np.float32(1e9)


def too_correlated(cross: Cross):
    return cross.values * np.float32(1e3), cross.squares


def tenfold(data: bytes) -> bytes:
    sent = decode_update(data, DEMO_SHAPES)
    forged = {
        name: SparseWeight.from_dense(10 * weight.dense(), weight.mask)
        for name, weight in sent.items()
    }
    return encode_update(forged)


@pytest.mark.parametrize(
    ("options", "change", "words"),
    [
        (("strategy=fedstats", "strategy.pooling=clients"), one_token, "it promised 96"),
        (
            ("strategy=fedhessian", "pruner=sparsegpt", "schedule=iterative"),
            negated,
            "not those of any inputs",
        ),
        (("strategy=fedstats",), loud_sums, "of the public model stays below"),
        (("allocation=owl",), loud_sums, "of the public model stays below"),
        (
            ("strategy=fedhessian", "pruner=alps", "schedule=iterative"),
            loud_moments,
            "of the public model stays below",
        ),
        (("strategy=fedspallm", "pruner=sparsegpt"), tenfold, "a solver stays below"),
        (("strategy=fedspallm", "pruner=wanda"), tenfold, "its pruner changes no weights"),
    ],
    ids=["tokens", "moments", "sums", "survey", "loud moments", "survivors", "public survivors"],
)
def test_a_run_goes_on_without_the_client_by_name(tmp_path, options, change, words):
    grid = LocalGrid(app, 3, tamper=answering(change))
    results = job(tmp_path / "run", *options, "data.partition=iid", grid=grid)
    assert results["ledger"]["refused"] == {"partition 1": 1}
    (refused,) = [e["refused"] for e in results["ledger"]["entries"] if e["refused"]]
    assert "block 0" in refused and words in refused
    assert results["sparsity"]["overall"] > 0.49


@pytest.mark.parametrize(
    ("change", "words"),
    [(far_away, "of the public model stays below"), (too_correlated, "Cauchy-Schwarz")],
)
def test_a_run_goes_on_without_a_false_cross_moment(tmp_path, change, words):
    grid = LocalGrid(app, 3, tamper=answering(with_cross(change)))
    options = ("strategy=fedhessian", "pruner=sparsegpt", "schedule=iterative")
    results = job(tmp_path / "run", *options, "strategy.target=dense", grid=grid)
    assert results["ledger"]["refused"] == {"partition 1": 1}
    (refused,) = [e["refused"] for e in results["ledger"]["entries"] if e["refused"]]
    assert "block 1" in refused and words in refused
    assert results["sparsity"]["overall"] > 0.49
