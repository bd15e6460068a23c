"""Pooling second moments of every form, against plain sums."""

import numpy as np
import pytest
import torch

from fedprune.config import config_from_overrides
from fedprune.errors import QuorumError, WireError
from fedprune.methods.moments import MomentPool, completed, input_moments, plan_inputs
from fedprune.methods.sketches import eigen_sketch, nystrom_sketch, rebuild
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.registry import make_solver, towards
from fedprune.pruning.statistics import ColumnStatistics, MomentStatistics, get_kind
from fedprune.wire.moments import (
    Columns,
    Cross,
    InputMoments,
    Triangle,
    decode_moments,
    encode_moments,
)

D, SEED = 12, 5
SHAPES = {"q": (24, 16), "k": (8, 16), "o": (16, 16), "down": (16, 48)}
INPUTS = [("q", "k"), ("o",), ("down",)]


def moments(client: int, tokens: int = 40) -> torch.Tensor:
    draw = torch.Generator().manual_seed(client)
    inputs = torch.randn(tokens, D, generator=draw) * (1 + client)
    return inputs.T @ inputs


def sent(matrix: torch.Tensor, form: str, tokens: int = 40) -> InputMoments:
    if form == "eigen":
        body = eigen_sketch(matrix, D)
    elif form == "nystrom":
        body = nystrom_sketch(matrix, D, SEED)
    else:
        body = Triangle.from_matrix(matrix.numpy(), form)
    return InputMoments(("a",), tokens, body)


@pytest.mark.parametrize(
    ("form", "close"), [("float32", 1e-6), ("float16", 2e-3), ("eigen", 1e-3), ("nystrom", 5e-2)]
)
@pytest.mark.parametrize("mode", ["tokens", "clients", "scaled"])
def test_pools_are_the_sums_of_what_clients_have(form, close, mode):
    pool, expected = MomentPool(mode, SEED), torch.zeros(D, D, dtype=torch.float64)
    for client, tokens in enumerate((40, 80, 40)):
        matrix = moments(client, tokens)
        pool.add(sent(matrix, form, tokens))
        factor = {"tokens": 1.0, "clients": 1 / tokens, "scaled": 1 / matrix.diagonal().mean()}
        expected += matrix.double() * float(factor[mode])
    found, tokens = pool.result()
    assert tokens == (160 if mode == "tokens" else 3)
    assert (found - expected).norm() / expected.norm() < close
    assert torch.equal(found, found.T) and found.dtype == torch.float32


def few_columns(matrix: torch.Tensor, form: str, rank: int = 3) -> InputMoments:
    make = eigen_sketch(matrix, rank) if form == "eigen" else nystrom_sketch(matrix, rank, SEED)
    return InputMoments(("a",), 40, make)


@pytest.mark.parametrize("form", ["eigen", "nystrom"])
def test_what_sketches_leave_out_is_as_correlated_as_on_public_text(form):
    pool, again = MomentPool("tokens", SEED), MomentPool("tokens", SEED)
    for client in range(3):
        pool.add(few_columns(moments(client), form))
    again.restore(pool.state())
    alone, public = pool.statistic().moments, MomentStatistics(moments(7), 40)
    if form == "eigen":
        factors = [torch.from_numpy(few_columns(moments(c), form).body.vectors) for c in range(3)]
        columns = sum(factor.double() @ factor.double().T for factor in factors)
    else:
        columns = low_rank(pool.sketch())
    found = pool.statistic(public).moments
    for i in range(D):
        for j in range(D):
            left = [float(alone[k, k]) - float(columns[k, k]) for k in (i, j)]
            size = float(public.moments[i, i] * public.moments[j, j]) ** 0.5
            related = float(public.moments[i, j]) / size
            more = 0.0 if i == j else related * (max(left[0], 0) * max(left[1], 0)) ** 0.5
            scale = float(alone[i, i] * alone[j, j]) ** 0.5
            assert float(found[i, j] - alone[i, j]) / scale == pytest.approx(more / scale, abs=2e-4)
    assert torch.equal(found.diagonal(), alone.diagonal())
    assert float(torch.linalg.eigvalsh(found.double()).min()) > -1e-3 * float(
        found.diagonal().max()
    )
    assert torch.equal(again.statistic(public).moments, found)


def low_rank(sketch) -> torch.Tensor:
    """Return Y pinv(P' Y) Y' of a Nystrom sketch, whose public matrix P a sketch of ones tells."""
    product = torch.from_numpy(sketch.vectors).double()
    public = torch.from_numpy(nystrom_sketch(torch.eye(D), product.shape[1], SEED).vectors).double()
    return product @ torch.linalg.pinv(public.T @ product) @ product.T


def test_whole_moments_leave_nothing_out():
    pool = MomentPool("tokens")
    pool.add(sent(moments(0), "float32"))
    public = MomentStatistics(moments(7), 40)
    assert torch.equal(pool.statistic(public).moments, pool.statistic().moments)


def test_a_sketch_without_columns_is_sums_with_public_correlations():
    pool, matrix, public = MomentPool("tokens"), moments(2), MomentStatistics(moments(7), 40)
    pool.add(few_columns(matrix, "eigen", rank=0))
    expected = completed(ColumnStatistics(matrix.diagonal().clone(), 40), public)
    torch.testing.assert_close(pool.statistic(public).moments, expected.moments)


def test_triangles_give_the_same_in_any_order():
    bodies = [sent(moments(client), "float32") for client in range(6)]
    found = []
    for order in (range(6), reversed(range(6))):
        pool = MomentPool("tokens")
        for client in order:
            pool.add(bodies[client])
        found.append(pool.result()[0])
    assert torch.equal(*found)


