"""Medians over the sums of cohorts, of which nobody sees a term."""

import functools
import statistics
from fractions import Fraction

import numpy as np
import pytest
import torch

from client_app.app import app
from fedprune.config import config_from_overrides
from fedprune.errors import QuorumError
from fedprune.methods.sums import mean_squares
from fedprune.models.loading import load_model
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.statistics import ColumnStatistics
from fedprune.pruning.wanda import WandaPruner
from fedprune.wire.sums import decode_sums
from strategies.secure import cohorts_of
from tests.integration.test_secure_faults import Stopping, Vanishing, go_on, masks, start
from tests.support.grid import LocalGrid
from tests.support.jobs import masks_of, same_masks, small_inputs

SLOW = pytest.mark.slow
ONCE = ("schedule=one_shot", "schedule.prefix=dense")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return [*small_inputs(tmp_path_factory.mktemp("inputs"), texts=60), "strategy.pooling=median"]


def secure(folder, inputs, *overrides, clients=9, cohort=3, grid=None) -> dict:
    least = [f"privacy.min_cohort={cohort}", f"strategy.min_clients={3 * cohort}"]
    grid = grid or Vanishing(clients=clients)
    return start(folder, inputs, "privacy.secure=true", *least, *overrides, grid=grid)


def shapes_of(inputs):
    return load_model(config_from_overrides(inputs[:1]).model)


@pytest.fixture(scope="module")
def answers(tmp_path_factory, inputs):
    """What each of so many clients sends of every block in a plain run."""
    shapes = shapes_of(inputs).layout.shapes()

    @functools.cache
    def of(clients: int):
        found: dict[int, dict[int, list]] = {}

        def keep(partition, reply):
            if reply.metadata.message_type == "train.prune":
                arrays = reply.content["arrays"]
                for block, shape in enumerate(shapes):
                    sums = decode_sums(arrays[f"block-{block:05d}"].data, shape)
                    found.setdefault(partition, {})[block] = sums
            return reply

        grid = LocalGrid(app, clients, tamper=keep)
        start(tmp_path_factory.mktemp("plain") / "run", inputs, *ONCE, grid=grid)
        assert len(found) == clients
        return found

    return of


def by_hand(inputs, answers, cohorts):
    """The masks of the median over cohorts of the mean of their clients' mean squares."""
    loaded, made = shapes_of(inputs), {}
    for block in range(len(loaded.layout.blocks)):
        for place, group in enumerate(answers[0][block]):
            rows = []
            for cohort in cohorts:
                own = [mean_squares(answers[one][block][place], scaled=False) for one in cohort]
                columns = zip(*own, strict=True)
                total = [float(sum(Fraction(float(one)) for one in column)) for column in columns]
                rows.append([np.float32(one / len(cohort)) for one in total])
            middle = [statistics.median(map(float, column)) for column in zip(*rows, strict=True)]
            known = ColumnStatistics(torch.tensor(middle, dtype=torch.float32), 1)
            for name in group.linears:
                spec = MaskSpec(0.5, config_from_overrides([]).pruner.pattern, "row")
                mask = WandaPruner().prune(loaded.weight(block, name), known, spec)
                made[block, name] = mask.to_bool()
    return made


def told(clients: int, cohort: int):
    config = config_from_overrides([f"privacy.min_cohort={cohort}"])
    return cohorts_of(config, range(clients), 3)


def test_the_result_is_the_median_of_the_cohorts_means_to_the_bit(tmp_path, inputs, answers):
    results = secure(tmp_path / "run", inputs, *ONCE)
    cohorts = told(9, 3)
    assert [len(one) for one in cohorts] == [3, 3, 3]
    found = masks_of(tmp_path / "run")
    assert same_masks(found, by_hand(inputs, answers(9), cohorts))
    # It is neither the median over clients nor the mean over all.
    assert not same_masks(found, by_hand(inputs, answers(9), [[one] for one in range(9)]))
    assert not same_masks(found, by_hand(inputs, answers(9), [range(9)]))
    secret = results["strategy"]["secure"]
    assert (secret["clients"], secret["cohorts"], secret["threshold"]) == (9, 3, 2)


