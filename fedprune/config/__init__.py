"""Typed configuration: composed by Hydra, checked before any model loads, frozen afterwards."""

from fedprune.config.compose import (
    SHORTCUTS,
    compose_config,
    config_from_overrides,
    to_overrides,
)
from fedprune.config.pattern import Pattern
from fedprune.config.schema import (
    DataConfig,
    EvaluationConfig,
    FederationConfig,
    ModelConfig,
    PrunerConfig,
    RunConfig,
    ScheduleConfig,
    StrategyConfig,
)
from fedprune.config.text import from_yaml, to_yaml

__all__ = [
    "SHORTCUTS",
    "DataConfig",
    "EvaluationConfig",
    "FederationConfig",
    "ModelConfig",
    "Pattern",
    "PrunerConfig",
    "RunConfig",
    "ScheduleConfig",
    "StrategyConfig",
    "compose_config",
    "config_from_overrides",
    "from_yaml",
    "to_overrides",
    "to_yaml",
]
