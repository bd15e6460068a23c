"""What a mask must be, written from the rule: sort each group, prune its first entries."""

import math
from fractions import Fraction

import numpy as np


def groups_of(shape, spec):
    """Return the comparison groups as lists of (row, column), lower index first."""
    rows, columns = range(shape[0]), range(shape[1])
    if spec.pattern.structured:
        m = spec.pattern.m
        return [[(i, j + k) for k in range(m)] for i in rows for j in columns[::m]]
    if spec.group == "layer":
        return [[(i, j) for i in rows for j in columns]]
    if spec.group == "row":
        return [[(i, j) for j in columns] for i in rows]
    return [[(i, j) for i in rows] for j in columns]


def oracle_mask(scores, spec):
    """Return the boolean mask of non-negative float32 scores."""
    mask = np.ones(scores.shape, dtype=bool)
    for group in groups_of(scores.shape, spec):
        # sorted is stable
        for place in sorted(group, key=lambda place: scores[place])[: _pruned(group, spec)]:
            mask[place] = False
    return mask


def expected_survivors(shape, spec):
    """Return how many weights of a matrix survive."""
    return sum(len(group) - _pruned(group, spec) for group in groups_of(shape, spec))


def _pruned(group, spec):
    if spec.pattern.structured:
        return spec.pattern.m - spec.pattern.n
    round_ = math.floor if spec.rounding == "floor" else math.ceil
    return round_(len(group) * Fraction(str(spec.sparsity)))