@pytest.mark.parametrize("stage", ["query.keys", pytest.param("train.prune", marks=SLOW)])
def test_who_vanishes_is_not_in_its_cohorts_sum(tmp_path, inputs, answers, stage):
    cohorts = told(15, 4)
    assert [len(one) for one in cohorts] == [5, 5, 5]
    secure(tmp_path / "run", inputs, *ONCE, cohort=4, grid=Vanishing({2: stage}, clients=15))
    left = [[one for one in cohort if one != 2] for cohort in cohorts]
    assert same_masks(masks_of(tmp_path / "run"), by_hand(inputs, answers(15), left))


@pytest.mark.parametrize(
    "stage",
    ["query.unmask", *(pytest.param(one, marks=SLOW) for one in ("query.keys", "train.prune"))],
)
def test_a_cohort_of_too_few_is_left_out_and_said(tmp_path, inputs, answers, stage, caplog):
    cohorts = told(12, 3)
    assert [len(one) for one in cohorts] == [3, 3, 3, 3]
    gone = dict.fromkeys(cohorts[1][:2], stage)
    results = secure(tmp_path / "run", inputs, *ONCE, grid=Vanishing(gone, clients=12))
    left = [cohort for cohort in cohorts if cohort != cohorts[1]]
    assert same_masks(masks_of(tmp_path / "run"), by_hand(inputs, answers(12), left))
    assert "cohort 2 is left out" in caplog.text
    assert set(results["ledger"]["refused"]) == {f"partition {one}" for one in cohorts[1]}


def test_fewer_than_three_cohorts_stop_the_run_which_can_go_on(tmp_path, inputs):
    secure(tmp_path / "whole", inputs, clients=12)
    gone = {cohort[0]: "train.prune" for cohort in told(12, 3)[:2]}
    with pytest.raises(QuorumError, match="2 cohorts are left, of which the median of at least 3"):
        secure(tmp_path / "run", inputs, grid=Vanishing(gone, clients=12))
    go_on(tmp_path / "run", grid=Vanishing(clients=12))
    assert masks(tmp_path / "run") == masks(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_that_lost_a_cohort_goes_on_where_it_died(tmp_path, inputs):
    gone = {told(12, 3)[1][0]: "train.prune"}  # of the first block
    secure(tmp_path / "whole", inputs, grid=Vanishing(gone, clients=12))
    with pytest.raises(KeyboardInterrupt):  # in the second block: nine sign each
        secure(tmp_path / "run", inputs, grid=Stopping("query.sign", 13, True, gone, 12))
    go_on(tmp_path / "run", grid=Vanishing(gone, clients=12))
    assert masks(tmp_path / "run") == masks(tmp_path / "whole")


def test_a_survey_is_over_the_same_cohorts(tmp_path, inputs):
    results = secure(tmp_path / "run", inputs, "allocation=owl", "sparsity=0.6")
    assert 0.57 < results["sparsity"]["overall"] <= 0.6
    assert not results["ledger"]["refused"]


def test_cohorts_follow_from_the_seed_and_have_no_fewer_than_asked():
    for clients in (9, 11, 40):
        cohorts = told(clients, 3)
        assert len(cohorts) == clients // 3 and min(map(len, cohorts)) >= 3
        assert sorted(one for cohort in cohorts for one in cohort) == list(range(clients))
        config = config_from_overrides(["privacy.min_cohort=3"])
        assert cohorts_of(config, range(clients)[::-1], 3) == cohorts
        assert cohorts_of(config, range(clients), 1) == [list(range(clients))]
        other = config_from_overrides(["privacy.min_cohort=3", "seed=1"])
        assert cohorts_of(other, range(clients), 3) != cohorts
    with pytest.raises(QuorumError, match=r"8 clients take part; 3 cohorts .* 3 take 9"):
        told(8, 3)
