"""Collect: statistics of the dense model, gathered once, that any number of models are made of."""
