"""Flower strategies, one algorithm a file: who is asked for what, and what is done with replies."""

from strategies.base import FederatedPruning
from strategies.fedprllm import FedPrLLM
from strategies.plan import Plan

__all__ = ["FedPrLLM", "FederatedPruning", "Plan"]
