"""Typed configuration: composed by Hydra, checked before any model loads, frozen afterwards."""

from fedprune.config.allocation import block_sparsity, resolved_allocation
from fedprune.config.compose import (
    SHORTCUTS,
    compose_config,
    config_from_mapping,
    config_from_overrides,
    evaluation_data,
    to_overrides,
)
from fedprune.config.pattern import Pattern
from fedprune.config.resume import Resumption, find_resumption, resumed_config, resumption
from fedprune.config.rounds import for_round, round_sparsity
from fedprune.config.schema import (
    AllocationConfig,
    CardConfig,
    DataConfig,
    EvaluationConfig,
    FederationConfig,
    ModelConfig,
    PrunerConfig,
    RunConfig,
    ScheduleConfig,
    StrategyConfig,
    TrackingConfig,
)
from fedprune.config.text import from_yaml, to_yaml

__all__ = [
    "SHORTCUTS",
    "AllocationConfig",
    "CardConfig",
    "DataConfig",
    "EvaluationConfig",
    "FederationConfig",
    "ModelConfig",
    "Pattern",
    "PrunerConfig",
    "Resumption",
    "RunConfig",
    "ScheduleConfig",
    "StrategyConfig",
    "TrackingConfig",
    "block_sparsity",
    "compose_config",
    "config_from_mapping",
    "config_from_overrides",
    "evaluation_data",
    "find_resumption",
    "for_round",
    "from_yaml",
    "resolved_allocation",
    "resumed_config",
    "resumption",
    "round_sparsity",
    "to_overrides",
    "to_yaml",
]
