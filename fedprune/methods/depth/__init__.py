"""Depth: blocks that change least go, and a linear map stands in for them."""
