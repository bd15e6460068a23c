"""What of a model's blocks is not pruned: matrices that stay dense, by name, and their share."""

from collections.abc import Mapping
from dataclasses import dataclass
from logging import INFO, WARNING, getLogger

from fedprune.models.layout import DecoderLayout

MUCH = 0.1
"""Share of the blocks' matrices above which it is a warning that they stay dense."""

_log = getLogger("flwr")
_SHOWN = 6  # names in a line of the log


@dataclass(frozen=True)
class Coverage:
    """The matrices inside a model's blocks.

    Attributes
    ----------
    prunable : int
        Weights that are looked at.
    dense : Mapping[str, int]
        Name inside the block of a parameter that stays as it is, of two or more dimensions and no
        bias -> its weights, or what is left of them, in all blocks together; the largest first.
    """

    prunable: int
    dense: Mapping[str, int]

    @property
    def share(self) -> float:
        """Share of the blocks' matrices that stay dense, from 0 to 1."""
        kept = sum(self.dense.values())
        return kept / (kept + self.prunable) if kept else 0.0

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {"share": self.share, "dense": dict(self.dense)}

    def tell(self) -> None:
        """Say in the log what stays dense; loudly where it is much."""
        if self.dense:
            names = ", ".join(list(self.dense)[:_SHOWN])
            more = f" and {len(self.dense) - _SHOWN} more" if len(self.dense) > _SHOWN else ""
            level = WARNING if self.share > MUCH else INFO
            _log.log(
                level,
                "%.2f %% of the matrices in the blocks stay dense: %s%s",
                100 * self.share,
                names,
                more,
            )


def coverage(layout: DecoderLayout) -> Coverage:
    """Return what of a model's blocks is looked at, and what is not.

    Parameters
    ----------
    layout : DecoderLayout
        The blocks; their weights may be on the meta device.
    """
    prunable, dense = 0, dict[str, int]()
    for index, block in enumerate(layout.blocks):
        taken: dict[str, int] = {}
        for linear in layout.linears(index).values():
            rows, columns = linear.shape
            taken[linear.key] = taken.get(linear.key, 0) + rows * columns
        prunable += sum(taken.values())
        for name, parameter in block.named_parameters():
            left = parameter.numel() - taken.get(name, 0)
            if left and parameter.ndim > 1 and not name.endswith("bias"):
                dense[name] = dense.get(name, 0) + left
    return Coverage(prunable, dict(sorted(dense.items(), key=lambda one: -one[1])))