def test_nystrom_sketches_add_before_anything_is_rebuilt():
    pool = MomentPool("tokens", SEED)
    for client in range(3):
        pool.add(InputMoments(("a",), 40, nystrom_sketch(moments(client), 4, SEED)))
    together = nystrom_sketch(sum(moments(client) for client in range(3)), 4, SEED)
    assert torch.allclose(pool.result()[0], rebuild(together, SEED), rtol=1e-3, atol=1e-2)


def test_what_cannot_be_pooled_is_refused():
    pool = MomentPool("tokens")
    with pytest.raises(QuorumError, match="No client sent moments"):
        pool.result()
    with pytest.raises(WireError, match="column sums alone"):
        pool.add(InputMoments(("a",), 1, Columns(np.ones(D, dtype=np.float32))))


@pytest.mark.parametrize("form", ["float32", "eigen"])
def test_every_form_holds_the_diagonal(form):
    matrix = moments(1)
    assert np.allclose(sent(matrix, form).body.diagonal, matrix.diagonal().numpy(), rtol=1e-6)


def plans(*overrides: str):
    options = ["strategy=fedhessian", "pruner=sparsegpt", *overrides]
    return plan_inputs(config_from_overrides(options), 2, INPUTS, SHAPES)


def test_the_plan_follows_the_configuration():
    assert [plan.form for plan in plans()] == ["float32"] * 3
    limited = plans("strategy.moments=float16", "strategy.max_width=16")
    assert [plan.form for plan in limited] == ["float16", "float16", "columns"]
    assert [plan.rank for plan in plans("strategy.moments=eigen")] == [1, 1, 3]
    assert len({plan.seed for plan in plans("strategy.moments=nystrom")}) == 3


def test_a_budget_is_kept_and_its_bound_holds():
    found = plans("strategy.moments=eigen", "strategy.bits_per_weight=8")
    weights = sum(rows * columns for rows, columns in SHAPES.values())
    assert (
        sum(plan.rank * (16 * plan.width + 32) + 32 * plan.width for plan in found) <= 8 * weights
    )
    assert all(plan.rank <= plan.width // 2 for plan in found)


def whole_numbers(samples: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs behind pruned blocks and in the dense model, of whose products no digit is lost."""
    draw = torch.Generator().manual_seed(3)
    own = [torch.randint(-8, 9, (1, 10, D), generator=draw).float() for _ in range(samples)]
    return [(x, x + torch.randint(-3, 4, x.shape, generator=draw)) for x in own]


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_cross_moments_pool_and_go_on_from_their_state(precision):
    pool, again = MomentPool("tokens"), MomentPool("tokens")
    for seed in range(3):
        matrix = moments(seed)
        cross = Cross(0.1 * matrix.numpy(), 0.01 * matrix.diagonal().numpy(), precision)
        pool.add(InputMoments(("a",), 40, Triangle.from_matrix(matrix.numpy(), precision), cross))
    again.restore(pool.state())
    for one in (pool, again):
        found = one.statistic()
        assert torch.allclose(found.deviation.cross, 0.1 * found.moments, rtol=1e-3, atol=1e-2)
        expected = 0.01 * found.moments.diagonal()
        assert torch.allclose(found.deviation.squares, expected, rtol=1e-3)
    assert torch.equal(pool.statistic().deviation.cross, again.statistic().deviation.cross)


@pytest.mark.parametrize("clients", [3, 16])
@pytest.mark.parametrize("name", ["sparsegpt", "alps", "sparseswaps", "gptq"])
def test_any_number_of_clients_give_the_weights_of_one(name, clients):
    """Bit for bit, where the sums themselves are exact."""
    sparse = "sparsity=0" if name == "gptq" else "sparsity=0.5"
    options = ["strategy=fedhessian", "schedule=iterative", f"pruner={name}", sparse]
    options += ["pruner.group_size=null"] if name == "gptq" else []
    config = config_from_overrides([*options, "strategy.target=dense"])
    samples, kind = whole_numbers(16), get_kind("paired_moments")
    weight = torch.randn(8, D, generator=torch.Generator().manual_seed(0))
    spec = MaskSpec(config.sparsity, config.pruner.pattern, config.pruner.group)
    made = []
    for count in (1, clients):
        pool = MomentPool("tokens")
        for client in range(count):
            recording = kind.start(D)
            for own, dense in samples[client::count]:
                recording.compare(own, dense)
            payload = encode_moments(
                input_moments(config, 1, {"a": recording.close()}, {"a": (8, D)})
            )
            (found,) = decode_moments(payload, {"a": (8, D)})
            pool.add(found)
        solver = towards(make_solver(config.pruner), config)
        made.append(solver.prune(weight, pool.statistic(), spec))
    assert torch.equal(made[0].dense(), made[1].dense())
    plain = make_solver(config.pruner).prune(weight, pool.statistic(), spec)
    assert not torch.equal(made[0].dense(), plain.dense())


def test_the_cross_moment_travels_where_it_says_something():
    wanted = ("strategy.target=dense", "schedule=iterative")
    found = plans(*wanted)
    assert [plan.crossed for plan in found] == [True] * 3
    assert [plan.crossed for plan in plans(*wanted, "strategy.max_width=16")] == [True, True, False]
    config = config_from_overrides(["strategy=fedhessian", "pruner=sparsegpt", *wanted])
    assert not any(plan.crossed for plan in plan_inputs(config, 0, INPUTS, SHAPES))
    routed = plan_inputs(config, 1, INPUTS, SHAPES, ["down"])
    assert [plan.crossed for plan in routed] == [True, True, False]
    for plan, plain in zip(found, plans(), strict=True):
        size = plan.most_bytes - plain.most_bytes
        assert 0 <= size - 4 * plan.width * (plan.width + 1) <= 512  # and its arrays' headers
