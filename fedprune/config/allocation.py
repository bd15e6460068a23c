"""Which allocation a run follows, where the configuration leaves the choice."""

from fedprune.config.schema import RunConfig, StructuredConfig

SURVEYED = ("owl", "sensitivity")
"""Allocations that follow from a survey of the clients' statistics."""


def allocation_of(config: RunConfig) -> str:
    """Return `allocation.name`, of 'auto' what that stands for.

    'auto' is 'sensitivity' where single weights are pruned by what is known of their inputs; else
    'uniform', which no client is asked for: with N:M patterns, whole units, magnitude, nothing to
    prune, and methods that need the same sparsity everywhere.
    """
    name, pruner = config.allocation.name, config.pruner
    if name != "auto":
        return name
    single = pruner.prunes and not pruner.pattern.structured and pruner.name != "magnitude"
    whole = isinstance(pruner, StructuredConfig) or not config.strategy.allocates
    return "sensitivity" if single and config.sparsity and not whole else "uniform"
