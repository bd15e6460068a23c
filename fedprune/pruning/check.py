"""Check that a received mask has the zeros that the configuration asks of every client.

A client that abstains, over-votes or sends noise shows here: an honest mask has an exact number
of survivors in every comparison group.
"""

import numpy as np
from numpy.typing import NDArray

from fedprune.config.count import pruned_count
from fedprune.errors import WireError
from fedprune.pruning.spec import MaskSpec
from fedprune.wire.masks import BitMask


def check_mask(mask: BitMask, spec: MaskSpec, name: str) -> None:
    """Refuse a mask whose groups do not have exactly the right number of survivors.

    Parameters
    ----------
    mask : BitMask
        Shape (d_out, d_in).
    spec : MaskSpec
        What every client was asked for.
    name : str
        The linear, for the message.

    Raises
    ------
    WireError
        Naming linear, group, expected and found survivors.
    """
    if spec.pattern.n is not None and spec.pattern.m is not None:
        expected = spec.pattern.n
        found = mask.to_bool().reshape(-1, spec.pattern.m).sum(axis=1, dtype=np.int64)
        what = f"group of {spec.pattern.m} inputs"
    else:
        expected, found = _unstructured(mask, spec)
        what = "matrix" if spec.group == "layer" else spec.group
    wrong = np.flatnonzero(found != expected)
    if wrong.size:
        first = int(wrong[0])
        raise WireError(
            f"linear '{name}': {what} {first} must have {expected} survivors, got "
            f"{int(found[first])} ({wrong.size} of {found.size} are wrong)."
        )


def _unstructured(mask: BitMask, spec: MaskSpec) -> tuple[int, NDArray[np.int64]]:
    d_out, d_in = mask.shape
    if spec.group == "layer":
        total = d_out * d_in
        return total - pruned_count(total, spec.sparsity, spec.rounding), np.array([mask.survivors])
    if spec.group == "row":
        return d_in - pruned_count(d_in, spec.sparsity, spec.rounding), mask.row_survivors()
    columns = mask.to_bool().sum(axis=0, dtype=np.int64)
    return d_out - pruned_count(d_out, spec.sparsity, spec.rounding), columns
