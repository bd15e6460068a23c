"""A tensor as the bytes that it is made of."""

import torch
from torch import Tensor


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a CPU tensor's elements in row-major order, without a copy if it can.

    Parameters
    ----------
    tensor : Tensor
        Any shape and dtype, on the CPU; copied only where it is not contiguous.
    """
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
