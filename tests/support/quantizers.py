"""Quantisation written from the formulas, number by number."""

import torch

SHARES = [1 - step / 40 for step in range(25)]


def nearest(value, scale, zero, bits):
    """Return the code of a weight, by trying all of them; of two equally near the even step."""
    half = 1 << bits - 1
    return min(
        range(-half, half), key=lambda code: (abs(value - (code - zero) * scale), (code - zero) % 2)
    )


def scale_of(weights, costs, bits, symmetric, dtype):
    """Return scale and zero of one group of weights, a list of floats."""
    half, best = 1 << bits - 1, None
    low, high = min([0.0, *weights]), max([0.0, *weights])
    if symmetric:
        high = max(high, -low)
        low = -high
    for share in SHARES:
        span = torch.tensor((high - low) / (2 * half - 1)) * share
        scale = float(span.to(dtype)) or 1.0
        zero = 0
        if not symmetric:
            zero = round(float(torch.tensor(-half - low * share / scale)))
            zero = min(max(zero, -half), half - 1)
        lost = sum(
            cost * (w - (nearest(w, scale, zero, bits) - zero) * scale) ** 2
            for w, cost in zip(weights, costs, strict=True)
        )
        if best is None or lost < best[0]:
            best = lost, scale, zero
    return best[1:]


def swept(weight, inverses, grid, keep, static=None):
    """Quantise column after column with the inverse Hessian of those that are left.

    ``grid`` is (bits, inputs of a group, whether symmetric). ``keep(j, weight)`` returns the mask
    of column j; ``static`` is (scales, zeros, group of each column) where scales are known before.
    """
    bits, group, symmetric = grid
    dtype, work = weight.dtype, weight.double().clone()
    rows, columns = work.shape
    codes = torch.zeros(rows, columns, dtype=torch.int8)
    scales = torch.ones(rows, columns // group).double()
    zeros = torch.zeros(rows, columns // group)
    places = [j // group for j in range(columns)]
    if static is not None:
        scales, zeros, places = static
    for j in range(columns):
        if static is None and j % group == 0:
            costs = [1 / float(inverses[k][0, 0]) for k in range(j, j + group)]
            for row in range(rows):
                found = scale_of(work[row, j : j + group].tolist(), costs, bits, symmetric, dtype)
                scales[row, j // group], zeros[row, j // group] = found
        kept = keep(j, work)
        for row in range(rows):
            scale, zero = float(scales[row, places[j]]), int(zeros[row, places[j]])
            code = nearest(float(work[row, j]), scale, zero, bits) if kept[row] else zero
            codes[row, j] = code
            error = (work[row, j] - (code - zero) * scale) / inverses[j][0, 0]
            work[row, j:] -= error * inverses[j][0]
    return codes, scales, zeros
