"""What of a model's blocks is not pruned: matrices that stay dense, by name, and their share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from logging import INFO, WARNING, getLogger

from fedprune.errors import listing
from fedprune.models.layout import DecoderLayout

MUCH = 0.1
"""Share of the blocks' matrices above which it is a warning that they stay dense."""

NOT_SELECTED = "not selected"
NEVER_CALLED = "not called by text"
SHARED = "of several blocks together"

_log = getLogger("flwr")
_SHOWN = 6  # names in a line of the log


@dataclass(frozen=True)
class Coverage:
    """The matrices inside a model's blocks."""

    prunable: int  # weights that are looked at
    # name inside the block of a parameter that stays as it is, of two or more dimensions and no
    # bias -> its weights, or what is left of them, in all blocks together; the largest first
    dense: Mapping[str, int]
    # name of a parameter -> why it stays dense, where that is known: `NOT_SELECTED`, `NEVER_CALLED`
    # or `SHARED`
    why: Mapping[str, str] = field(default_factory=dict)
    not_selected: int = 0  # weights that stay dense because the user has not selected them

    @property
    def share(self) -> float:
        """Share of the blocks' matrices that stay dense, from 0 to 1."""
        kept = sum(self.dense.values())
        return kept / (kept + self.prunable) if kept else 0.0

    @property
    def unasked(self) -> float:
        """The part of this share that nobody has asked for."""
        kept = sum(self.dense.values())
        return (kept - self.not_selected) / (kept + self.prunable) if kept else 0.0

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "share": self.share,
            "dense": dict(self.dense),
            "why": dict(self.why),
            "unasked": self.unasked,
        }

    def tell(self) -> None:
        """Say in the log what stays dense; loudly where it is much."""
        if self.dense:
            names = [
                f"{name} ({self.why[name]})" if name in self.why else name for name in self.dense
            ]
            level = WARNING if self.unasked > MUCH else INFO
            _log.log(
                level,
                "%.2f %% of the matrices in the blocks stay dense: %s",
                100 * self.share,
                listing(names, _SHOWN),
            )


def coverage(layout: DecoderLayout) -> Coverage:
    """Return what of a model's blocks is looked at, and what is not.

    `layout`: the blocks; their weights may be on the meta device.
    """
    prunable, dense, not_selected = 0, dict[str, int](), 0
    why: dict[str, str] = {}
    reasons, shared = _reasons(layout), set[int]()
    for index, block in enumerate(layout.blocks):
        taken: dict[str, int] = {}
        for linear in layout.linears(index).values():
            rows, columns = linear.shape
            taken[linear.key] = taken.get(linear.key, 0) + rows * columns
        prunable += sum(taken.values())
        for name, parameter in block.named_parameters():
            left = parameter.numel() - taken.get(name, 0)
            again = id(parameter) in shared  # what several blocks have together counts once
            shared.add(id(parameter))
            if left and not again and parameter.ndim > 1 and not name.endswith("bias"):
                dense[name] = dense.get(name, 0) + left
                reason = reasons.get(f"{layout.prefix}.{index}.{name}")
                if reason is not None:
                    why[name] = reason
                    not_selected += left if reason == NOT_SELECTED else 0
    ordered = dict(sorted(dense.items(), key=lambda one: -one[1]))
    return Coverage(prunable, ordered, why, not_selected)


def _reasons(layout: DecoderLayout) -> dict[str, str]:
    """Return parameter, by its name in the model -> why it stays dense."""
    found: dict[str, str] = {}
    for reason, names in (
        (NOT_SELECTED, layout.left_out),
        (NEVER_CALLED, layout.passage.idle),
        (SHARED, layout.shared),
    ):
        for name in names:
            found[f"{name}.weight"] = reason
            # An expert's slice is called by holder, number and parameter.
            holder, _, parameter = name.rpartition(".")
            found.setdefault(f"{holder.rpartition('.')[0]}.{parameter}", reason)
    return found
