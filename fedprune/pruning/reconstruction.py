"""A pruned block as a function of its survivors: how far it is from the dense one, and which way.

The survivors of a block are fitted to what the dense block gives for the dense model's hidden
states, from the hidden states behind the blocks pruned before: ``block'(h~_t)`` to ``block(h_t)``
(EBFT, Guo et al., arXiv 2402.12419; as the transformer matching of 3BASiL-TM). Masks stay.
A sample's loss is the squared gap as a share of the squared output, so that neither loud samples
nor the scale of a model count. A gradient is in units of each matrix's root mean square weight,
which the public model tells, so that one grid of integers serves every model.

Norms are not fitted: a norm's gain multiplies columns whose survivors are fitted already.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.errors import ModelError
from fedprune.models.changes import changed_survivors
from fedprune.models.experts import by_expert
from fedprune.pruning.paired import PairedWalk
from fedprune.seeds import derive_seed

FRACTION_BITS = 32
"""Losses and gradients are counts of 2**-32."""

MOST_LOSS = 16
"""A sample's loss counts as this at most: the block is destroyed long before."""

_ONE = float(1 << FRACTION_BITS)
BETAS = (0.9, 0.95)
EPSILON = 1e-12


def unit_of(weight: Tensor) -> float:
    """Return a matrix's root mean square weight, in which its survivors' steps are measured."""
    return max(float(weight.detach().double().square().mean().sqrt()), 1e-30)


def held_out(sample: Tensor, seed: int, share: float) -> bool:
    """Return whether a sample is one that survivors are not fitted to.

    It depends on the sample's tokens and the seed alone, so that it does not show who holds it.

    `sample`: token ids, int64, shape (seq_len,). `share`: of all samples, 0 to 1.
    """
    tokens = sample.cpu().contiguous().numpy().astype("<i8").tobytes()
    mark = hashlib.sha256(f"{derive_seed(seed, 'held-out')}/".encode() + tokens).digest()
    return int.from_bytes(mark[:8], "big") < share * 2.0**64


@dataclass(frozen=True)
class Losses:
    """Sums over samples of tokens times loss, counts of 2**-32, and those tokens.

    Additive over clients, without rounding.
    """

    fitted: int = 0
    fitted_tokens: int = 0
    held_out: int = 0
    held_out_tokens: int = 0

    def __add__(self, other: "Losses") -> "Losses":
        """Return the sums over both's samples."""
        return Losses(*(a + b for a, b in zip(self.numbers(), other.numbers(), strict=True)))

    def numbers(self) -> tuple[int, int, int, int]:
        """Return the four sums."""
        return self.fitted, self.fitted_tokens, self.held_out, self.held_out_tokens


