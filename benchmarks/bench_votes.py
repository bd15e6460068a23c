"""Counting 64 masks and selecting by votes on one core, against unpacking and sorting.

Selection is timed for every comparison group, without and with the majority floor. Counting has to
read every mask once, selection the bit planes, and the magnitudes where many weights are tied.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.floor import floor_of, read_pass
from benchmarks.synthetic import SHAPES, layer
from benchmarks.timing import alternate, report
from fedprune.config.pattern import GROUPS, Pattern
from fedprune.methods.vote_selection import Rule, select
from fedprune.methods.votes import VoteCounter
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.selection_kernels import wanda_mask
from fedprune.wire.masks import BitMask

CLIENTS = 64
NOISE = 0.1  # relative deviation of a client's norms: clients of unlike data
ROUNDS = 5
RULES = [Rule(group, majority_floor=floor) for floor in (False, True) for group in GROUPS]


def by_unpacking(masks: Sequence[BitMask]) -> NDArray[np.uint8]:
    """Count votes the plain way: unpack each mask, add it to byte counters."""
    keeps = np.zeros(masks[0].numel, dtype=np.uint8)
    for mask in masks:
        keeps += np.unpackbits(mask.bits, count=mask.numel, bitorder="little")
    return len(masks) - keeps


def by_planes(masks: Sequence[BitMask]) -> VoteCounter:
    """Count votes with bit-sliced counters."""
    votes = VoteCounter(masks[0].numel)
    for mask in masks:
        votes.add(mask)
    return votes


def compare(shape: tuple[int, int]) -> list[dict[str, str | float]]:
    """Return the rows of one linear, after checking that both counts are the same."""
    weight, norms = layer(shape)
    rng = np.random.default_rng(1)
    masks = []
    for _ in range(CLIENTS):
        noisy = norms * torch.from_numpy(rng.lognormal(0, NOISE, shape[1]).astype(np.float32))
        masks.append(wanda_mask(weight, noisy, MaskSpec(0.5, Pattern(), "row")))
    votes, plain = by_planes(masks), by_unpacking(masks)
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
            "count": lambda: by_planes(masks),
            "plain count": lambda: by_unpacking(masks),
            "read": lambda: read_pass(weight),
            **plain_select,
            **{
                step: partial(select, votes, 0.5, magnitude, shape, rule)
                for step, rule in selections.items()
            },
        },
        ROUNDS,
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
        "bit planes, ms": ours * 1e3,
        "Gweights/s": weights / ours / 1e9,
        "times faster": plain / ours,
    }


def main() -> None:
    torch.set_num_threads(1)
    rows = [line for shape in SHAPES for line in compare(shape)]
    report("votes", "Votes, one core; plain: unpackbits + add, torch.sort", rows)


if __name__ == "__main__":
    main()
