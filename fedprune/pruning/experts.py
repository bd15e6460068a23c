"""What a router asks of each expert and what the expert gives: sums over tokens, exact.

For REAP (Lasby et al., arXiv 2510.13999, Eq. 9) and its rivals: of each expert the tokens routed to
it, the weights that the router gave it, the L2 norms of its outputs before they are weighted, and
the products of the last two. Llama 4 multiplies an expert's input by the router's weight, in place
of its output: norm and product are then both the norm of what comes out. Every number becomes an
integer by itself, a count of units of 2**-24, before it meets any other: so sums are the same for
any split of the texts and any order.
"""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedprune.errors import WireError
from fedprune.models.loading import LoadedModel
from fedprune.models.mixture import Experts, find_experts
from fedprune.pruning.block_kinds import BlockKind, BlockSite
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.statistics import Arrays
from fedprune.wire.arrays import ArraySpec

UNIT_BITS = 24
"""A sum is its integer times 2**-UNIT_BITS; of ``tokens`` the integer is the number itself."""

SALIENCY, WEIGHTS, NORMS, TOKENS = "saliency", "weights", "norms", "tokens"
_ARRAYS = (SALIENCY, WEIGHTS, NORMS, TOKENS)
# So that no sum over the pairs of a sample leaves 64 bits before it is looked at.
_LARGEST = 2.0**18
_MOST = 2.0**61  # of a sum that noise was added to
_CHUNK_ELEMENTS = 1 << 22  # outputs that are held at once, beside those of the block itself


class ExpertSums(BlockKind):
    """Of each expert of a block the sums that expert pruning ranks by.

    The arrays are int64, one number an expert: ``saliency``, the sum of router weight times norm of
    output; ``weights`` and ``norms``, the sums of both; ``tokens``, how many were routed to it. A
    block without experts has none.

    `measured_arrays`: which of them are told where noise is added, and there are then: the fewer,
    the less noise.
    """

    name = "experts"
    exact = True
    measured = True

    def __init__(self, measured_arrays: Sequence[str] = _ARRAYS) -> None:
        self._told = tuple(name for name in _ARRAYS if name in measured_arrays)

    def specs(self, site: BlockSite) -> dict[str, ArraySpec]:
        experts = find_experts(site.module)
        names = _ARRAYS if experts else ()
        return {name: ArraySpec("int64", (experts.count if experts else 0,)) for name in names}

    def start(self, site: BlockSite, kept: MutableMapping[str, Any]) -> "ExpertRecording":
        return ExpertRecording(find_experts(site.module))

    def measures(self, site: BlockSite) -> dict[str, int]:
        """See `BlockKind.measures`: one number an expert of each array."""
        return {
            name: spec.shape[0] for name, spec in self.specs(site).items() if name in self._told
        }

    def to_measures(
        self, arrays: Mapping[str, NDArray[Any]], site: BlockSite
    ) -> dict[str, NDArray[np.float64]]:
        return {name: arrays[name].astype(np.float64) for name in self.measures(site)}

    def from_measures(
        self, measures: Mapping[str, NDArray[np.float64]], site: BlockSite, tokens: int
    ) -> Arrays:
        """See `BlockKind.from_measures`; an expert that seems to have no token has no sums."""
        found = {name: _whole(array) for name, array in measures.items()}
        if TOKENS in found:
            for array in found.values():
                array[found[TOKENS] == 0] = 0
        return found

    def check(self, arrays: Mapping[str, NDArray[Any]], site: BlockSite, tokens: int) -> None:
        """See `BlockKind.check`: no expert has a negative sum, or more tokens than there are."""
        super().check(arrays, site, tokens)
        if not arrays:
            return
        if min(int(array.min()) for array in arrays.values()) < 0:
            raise WireError("sums of experts are never negative.")
        most = int(arrays[TOKENS].max())
        if tokens and most > tokens:
            raise WireError(f"an expert has {most} tokens of {tokens} that were promised.")
        unused = arrays[TOKENS] == 0
        if any(array[unused].any() for array in arrays.values()):
            raise WireError("an expert without a token has sums.")