class BlockFit:
    """The block where a walk stands, and what it is to give for each sample.

    `walk`: stands at the block, told what became of it (:meth:`PairedWalk.start_from`). `seed`: the
    run's seed, which draws what is held out. `holdout`: the share of samples that survivors are not
    fitted to. Raises ModelError if the blocks pass on more than hidden states, so that no gradient
    can be taken.
    """

    def __init__(self, walk: PairedWalk, seed: int, holdout: float) -> None:
        self.walk = walk
        linears = walk.model.layout.linears(walk.position)
        dense, device = walk.dense_tensors(), walk.device
        self._dense = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in dense.items()
        }
        self._linears = {name: linears[name] for name in walk.changes}
        found = {
            name: changed_survivors(linears[name].orient(dense[linears[name].key]), change)
            for name, change in walk.changes.items()
        }
        self._masks = {
            name: torch.from_numpy(one.mask.to_bool()).to(device) for name, one in found.items()
        }
        self.units = {
            name: unit_of(linear.orient(dense[linear.key]))
            for name, linear in self._linears.items()
        }
        self.start = {name: one.values.float().to(device) for name, one in found.items()}
        self._targets = walk.targets()
        samples = range(walk.num_samples)
        apart = [held_out(walk.samples[number], seed, holdout) for number in samples]
        self.fitted = [number for number in samples if not apart[number]]
        self.held_out = [number for number in samples if apart[number]]

    def loss(self, number: int, survivors: Mapping[str, Tensor]) -> Tensor:
        """Return a sample's squared gap to the dense block's output, as a share of its square.

        `survivors`: linear -> values of its survivors in row-major order, float32, shape
        (survivors,). Raises ModelError if it is NaN or infinite.
        """
        target = self._targets[number].to(self.walk.device).float()
        output = self.walk.differentiable(number, self._tensors(survivors))
        size = target.square().sum()
        gap = (output - target).square().sum() / torch.where(size > 0, size, 1.0)
        if not bool(torch.isfinite(gap)):
            raise ModelError(
                f"block {self.walk.position}: what it gives is NaN or infinite with the survivors "
                "that the server sent. Set reconstruct=none, or a lower reconstruct.learning_rate."
            )
        return gap

    def measured(self, survivors: Mapping[str, Tensor]) -> Losses:
        """Return the losses of all samples."""
        fitted, tokens = self._summed(self.fitted, survivors)
        return Losses(fitted, tokens, *self._summed(self.held_out, survivors))

    def gradient(self) -> tuple[dict[str, Tensor], Losses]:
        """Return the exact sum of the samples' gradients at the start, and the losses there.

        Returns linear -> sum over fitted samples of their tokens times the gradient by its
        survivors, in counts of 2**-32 a unit, int64, shape (survivors,). Each sample's is rounded
        by itself, and cut off at one: sums do not depend on who holds which sample.
        """
        survivors = self._leaves()
        sums = {name: torch.zeros_like(one, dtype=torch.int64) for name, one in self.start.items()}
        total = Losses()
        for number in self.fitted:
            loss, tokens = self.loss(number, survivors), self._tokens(number)
            total += Losses(_counted(loss) * tokens, tokens)
            found = torch.autograd.grad(loss, list(survivors.values()), allow_unused=True)
            for name, gradient in zip(survivors, found, strict=True):
                if gradient is not None:  # of an expert that no token reached there is none
                    sums[name] += _whole(gradient.double() * self.units[name]) * tokens
        return sums, total + self._measured_apart(self.start)

    def local_steps(self, steps: int, rate: float) -> tuple[dict[str, Tensor], Losses]:
        """Return how far Adam moves the survivors on the fitted samples, and the losses before.

        `rate`: Adam's learning rate, in units of a matrix's root mean square weight. Returns linear
        -> change of its survivors in those units, float32, shape (survivors,).
        """
        survivors = self._leaves()
        groups = [
            {"params": [one], "lr": rate * self.units[name]} for name, one in survivors.items()
        ]
        optimizer = torch.optim.Adam(groups, betas=BETAS, eps=EPSILON)
        tokens = sum(map(self._tokens, self.fitted))
        total = Losses()
        for step in range(steps if self.fitted else 0):
            optimizer.zero_grad()
            for number in self.fitted:
                loss, own = self.loss(number, survivors), self._tokens(number)
                (loss * (own / tokens)).backward()  # type: ignore[no-untyped-call]
                if not step:
                    total += Losses(_counted(loss) * own, own)
            optimizer.step()
        moved = {
            name: (one.detach() - self.start[name]) / self.units[name]
            for name, one in survivors.items()
        }
        return moved, total + self._measured_apart(self.start)

    def _leaves(self) -> dict[str, Tensor]:
        return {name: one.clone().requires_grad_() for name, one in self.start.items()}

    def _measured_apart(self, survivors: Mapping[str, Tensor]) -> Losses:
        return Losses(0, 0, *self._summed(self.held_out, survivors))

    def _summed(self, numbers: list[int], survivors: Mapping[str, Tensor]) -> tuple[int, int]:
        """Return the sum over samples of tokens times loss, and their tokens."""
        with torch.no_grad():
            losses = [_counted(self.loss(n, survivors)) * self._tokens(n) for n in numbers]
        return sum(losses), sum(map(self._tokens, numbers))

    def _tokens(self, number: int) -> int:
        return len(self.walk.samples[number])

    def _tensors(self, survivors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the block's tensors with these survivors, float32."""
        tensors = dict(self._dense)
        slices: dict[str, list[Tensor]] = {}
        for name, values in survivors.items():
            linear, mask = self._linears[name], self._masks[name]
            matrix = torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, values)
            stored = matrix.T if linear.transposed else matrix
            if linear.expert is None:
                tensors[linear.key] = stored
            else:
                whole = by_expert(self._dense[linear.key], linear.expert.stacked)
                parts = slices.setdefault(linear.key, list(whole.unbind(0)))
                parts[linear.expert.index] = stored
        made = {key: torch.stack(parts) for key, parts in slices.items()}
        return tensors | {key: one.view_as(self._dense[key]) for key, one in made.items()}


def _counted(loss: Tensor) -> int:
    return round(min(float(loss.detach()), MOST_LOSS) * _ONE)


def _whole(gradient: Tensor) -> Tensor:
    return gradient.clamp(-1, 1).mul(_ONE).round().to(torch.int64)
