"""Norms decoded from masks on one core, beside plain votes: speed, and distance to pooled norms.

All clients' masks come from the same public weight and norms that differ by a few per cent. The
exact mask is that of their pooled norms. Weights of a client are counted once, however many passes
a step makes over them; at 1 Gbit/s a server receives one Gweight/s.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.synthetic import SHAPES, layer
from benchmarks.timing import alternate, report
from fedprune.config.pattern import Pattern
from fedprune.methods.decoding import Decoder
from fedprune.methods.vote_selection import Rule, select
from fedprune.methods.votes import VoteCounter
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.selection_kernels import wanda_mask
from fedprune.wire.masks import BitMask, popcount

CLIENTS = 8
ROUNDS = 5
SETTINGS = ((SHAPES[0], 0.5, 0.03), (SHAPES[0], 0.7, 0.1), (SHAPES[1], 0.5, 0.03))


def by_votes(masks: Sequence[BitMask]) -> VoteCounter:
    """Count all clients' votes."""
    votes = VoteCounter(masks[0].numel)
    for mask in masks:
        votes.add(mask)
    return votes


def moved(mask: BitMask, share: float) -> BitMask:
    """Return the mask with this share of its bits moved, each within its row."""
    flags = mask.to_bool()
    rng = np.random.default_rng(2)
    count = int(flags.shape[1] * share / 2)
    for row in flags:
        for value in True, False:
            row[rng.choice(np.flatnonzero(row == value), count, replace=False)] = not value
    return BitMask.from_bool(flags)


def differing(mask: BitMask, other: BitMask) -> float:
    """Return the share of bits that differ, in per cent."""
    return 100 * popcount(mask.bits ^ other.bits) / mask.numel


def pooled(clients: Sequence[Tensor]) -> Tensor:
    """Return the norms of all clients, each counting the same."""
    squares = [norms.double() ** 2 for norms in clients]
    return torch.stack([s / s.mean() for s in squares]).sum(dim=0).sqrt().float()


def compare(shape: tuple[int, int], sparsity: float, noise: float) -> dict[str, str | float]:
    """Return one row of the table."""
    weight, norms = layer(shape)
    spec, rng = MaskSpec(sparsity, Pattern(), "row"), np.random.default_rng(1)
    clients = [
        norms * torch.from_numpy(rng.lognormal(0, noise, shape[1]).astype(np.float32))
        for _ in range(CLIENTS)
    ]
    masks = [wanda_mask(weight, client, spec) for client in clients]
    exact = wanda_mask(weight, pooled(clients), spec)
    magnitude = weight.abs().numpy()
    votes = select(by_votes(masks), sparsity, magnitude.ravel(), shape, Rule("row"))
    decoder = Decoder([magnitude])
    honest = max(decoder.add([mask])[0] for mask in masks)
    decoded = wanda_mask(weight, torch.from_numpy(decoder.pooled()).sqrt(), spec)
    seconds = alternate(
        {
            "read": lambda: Decoder([magnitude]),
            "decode": lambda: decoder.fit(masks[:1]),
            "votes": lambda: by_votes(masks),
        },
        ROUNDS,
    )
    return {
        "linear": f"{shape[0]}x{shape[1]}",
        "sparsity": sparsity,
        "noise": noise,
        "votes, Gweights/s": len(masks) * weight.numel() / seconds["votes"] / 1e9,
        "decode, Gweights/s": weight.numel() / seconds["decode"] / 1e9,
        "prepare once, ms": seconds["read"] * 1e3,
        "votes differ, %": differing(votes, exact),
        "decoded differ, %": differing(decoded, exact),
        "violations, honest, %": 100 * honest,
        "1 % moved, %": 100 * decoder.fit([moved(masks[0], 0.01)]).violations[0],
    }


def main() -> None:
    torch.set_num_threads(1)
    rows = [compare(*setting) for setting in SETTINGS]
    title = f"Decoded votes of {CLIENTS} clients, one core; differing bits against pooled norms"
    report("decode", title, rows)


if __name__ == "__main__":
    main()
