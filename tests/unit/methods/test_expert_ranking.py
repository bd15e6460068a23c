"""Which experts go: by scores that are fractions of integers, and so that no client loses most."""

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest

from fedprune.methods.fedexperts.ranking import (
    RANKINGS,
    SHARE_BITS,
    drop_fairly,
    drop_lowest,
    expert_scores,
    grouped,
    mean_scores,
    need_shares,
    score_shares,
)

SUMS = {
    "saliency": np.array([40, 90, 0, 21]),
    "weights": np.array([8, 9, 0, 14]),
    "norms": np.array([100, 30, 0, 63]),
    "tokens": np.array([10, 30, 0, 7]),
}
ONE = 2**SHARE_BITS


def test_scores_are_those_of_the_formulas():
    assert expert_scores(SUMS, "reap") == [4, 3, 0, 3]
    assert expert_scores(SUMS, "norm") == [10, 1, 0, 9]
    assert expert_scores(SUMS, "frequency") == [10, 30, 0, 7]
    assert expert_scores(SUMS, "router_weight") == [8, 9, 0, 14]
    assert all(isinstance(one, Fraction) for name in RANKINGS for one in expert_scores(SUMS, name))


def test_a_client_scores_no_higher_for_more_tokens():
    twice = {name: 2 * array for name, array in SUMS.items()}
    for ranking in RANKINGS:
        assert mean_scores(SUMS, ranking).tolist() == mean_scores(twice, ranking).tolist()
        assert score_shares(SUMS, ranking).tolist() == score_shares(twice, ranking).tolist()
        assert need_shares(SUMS, ranking).tolist() == need_shares(twice, ranking).tolist()
    assert mean_scores(SUMS, "reap").tolist() == [n * ONE // 2**24 for n in (4, 3, 0, 3)]
    assert mean_scores(SUMS, "frequency").tolist() == [round(ONE * n / 47) for n in (10, 30, 0, 7)]


def test_scores_of_many_clients_with_large_outputs_add_up():
    largest = 2**18 * 2**24  # the norm of each output that is taken at most
    sums = {**SUMS, "saliency": np.array([largest * 10, 0, 0, largest * 7])}
    total = sum(mean_scores(sums, "reap") for _ in range(1000))
    assert total.tolist() == [1000 * 2**18 * ONE, 0, 0, 1000 * 2**18 * ONE]


def test_shares_are_of_a_clients_own_total():
    assert score_shares(SUMS, "reap").tolist() == [round(ONE * n / 10) for n in (4, 3, 0, 3)]
    assert need_shares(SUMS, "reap").tolist() == [round(ONE * n / 151) for n in (40, 90, 0, 21)]
    nothing = {name: np.zeros(4, dtype=np.int64) for name in SUMS}
    for shares in (mean_scores, score_shares, need_shares):
        assert shares(nothing, "frequency").tolist() == [0, 0, 0, 0]


def test_large_sums_are_compared_without_rounding():
    # As float64 these two are the same number.
    sums = {
        **SUMS,
        "saliency": np.array([2**61 + 1, 2**61, 0, 0]),
        "tokens": np.array([3, 3, 0, 0]),
    }
    scores = expert_scores(sums, "reap")
    assert float(scores[0]) == float(scores[1])
    assert drop_lowest(scores, grouped(4, 1), 3) == [1, 2, 3]


def test_of_equal_scores_the_first_goes_and_each_group_loses_as_many():
    assert drop_lowest([5, 1, 1, 1], grouped(4, 1), 2) == [1, 2]
    assert drop_lowest([9, 8, 1, 2, 3, 4], grouped(6, 2), 1) == [2, 3]
    assert [list(group) for group in grouped(6, 3)] == [[0, 1], [2, 3], [4, 5]]


def random_needs(generator, clients, experts):
    shares = generator.dirichlet(np.full(experts, 0.3), clients)
    return (shares * ONE).astype(np.int64)


def pair_of(needs, groups, drop, dropped):
    """Return the largest excess and the sum of excesses, from the definition."""
    excesses = []
    for own in needs.tolist():
        must = sum(sum(sorted(own[expert] for expert in group)[:drop]) for group in groups)
        excesses.append(sum(own[expert] for expert in dropped) - must)
    return max(excesses), sum(excesses)


def choices(groups, drop):
    """Yield every choice of as many experts of each group."""
    if not groups:
        yield ()
        return
    for first in combinations(groups[0], drop):
        for rest in choices(groups[1:], drop):
            yield (*first, *rest)


@pytest.mark.parametrize("seed", range(40))
def test_the_worst_off_client_is_as_well_off_as_exchanges_can_make_it(seed):
    generator = np.random.default_rng(seed)
    groups = grouped(8, int(generator.choice([1, 2])))
    drop, clients = int(generator.integers(1, 3)), int(generator.integers(1, 6))
    needs = random_needs(generator, clients, 8)
    found = drop_fairly(needs, groups, drop)
    pair = pair_of(needs, groups, drop, found.dropped)
    assert all(len(set(found.dropped) & set(group)) == drop for group in groups)
    assert found.excess == pair[0]
    assert found.lost == max(sum(own[e] for e in found.dropped) for own in needs.tolist())
    pooled = drop_lowest(needs.sum(0).tolist(), groups, drop)
    assert pair <= pair_of(needs, groups, drop, pooled)
    for group in groups:  # no exchange would make it better
        for out in set(group) - set(found.dropped):
            for back in set(group) & set(found.dropped):
                other = [out if expert == back else expert for expert in found.dropped]
                assert pair_of(needs, groups, drop, other) >= pair


def test_the_best_of_all_choices_is_found_nearly_always():
    generator, best = np.random.default_rng(1), 0
    for _ in range(100):
        groups, drop = grouped(8, 1), int(generator.integers(1, 7))
        needs = random_needs(generator, int(generator.integers(1, 9)), 8)
        found = drop_fairly(needs, groups, drop)
        least = min(pair_of(needs, groups, drop, one)[0] for one in choices(groups, drop))
        best += found.excess == least
    assert best >= 97


def test_an_expert_that_only_one_client_needs_stays():
    # Nine clients use experts 0 to 2, a tenth uses 3 and nothing else; by tokens it would go.
    needs = np.array([[ONE // 3] * 3 + [0]] * 9 + [[0, 0, 0, ONE]])
    assert drop_lowest(needs.sum(0).tolist(), grouped(4, 1), 1) == [3]
    found = drop_fairly(needs, grouped(4, 1), 1)
    assert found.dropped == [0] and found.excess == ONE // 3


def test_the_order_of_clients_does_not_show():
    generator = np.random.default_rng(3)
    needs = random_needs(generator, 7, 12)
    found = drop_fairly(needs, grouped(12, 1), 5)
    for _ in range(5):
        assert drop_fairly(generator.permutation(needs), grouped(12, 1), 5) == found
