"""What cannot be had under masks is refused before any work, with the reason and a way out."""

import pytest

from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError

SECURE = ["privacy.secure=true", "federation.num_clients=4", "strategy.min_clients=3"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["strategy.min_clients=2"], "`strategy.min_clients` must be at least"),
        (["privacy.min_cohort=1"], "`privacy.min_cohort` must be"),
        (["strategy.client_weights=samples"], "`strategy.client_weights` must be 'equal'"),
        (["evaluation.federated=true"], "`evaluation.federated` must be false"),
        (["strategy.decode=true"], "`strategy.decode` must be false"),
        (["strategy=fedspallm", "strategy.layer_fraction=0.5"], "`strategy.layer_fraction`"),
        (
            ["strategy=fedhessian", "pruner=sparsegpt", "strategy.moments=eigen"],
            "`strategy.moments` must be 'nystrom'",
        ),
        (
            ["strategy=collect", "strategy.statistics=moments", "strategy.moments=eigen"],
            "`strategy.moments` must be 'nystrom'",
        ),
        (
            ["strategy=fedexperts", "strategy.pooling=worst_client"],
            "`strategy.pooling` must not be 'worst_client'",
        ),
    ],
)
def test_what_cannot_be_a_sum_under_masks_is_refused(overrides, said):
    with pytest.raises(ConfigError, match=said):
        config_from_overrides([*SECURE, *overrides])
    without = [one for one in overrides if not one.startswith("privacy")]
    config_from_overrides([one for one in [*SECURE, *without] if one != "privacy.secure=true"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=fedprllm"],
        ["strategy=fedspallm", "pruner=sparsegpt"],
        ["strategy=fedstats", "strategy.pooling=clients", "schedule=iterative"],
        ["strategy=fedhessian", "pruner=sparsegpt", "strategy.moments=nystrom"],
        ["strategy=fedexperts", "strategy.pooling=clients"],
        ["strategy=depth"],
        ["strategy=collect"],
        ["allocation=owl"],
    ],
)
def test_every_strategy_can_be_asked_for_under_masks(overrides):
    assert config_from_overrides([*SECURE, *overrides]).privacy.secure
