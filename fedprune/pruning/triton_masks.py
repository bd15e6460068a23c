"""Masks on the GPU: scores, thresholds and packed bits in Triton kernels.

Agrees with `fedprune.pruning.select.prune_lowest` bit for bit. Rows and N:M groups are read once, a
layer four times.
"""

import torch
import triton
from torch import Tensor

from fedprune.config.count import pruned_count
from fedprune.errors import ModelError
from fedprune.pruning import triton_kernels as kernels
from fedprune.pruning.spec import NOT_FINITE, MaskSpec, check_divides
from fedprune.pruning.triton_launch import launch
from fedprune.wire.masks import BitMask, packed_size

_TILE = 1024  # weights of N:M groups that a program looks at
_LAYER_TILE = 8192  # weights of a layer that a program looks at together
_CHUNKS = 1024  # programs of a layer: enough to fill a GPU, few enough to keep their histograms
_SHIFTS = (20, 10, 0)  # a layer's threshold is found in digits of 11, 10 and 10 bits


def wanda_mask(weight: Tensor, norms: Tensor, spec: MaskSpec) -> BitMask:
    """Return the mask that prunes the lowest ``|weight| * norms`` of each comparison group.

    Parameters
    ----------
    weight : Tensor
        Shape (d_out, d_in), any floating dtype and strides, on the GPU.
    norms : Tensor
        Norms of the linear's inputs, float32, shape (d_in,), non-negative, on the same GPU.
    spec : MaskSpec
        Sparsity, pattern and comparison group. Equal scores: the lower index is pruned first.

    Raises
    ------
    ModelError
        If a score is NaN or infinite, or an N:M pattern does not divide d_in.
    """
    weight = weight.detach()
    d_out, d_in = weight.shape
    if spec.pattern.n is not None and spec.pattern.m is not None:
        check_divides(spec.pattern, d_in)
        bits = _groups(weight.contiguous(), norms, spec.pattern.n, spec.pattern.m)
    elif spec.group == "layer":
        count = pruned_count(weight.numel(), spec.sparsity)
        bits = _layer(weight.contiguous(), norms, count)
    elif spec.group == "row":
        rows = _rows(weight.contiguous(), norms, pruned_count(d_in, spec.sparsity))
        if d_in % 8:
            return BitMask.from_bool(_flags(rows, d_in).cpu().numpy())
        bits = rows.view(-1)
    else:
        columns = (weight.to(torch.float32).abs() * norms).t().contiguous()
        found = prune_count(columns, pruned_count(d_out, spec.sparsity))
        return BitMask.from_bool(found.t().contiguous().cpu().numpy())
    return BitMask(bits.cpu().numpy(), (d_out, d_in))


def prune_count(groups: Tensor, count: int) -> Tensor:
    """Return the boolean mask that prunes the `count` lowest scores of each row.

    As `fedprune.pruning.select.prune_count`, on the GPU.

    Parameters
    ----------
    groups : Tensor
        Scores, float32, shape (groups, size).
    count : int
        At most the size of a group.

    Raises
    ------
    ModelError
        If a score is NaN or infinite.
    """
    groups = groups.contiguous()
    size = groups.shape[1]
    norms = torch.ones(size, device=groups.device)
    if len(groups) == 1:
        return _flags(_layer(groups, norms, count).view(1, -1), size)
    return _flags(_rows(groups, norms, count), size)


def _flags(bits: Tensor, size: int) -> Tensor:
    """Return the first `size` bits of each row of bytes as booleans."""
    lanes = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits[:, :, None] >> lanes & 1).view(len(bits), -1)[:, :size].bool()


def start_rows(weight: Tensor, norms: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Start pruning the `count` lowest scores of each row, and return what will be filled.

    Returns
    -------
    tuple[Tensor, Tensor]
        The mask by rows of whole bytes, shape (rows, ceil(d_in / 8)), and whether each row's scores
        are finite.
    """
    rows, d_in = weight.shape
    bits = torch.empty(rows, packed_size(d_in), dtype=torch.uint8, device=weight.device)
    finite = torch.empty(rows, dtype=torch.bool, device=weight.device)
    width = max(triton.next_power_of_2(d_in), 8)
    launch(
        kernels.rows_kernel,
        rows,
        weight,
        norms,
        bits,
        finite,
        d_in,
        count,
        WIDTH=width,
        num_warps=min(max(width // 1024, 4), 32),
    )
    return bits, finite


def _rows(weight: Tensor, norms: Tensor, count: int) -> Tensor:
    bits, finite = start_rows(weight, norms, count)
    _check(finite)
    return bits


def _groups(weight: Tensor, norms: Tensor, n: int, m: int) -> Tensor:
    """Return the packed mask that keeps n of every m consecutive weights."""
    numel, d_in = weight.numel(), weight.shape[1]
    bits = torch.empty(packed_size(numel), dtype=torch.uint8, device=weight.device)
    programs = triton.cdiv(numel, _TILE)
    finite = torch.empty(programs, dtype=torch.bool, device=weight.device)
    launch(
        kernels.groups_kernel,
        programs,
        weight,
        norms,
        bits,
        finite,
        numel,
        d_in,
        N=n,
        M=m,
        TILE=_TILE,
    )
    _check(finite)
    return bits


def _layer(weight: Tensor, norms: Tensor, count: int) -> Tensor:
    """Return the packed mask of a matrix whose weights compete all: a radix select by histograms.

    Every program keeps its own histograms of a run of weights; the last digit's also tell how many
    of the ties each of them prunes.
    """
    numel, d_in = weight.numel(), weight.shape[1]
    tile = _LAYER_TILE
    chunk = triton.cdiv(triton.cdiv(numel, _CHUNKS), tile) * tile
    programs = triton.cdiv(numel, chunk)
    of = (weight, norms, numel, d_in, chunk)
    code = torch.zeros(1, dtype=torch.int32, device=weight.device)
    left = torch.full((1,), count, dtype=torch.int64, device=weight.device)
    for shift in _SHIFTS:
        counts = torch.empty(programs, kernels.BINS.value, dtype=torch.int32, device=weight.device)
        launch(
            kernels.histogram_kernel,
            programs,
            *of,
            counts,
            code,
            SHIFT=shift,
            TILE=tile,
            num_warps=8,
        )
        if shift == _SHIFTS[0]:
            _check(counts[:, kernels.INFINITY.value >> shift :] == 0)
        ends = counts.sum(0).cumsum(0)
        digit = torch.searchsorted(ends, left, right=True)
        left = left - ends[digit] + counts.sum(0)[digit]
        code = code | (digit << shift).to(torch.int32)
    ties = counts.index_select(1, digit).view(-1)
    quotas = (left - ties.cumsum(0) + ties).to(torch.int32)  # what is left of them before a chunk
    bits = torch.empty(packed_size(numel), dtype=torch.uint8, device=weight.device)
    launch(kernels.below_kernel, programs, *of, code, quotas, bits, TILE=tile, num_warps=8)
    return bits


def _check(finite: Tensor) -> None:
    if not bool(finite.all()):
        raise ModelError(NOT_FINITE)
