"""Counting 64 masks, selecting by votes, and decoding masks, on one core.

Counting and selection stand against unpacking and sorting. Selection is timed for every comparison
group, without and with the majority floor. Counting has to read every mask once, selection the
counters, and the magnitudes where many weights are tied.

Decoding reads norms off masks. All clients' masks come from the same public weight and norms that
differ by a few per cent; the exact mask is that of their pooled norms. Weights of a client are
counted once, however many passes a step makes over them; at 1 Gbit/s a server receives one
Gweight/s.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.measure import SHAPES, alternate, floor_of, layer, read_pass, report
from fedprune.config.pattern import GROUPS, Pattern
from fedprune.methods.decoding import Decoder
from fedprune.methods.vote_selection import Rule, select
from fedprune.methods.votes import VoteCounter
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.selection_kernels import prune_products
from fedprune.wire.masks import BitMask, popcount

CLIENTS = 64
NOISE = 0.1  # relative deviation of a client's norms: clients of unlike data
DECODED_CLIENTS = 8
DECODED = ((0, 0.5, 0.03), (0, 0.7, 0.1), (1, 0.5, 0.03))  # shape, sparsity, noise
RULES = [Rule(group, majority_floor=floor) for floor in (False, True) for group in GROUPS]


def by_unpacking(masks: Sequence[BitMask]) -> NDArray[np.uint8]:
    """Count votes the plain way: unpack each mask, add it to byte counters."""
    keeps = np.zeros(masks[0].numel, dtype=np.uint8)
    for mask in masks:
        keeps += np.unpackbits(mask.bits, count=mask.numel, bitorder="little")
    return len(masks) - keeps


def by_counter(masks: Sequence[BitMask]) -> VoteCounter:
    """Count all clients' votes."""
    votes = VoteCounter(masks[0].numel)
    for mask in masks:
        votes.add(mask)
    return votes


def count_and_select(shape: tuple[int, int], rounds: int) -> list[dict[str, str | float]]:
    """Return the rows of one linear, after checking that both counts are the same."""
    weight, norms = layer(shape)
    rng = np.random.default_rng(1)
    masks = []
    for _ in range(CLIENTS):
        noisy = norms * torch.from_numpy(rng.lognormal(0, NOISE, shape[1]).astype(np.float32))
        masks.append(prune_products(weight, noisy, MaskSpec(0.5, Pattern(), "row")))
    votes, plain = by_counter(masks), by_unpacking(masks)
    size = weight.numel()
    if not np.array_equal(votes.counts(0, size), plain):
        raise RuntimeError(f"The votes of {shape} differ.")
    magnitude = weight.abs().flatten().numpy()
    sortable = torch.from_numpy(plain.astype(np.int16))
    plain_select = {
        "layer": lambda: torch.sort(sortable, descending=True),
        "row": lambda: torch.sort(sortable.view(shape), dim=1, descending=True, stable=True),
        "column": lambda: torch.sort(sortable.view(shape), dim=0, descending=True, stable=True),
    }
    selections = {
        f"select half, {rule.group}{', majority' if rule.majority_floor else ''}": rule
        for rule in RULES
    }
    seconds = alternate(
        {
            "count": lambda: by_counter(masks),
            "plain count": lambda: by_unpacking(masks),
            "read": lambda: read_pass(weight),
            **plain_select,
            **{
                step: partial(select, votes, 0.5, magnitude, shape, rule)
                for step, rule in selections.items()
            },
        },
        rounds,
    )
    planes = size // 8 * CLIENTS.bit_length()
    linear = f"{shape[0]}x{shape[1]}"
    rows: list[dict[str, str | float]] = [
        {
            "linear": linear,
            "step": f"count {CLIENTS} masks",
            **row(size * CLIENTS, seconds["count"], seconds["plain count"]),
            **floor_of(seconds["count"], seconds["read"], size * CLIENTS / 8, weight.nbytes),
        }
    ]
    for step, rule in selections.items():
        many_ties = rule.majority_floor or rule.group == "column"
        moved = planes + many_ties * weight.nbytes
        rows.append(
            {
                "linear": linear,
                "step": step,
                **row(size, seconds[step], seconds[rule.group]),
                **floor_of(seconds[step], seconds["read"], moved, weight.nbytes),
            }
        )
    return rows


def row(weights: int, ours: float, plain: float) -> dict[str, float]:
    """Return times and rates of one step."""
    return {
        "plain, ms": plain * 1e3,
        "ours, ms": ours * 1e3,
        "Gweights/s": weights / ours / 1e9,
        "times faster": plain / ours,
    }


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


def decode(
    shape: tuple[int, int], sparsity: float, noise: float, rounds: int
) -> dict[str, str | float]:
    """Return one row of the table."""
    weight, norms = layer(shape)
    spec, rng = MaskSpec(sparsity, Pattern(), "row"), np.random.default_rng(1)
    clients = [
        norms * torch.from_numpy(rng.lognormal(0, noise, shape[1]).astype(np.float32))
        for _ in range(DECODED_CLIENTS)
    ]
    masks = [prune_products(weight, client, spec) for client in clients]
    exact = prune_products(weight, pooled(clients), spec)
    magnitude = weight.abs().numpy()
    votes = select(by_counter(masks), sparsity, magnitude.ravel(), shape, Rule("row"))
    decoder = Decoder([magnitude])
    honest = max(decoder.add([mask])[0] for mask in masks)
    decoded = prune_products(weight, torch.from_numpy(decoder.pooled()).sqrt(), spec)
    seconds = alternate(
        {
            "read": lambda: Decoder([magnitude]),
            "decode": lambda: decoder.fit(masks[:1]),
            "votes": lambda: by_counter(masks),
        },
        rounds,
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


def main(shapes: Sequence[tuple[int, int]] = SHAPES, rounds: int = 5) -> None:
    torch.set_num_threads(1)
    rows = [line for shape in shapes for line in count_and_select(shape, rounds)]
    report("votes", "Votes, one core; plain: unpackbits + add, torch.sort", rows)
    title = f"Decoded votes of {DECODED_CLIENTS} clients; differing bits against pooled norms"
    settings = ((shapes[at], sparsity, noise) for at, sparsity, noise in DECODED)
    report("decode", title, [decode(*setting, rounds) for setting in settings])


if __name__ == "__main__":
    main()
