"""Prune large language models together with the organisations that hold the data."""

__version__ = "0.1.0"
