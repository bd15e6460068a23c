"""Flower strategies, one algorithm a file: who is asked for what, and what is done with replies."""

from strategies.course import FederatedPruning
from strategies.fedhessian import FedHessian
from strategies.fedprllm import FedPrLLM
from strategies.fedspallm import FedSpaLLM
from strategies.fedstats import FedStats
from strategies.plan import Plan

__all__ = ["FedHessian", "FedPrLLM", "FedSpaLLM", "FedStats", "FederatedPruning", "Plan"]
