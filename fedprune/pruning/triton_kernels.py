"""Triton kernels of masks: scores, thresholds and packed bits in one pass over the weight.

A score is ``|weight| * norm``, one float32 multiplication; its bit pattern without the sign (its
"code") sorts as it does, and all selection is done on codes, exactly.
"""

import triton.language as tl

from fedprune.pruning.triton_launch import gpu_jit

INFINITY = tl.constexpr(0x7F800000)  # the code of +inf; those of NaN lie above
BINS = tl.constexpr(1 << 11)  # values of a histogram's digit
_UNSIGNED = tl.constexpr(0x7FFFFFFF)
_DIGIT = tl.constexpr((1 << 10) - 1)


@gpu_jit
def _codes(weights: tl.tensor, norms: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Return the codes of weights, the highest possible one for those outside."""
    scores = tl.load(weights, mask=inside, other=0.0).to(tl.float32)
    scores *= tl.load(norms, mask=inside, other=0.0)
    return tl.where(inside, scores.to(tl.int32, bitcast=True) & _UNSIGNED, _UNSIGNED)


@gpu_jit
def _places(
    start: tl.tensor, numel: tl.tensor, d_in: tl.tensor, TILE: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return flat places from `start` on, their columns, and whether they are in the matrix."""
    offsets = tl.arange(0, TILE)
    place = start + offsets
    return place, ((start % d_in).to(tl.int32) + offsets) % d_in, place < numel


@gpu_jit
def _pack(bits: tl.tensor, start: tl.tensor, keep: tl.tensor, bound: tl.tensor) -> None:
    """Write flags as bits, the first lowest, from byte `start` on, as far as the bound."""
    size: tl.constexpr = keep.shape[0] // 8
    lanes = tl.arange(0, 8)
    packed = tl.sum(tl.reshape(keep.to(tl.int32), (size, 8)) << lanes[None, :], axis=1)
    places = start + tl.arange(0, size)
    tl.store(bits + places, packed.to(tl.uint8), mask=places < bound)


@gpu_jit
def _threshold(codes: tl.tensor, prune: tl.tensor, low: tl.tensor, high: tl.tensor) -> tl.tensor:
    """Return (threshold, ties): prune all codes below it and `ties` of those equal to it.

    Narrows the bracket low <= threshold <= high by counting codes below a pivot. Pivots are
    interpolated, and bisected wherever interpolation left more than half of the bracket's codes:
    62 + log2(codes) counts suffice for any input, some ten are usual.
    """
    high += 1
    below_low = prune * 0
    below_high = tl.sum((codes < high).to(tl.int32))
    ties = prune
    bisect = prune < 0
    while high - low > 1 and ties > 0:
        share = (prune - below_low).to(tl.float32) / (below_high - below_low).to(tl.float32)
        step = ((high - low).to(tl.float32) * share).to(tl.int32)
        pivot = tl.where(bisect, low + (high - low) // 2, low + step)
        pivot = tl.minimum(tl.maximum(pivot, low + 1), high - 1)
        below = tl.sum((codes < pivot).to(tl.int32))
        inside = below_high - below_low
        if below <= prune:
            low = pivot
            below_low = below
            ties = prune - below
        else:
            high = pivot
            below_high = below
        bisect = (not bisect) and (2 * (below_high - below_low) > inside)
    return low, ties


@gpu_jit
def rows_kernel(  # noqa: PLR0913  a kernel takes plain pointers and numbers
    weight: tl.tensor,
    norms: tl.tensor,
    bits: tl.tensor,
    finite: tl.tensor,
    d_in: tl.tensor,
    prune: tl.tensor,
    WIDTH: tl.constexpr,
) -> None:
    """Prune the lowest scores of one row, which stays in registers."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < d_in
    codes = _codes(weight + row * d_in + column, norms + column, inside)
    low = tl.min(codes)
    high = tl.max(tl.where(inside, codes, 0))
    tl.store(finite + row, high < INFINITY)
    threshold, ties = _threshold(codes, prune, low, tl.minimum(high, INFINITY))
    keep = (codes >= threshold) & inside
    if ties > 0:
        tied = codes == threshold
        keep = keep & ~(tied & (tl.cumsum(tied.to(tl.int32), axis=0) <= ties))
    size = (d_in + 7) // 8
    _pack(bits, row * size, keep, (row + 1) * size)


@gpu_jit
def groups_kernel(  # noqa: PLR0913
    weight: tl.tensor,
    norms: tl.tensor,
    bits: tl.tensor,
    finite: tl.tensor,
    numel: tl.tensor,
    d_in: tl.tensor,
    N: tl.constexpr,
    M: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Keep the N highest of every M scores: those with at least M - N lower ones in their group."""
    start = tl.program_id(0).to(tl.int64) * TILE
    place, column, inside = _places(start, numel, d_in, TILE)
    codes = _codes(weight + place, norms + column, inside)
    own = column % M
    lower = tl.zeros((TILE,), tl.int32)
    for lane in tl.static_range(M):
        of = _codes(weight + place - own + lane, norms + column - own + lane, inside)
        lower += ((of < codes) | ((of == codes) & (lane < own))).to(tl.int32)
    highest = tl.max(tl.where(inside, codes, 0))
    tl.store(finite + tl.program_id(0), highest < INFINITY)
    _pack(bits, start // 8, (lower >= M - N) & inside, (numel + 7) // 8)


@gpu_jit
def histogram_kernel(  # noqa: PLR0913
    weight: tl.tensor,
    norms: tl.tensor,
    numel: tl.tensor,
    d_in: tl.tensor,
    chunk: tl.tensor,
    counts: tl.tensor,
    prefix: tl.tensor,
    SHIFT: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Count a digit of a chunk's codes, wherever the digits above are those of the prefix."""
    start = tl.program_id(0).to(tl.int64) * chunk
    found = tl.zeros((BINS,), tl.int32)
    above: tl.constexpr = SHIFT + 10
    upper = tl.load(prefix) >> above
    for offset in range(0, chunk, TILE):
        place, column, inside = _places(start + offset, numel, d_in, TILE)
        codes = _codes(weight + place, norms + column, inside)
        if SHIFT == 20:
            digit = codes >> SHIFT
        else:
            digit = codes >> SHIFT & _DIGIT
            inside = inside & (codes >> above == upper)
        found += tl.histogram(digit, BINS, mask=inside)
    tl.store(counts + tl.program_id(0) * BINS + tl.arange(0, BINS), found)


@gpu_jit
def below_kernel(  # noqa: PLR0913
    weight: tl.tensor,
    norms: tl.tensor,
    numel: tl.tensor,
    d_in: tl.tensor,
    chunk: tl.tensor,
    code: tl.tensor,
    quotas: tl.tensor,
    bits: tl.tensor,
    TILE: tl.constexpr,
) -> None:
    """Prune a chunk's codes below one code, and as many of those equal to it as are left."""
    start = tl.program_id(0).to(tl.int64) * chunk
    threshold = tl.load(code)
    ties = tl.load(quotas + tl.program_id(0))
    for offset in range(0, chunk, TILE):
        first = start + offset
        place, column, inside = _places(first, numel, d_in, TILE)
        codes = _codes(weight + place, norms + column, inside)
        tied = ((codes == threshold) & inside).to(tl.int32)
        keep = (codes >= threshold) & inside & ((tied == 0) | (tl.cumsum(tied, axis=0) > ties))
        ties -= tl.sum(tied)
        _pack(bits, first // 8, keep, (numel + 7) // 8)
