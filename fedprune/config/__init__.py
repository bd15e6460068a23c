"""Typed configuration: composed by Hydra, checked before any model loads, frozen afterwards."""

from fedprune.config.allocation import allocation_of
from fedprune.config.compose import (
    SHORTCUTS,
    Resumption,
    compose_config,
    config_from_mapping,
    config_from_overrides,
    evaluation_data,
    find_resumption,
    from_earlier_yaml,
    resumed_config,
    resumption,
    to_overrides,
)
from fedprune.config.keys import flatten
from fedprune.config.pattern import Pattern
from fedprune.config.schema import (
    AllocationConfig,
    CardConfig,
    DataConfig,
    EvaluationConfig,
    FederationConfig,
    HubDataConfig,
    ModelConfig,
    PrunerConfig,
    RunConfig,
    ScheduleConfig,
    StrategyConfig,
    TrackingConfig,
    find_strategies,
    register_strategy,
    replace,
)
from fedprune.config.sparsity import (
    block_sparsity,
    for_round,
    linear_sparsities,
    resolved_allocation,
    resolved_linears,
    round_sparsity,
)
from fedprune.config.validation import from_yaml, to_yaml
