"""Coordinate medians against a slow oracle, and the client that scales half of its columns."""

import json
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client_app.app import app
from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError, QuorumError
from fedprune.methods.sums import MedianPool, SumsPool
from fedprune.wire.sums import ExactSums, InputSums, decode_sums, encode_sums
from tests.support.grid import LocalGrid, answering
from tests.support.jobs import DEMO_SHAPES, job, masks_of

FACTOR = 12.0  # of half of the columns; far louder ones are refused as no text of the public model
MEDIAN = "strategy.pooling=median"


def client(values, tokens, linears=("q", "k")):
    sums = ExactSums(len(values))
    sums.add(np.array(values, dtype=np.float32))
    return InputSums(linears, sums, tokens)


def pool_of(fleet):
    pool = MedianPool()
    for one in fleet:
        pool.add(one)
    return pool


def oracle(fleet):
    """The median of each column's mean squares, by hand."""
    rows = [one.sums.to_float64() / one.tokens for one in fleet if one.tokens]
    return [
        np.float32(float(statistics.median(Fraction(float(np.float32(row[j]))) for row in rows)))
        for j in range(len(rows[0]))
    ]


@given(st.integers(0, 2**31), st.integers(1, 9), st.randoms())
@settings(deadline=None, max_examples=60)
def test_it_is_the_median_of_each_column_in_any_order(seed, count, random):
    rng = np.random.default_rng(seed)
    fleet = [client(rng.lognormal(0, 3, 7), int(rng.integers(1, 900))) for _ in range(count)]
    squares, tokens = pool_of(fleet).result()
    assert tokens == 1 and squares.tolist() == oracle(fleet)
    shuffled = pool_of(random.sample(fleet, count)).result()[0]
    assert squares.tobytes() == shuffled.tobytes()


def test_clients_without_tokens_do_not_count_and_none_at_all_is_nothing():
    fleet = [client([1, 2], 1), client([0, 0], 0), client([3, 8], 1), client([5, 4], 1)]
    pool = pool_of(fleet)
    assert pool.result()[0].tolist() == [3, 4] and pool.seen == 3
    empty = pool_of([client([0, 0], 0)])
    assert empty.result()[0].tolist() == [0, 0] and empty.result()[1] == 0
    with pytest.raises(QuorumError):
        MedianPool().result()


@pytest.mark.parametrize(("count", "bad"), [(8, 1), (8, 3), (64, 16), (64, 31)])
def test_under_half_of_the_clients_cannot_move_a_column_out_of_what_the_others_sent(count, bad):
    rng = np.random.default_rng(count + bad)
    shared = rng.lognormal(0, 0.5, 256)
    honest = [client(shared * rng.lognormal(0, 0.1, 256), 1) for _ in range(count - bad)]
    scale = np.where(np.arange(256) % 2, 1, 1e6)
    forged = [client(shared * scale, 1) for _ in range(bad)]
    squares = pool_of([*honest, *forged]).result()[0]
    rows = np.stack([one.sums.to_float64() for one in honest])
    assert (squares >= rows.min(0) * 0.999999).all() and (squares <= rows.max(0) * 1.000001).all()
    # The sum is theirs.
    pool = SumsPool("clients")
    for one in (*honest, *forged):
        pool.add(one)
    assert (pool.result()[0][::2] > 1000 * rows.max(0)[::2]).all()


def test_one_bad_cohort_of_three_does_not_move_a_column_out_of_the_others_means():
    rng = np.random.default_rng(5)
    cohorts = [[client(rng.lognormal(0, 1, 64), 3) for _ in range(3)] for _ in range(3)]
    cohorts[1][0] = client(rng.lognormal(0, 1, 64) * np.where(np.arange(64) % 2, 1e6, 1e-6), 3)
    pool, means = MedianPool(), []
    for cohort in cohorts:
        sums = SumsPool("clients")
        for one in cohort:
            sums.add(one)
        pool.add_cohort(sums)
        means.append(sums.result()[0] / 3)
    squares = pool.result()[0]
    assert np.allclose(squares, np.median(means, axis=0), rtol=1e-6)
    low, high = np.minimum(means[0], means[2]), np.maximum(means[0], means[2])
    assert (squares >= low * 0.999999).all() and (squares <= high * 1.000001).all()
    again = MedianPool()
    again.restore(pool.state())
    assert again.result()[0].tobytes() == squares.tobytes() and again.seen == 27
    pool.add_cohort(_silent())
    assert pool.result()[0].tobytes() == squares.tobytes()


def _silent():
    sums = SumsPool("clients")
    sums.add(client(np.zeros(64), 0))
    return sums


def scaled(data):
    """Claim larger inputs in half of the columns."""
    groups = []
    for group in decode_sums(data, DEMO_SHAPES):
        values = group.sums.to_float64()
        values[::2] *= FACTOR
        groups.append(client(values, group.tokens, group.linears))
    return encode_sums(groups)


def differing(one, two):
    """Return the share of the mask that differs."""
    changed = sum(np.count_nonzero(one[key] != two[key]) for key in one)
    return changed / sum(mask.size for mask in one.values())


def test_the_attack_that_decides_over_a_sum_fails_against_the_median(tmp_path, short_model):
    plain = ["strategy=fedstats", "data.partition=iid", "schedule.prefix=dense", short_model]
    found = {}
    for name, pooling in (("sum", "clients"), ("median", "median")):
        options = [*plain, f"strategy.pooling={pooling}"]
        job(tmp_path / name, *options, clients=8)
        grid = LocalGrid(app, 8, tamper=answering(scaled, partition=0))
        results = job(tmp_path / f"{name}-attacked", *options, grid=grid)
        assert not results["ledger"]["refused"]  # it is in the right form
        found[name] = masks_of(tmp_path / name), masks_of(tmp_path / f"{name}-attacked")
    price = differing(found["sum"][0], found["median"][0])
    by_sum, by_median = differing(*found["sum"]), differing(*found["median"])
    print(f"without attack {price:.2%}; attacked: sum {by_sum:.2%}, median {by_median:.2%}")
    assert by_sum > 0.05
    assert by_median < 0.02
    assert price < 0.03
    results = json.loads((tmp_path / "median" / "results.json").read_text())
    assert results["method"]["pooling"] == "median"


def test_it_goes_through_an_iterative_run_and_a_survey(tmp_path):
    options = ["strategy=fedstats", MEDIAN, "schedule=iterative", "allocation=owl", "sparsity=0.6"]
    results = job(tmp_path / "run", *options, clients=3)
    assert results["sparsity"]["overall"] > 0.59


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["privacy.secure=true"], "must be at least 9 .*it takes 3 of .*3 clients, got 3"),
        (["privacy.epsilon=8"], "`strategy.pooling` must be 'tokens'"),
    ],
)
def test_what_it_cannot_go_together_with_says_why(options, said):
    fine = ["strategy=fedstats", MEDIAN, "strategy.min_clients=3", "federation.num_clients=4"]
    config_from_overrides([*fine])
    with pytest.raises(ConfigError, match=said):
        config_from_overrides([*fine, "schedule.prefix=dense", *options])
