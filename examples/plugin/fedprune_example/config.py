"""The method's own keys: none beside those that every method has."""

from fedprune.config import StrategyConfig

CONFIG = StrategyConfig