def _whole(numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(np.minimum(numbers, _MOST)).astype(np.int64)


class ExpertRecording:
    """Adds up what the experts of a block give while it runs.

    `experts`: None for a block that has none: then nothing is recorded.
    """

    def __init__(self, experts: Experts | None) -> None:
        self._experts = experts
        self._weights: Tensor | None = None
        count = experts.count if experts else 0
        self._sums = {name: np.zeros(count, dtype=np.int64) for name in _ARRAYS if experts}
        self.top_k = 0
        """Experts that a token was sent to, at most."""

    def hooks(self) -> list[RemovableHandle]:
        """Watch the experts' call."""
        if self._experts is None:
            return []
        # After the call: inputs of the experts' matrices may be watched while it lasts.
        module, router = self._experts.module, self._experts.router
        if router is None:
            return [module.register_forward_hook(self._called, with_kwargs=True)]
        return [
            router.register_forward_hook(self._routed),
            module.register_forward_hook(self._called_on_all),
        ]

    def close(self) -> Arrays:
        """Return the sums of all calls."""
        return dict(self._sums)

    def so_far(self) -> Arrays:
        """Return copies of the sums of all calls until now."""
        return {name: array.copy() for name, array in self._sums.items()}

    def _called(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: object
    ) -> None:
        hidden, chosen, weights = (*args, *kwargs.values())[:3]
        width = chosen.shape[-1]
        self.top_k = max(self.top_k, width)
        hidden = hidden.detach().reshape(-1, hidden.shape[-1])
        chosen, weights = chosen.reshape(-1, width), weights.detach().reshape(-1, width)
        rows = max(1, _CHUNK_ELEMENTS // (width * hidden.shape[-1]))
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            self._add(module, hidden[part], chosen[part], weights[part])

    def _routed(self, router: nn.Module, _args: object, output: Any) -> None:
        """Keep the weights that the router gives the experts, (tokens, experts)."""
        weights = output[0] if isinstance(output, tuple) else output
        self._weights = weights.detach().reshape(-1, len(self._sums[TOKENS]))

    def _called_on_all(self, module: nn.Module, _args: object, output: Tensor) -> None:
        """Add what experts make of all tokens, the rows of each expert after another."""
        weights = self._weights
        if weights is None:
            raise RuntimeError("experts were called before their router.")
        expert, token = torch.nonzero(weights.T, as_tuple=True)
        made = output.detach().reshape(weights.shape[1], len(weights), -1)
        self.top_k = max(self.top_k, int((weights != 0).sum(1).max()))
        norm = torch.linalg.vector_norm(made[expert, token].float(), dim=-1).double()
        weight = weights[token, expert].double().abs()
        self._add_units(expert, {SALIENCY: norm, WEIGHTS: weight, NORMS: norm})

    def _add(self, module: nn.Module, hidden: Tensor, chosen: Tensor, weights: Tensor) -> None:
        """Add some tokens: hidden (tokens, width), chosen and weights (tokens, top_k)."""
        count = len(self._sums[TOKENS])
        token, place = torch.nonzero(chosen < count, as_tuple=True)  # others mean "no expert"
        expert, weight = chosen[token, place], weights[token, place]
        # Each pair of token and expert is a token of its own with one expert, of weight one: so the
        # experts' own code says what one of them gives, in whatever form it keeps them.
        ones = torch.ones_like(weight).unsqueeze(-1)
        output = module.forward(hidden[token], expert.unsqueeze(-1), ones)
        norm = torch.linalg.vector_norm(output.reshape(len(token), -1).float(), dim=-1).double()
        weight = weight.double().abs()
        self._add_units(expert, {SALIENCY: weight * norm, WEIGHTS: weight, NORMS: norm})

    def _add_units(self, expert: Tensor, found: Mapping[str, Tensor]) -> None:
        """Add numbers of pairs of token and expert, float64, to the experts' sums."""
        for name, values in found.items():
            # Written so that NaN fails, which is not below.
            if not bool((values < _LARGEST).all()):
                raise WireError(
                    f"What experts give must be finite and below {_LARGEST:g}, among it is NaN or "
                    "something larger."
                )
            self._sum(name, expert, torch.round(values * 2.0**UNIT_BITS).long())
        self._sum(TOKENS, expert, torch.ones_like(expert))

    def _sum(self, name: str, expert: Tensor, units: Tensor) -> None:
        total = torch.zeros(len(self._sums[name]), dtype=torch.int64, device=units.device)
        # Integers: the order in which a device adds them does not show.
        self._sums[name] += total.index_add_(0, expert, units).cpu().numpy()
        if self._sums[name].min() < 0:
            raise WireError(f"The sums of '{name}' of the experts overflow: too many tokens.")


def experts_per_token(model: LoadedModel) -> int:
    """Return to how many experts of a block a token is sent at most, from a run on two tokens.

    `model`: a mixture of experts; unchanged.
    """
    walk, most = BlockWalk(model, [torch.tensor([0, 1])]), 0
    while walk.blocks_left:
        recording = ExpertRecording(find_experts(model.layout.blocks[walk.position]))
        handles = recording.hooks()
        try:
            walk.advance({})
        finally:
            for handle in handles:
                handle.remove()
        most = max(most, recording.top_k)
    return most
