"""Masks to bytes and back on one core."""

import numpy as np

from benchmarks.synthetic import SHAPES
from benchmarks.timing import alternate, report
from fedprune.config.pattern import UNSTRUCTURED, Pattern
from fedprune.wire.masks import BitMask, decode_masks, encode_masks

ROUNDS = 5
PATTERNS = (UNSTRUCTURED, Pattern(2, 4), Pattern(4, 8), Pattern(1, 4), Pattern(6, 32))


def compare(shape: tuple[int, int], pattern: Pattern) -> dict[str, str | float]:
    """Return one row of the table, after checking the round trip."""
    n, m = (pattern.n, pattern.m) if pattern.n and pattern.m else (shape[1] // 2, shape[1])
    rng = np.random.default_rng(0)
    scores = rng.random((shape[0] * shape[1] // m, m), dtype=np.float32)
    mask = BitMask.from_bool((scores.argsort(axis=1) < n).reshape(shape))
    data = encode_masks({"up": mask})
    if decode_masks(data, {"up": shape}) != {"up": mask}:
        raise RuntimeError(f"The {pattern} mask of {shape} did not come back.")
    seconds = alternate(
        {
            "encode": lambda: encode_masks({"up": mask}),
            "decode": lambda: decode_masks(data, {"up": shape}),
        },
        ROUNDS,
    )
    return {
        "linear": f"{shape[0]}x{shape[1]}",
        "pattern": str(pattern),
        "bits a weight": 8 * len(data) / mask.numel,
        "encode, Gweights/s": mask.numel / seconds["encode"] / 1e9,
        "decode, Gweights/s": mask.numel / seconds["decode"] / 1e9,
    }


def main() -> None:
    rows = [compare(SHAPES[0], pattern) for pattern in PATTERNS]
    report("wire", "Masks to bytes and back, one core", rows)


if __name__ == "__main__":
    main()
