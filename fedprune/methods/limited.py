"""What a sample adds to sums, as numbers that have a length, and how it is kept short.

A statistic of columns is, of a sample, a number a column and its tokens; one of a whole block says
itself which numbers (`BlockKind.measures`). None is ever negative. Numbers are measured by what
public text makes of them, and those of a :class:`Share` are made shorter together. The squares of
the shares' lengths add up to that of all: so, whatever a sample is, it moves all sums of a run
together by one length at most, also where later questions depend on earlier answers.
"""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedprune.errors import ConfigError, WireError
from fedprune.methods.exchange import Summed
from fedprune.methods.public_model import PublicModel
from fedprune.methods.public_text import PublicText, token_inputs
from fedprune.models.loading import LoadedModel
from fedprune.privacy.noise import clipped, part_norm, unit
from fedprune.pruning.block_kinds import BlockKind, BlockSite, RunningRecording
from fedprune.pruning.blocks import input_groups
from fedprune.pruning.statistics import (
    Arrays,
    ColumnKind,
    ColumnSums,
    LocalKind,
)
from fedprune.wire.arrays import ArraySpec

Inputs = tuple[tuple[str, ...], ...]
Numbers = NDArray[np.float64]

_FLOOR = 0.02  # of the mean over columns: what public text hardly excites is measured by this
_LEAST = 1e-20


@dataclass(frozen=True)
class Share:
    """Numbers of a sample that are made shorter together."""

    kind: str  # the statistic that they are of
    name: str  # the input, by the first linear that reads it, or the measure of a block
    count: int  # how many; of an input its columns, and the tokens last
    linears: tuple[str, ...] = ()  # those that read the input; empty of a block's

    @property
    def key(self) -> str:
        """What messages call it."""
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True)
class Plan:
    """All that is told of a sample in a run."""

    kinds: Mapping[str, Summed]
    shares: tuple[tuple[Share, ...], ...]  # block -> what is sent of it
    # block -> its inputs, each as the linears that read it; those that are public text's, too.
    # Empty without statistics of columns.
    inputs: tuple[Inputs, ...] = ()
    # linears of the first block whose inputs are public text's; nothing is sent of them
    public: frozenset[str] = frozenset()

    @classmethod
    def here(cls, kinds: Sequence[Summed], model: LoadedModel) -> "Plan":
        """Return it as a node finds it out of its own copy of the model, believing nobody."""
        sites = [BlockSite.of(model, block) for block in range(len(model.layout.blocks))]
        if not any(isinstance(kind, ColumnKind) for kind in kinds):
            return cls._made(kinds, sites)
        if model.model not in _FOUND:
            _FOUND[model.model] = input_groups(model), token_inputs(model)
        return cls._made(kinds, sites, *_FOUND[model.model])

    @classmethod
    def of(cls, kinds: Sequence[Summed], model: PublicModel) -> "Plan":
        """Return it as the server has it."""
        if not any(isinstance(kind, ColumnKind) for kind in kinds):
            return cls._made(kinds, model.sites)
        return cls._made(kinds, model.sites, model.inputs, public_text(model).alone)

    @classmethod
    def _made(
        cls,
        kinds: Sequence[Summed],
        sites: Sequence[BlockSite],
        inputs: tuple[Inputs, ...] = (),
        public: frozenset[str] = frozenset(),
    ) -> "Plan":
        shares = tuple(
            tuple(share for kind in kinds for share in _shares(kind, site, inputs, public))
            for site in sites
        )
        return cls({kind.name: kind for kind in kinds}, shares, inputs, public)

    @property
    def total(self) -> int:
        """How many numbers there are of a sample in the whole run."""
        return sum(share.count for block in self.shares for share in block)

    def norm(self, share: Share) -> int:
        """Return the most units that a sample's numbers of a share may be long."""
        return part_norm(share.count, self.total)

    def sent(self, block: int) -> Inputs:
        """Return the inputs of a block that clients tell of."""
        return tuple(dict.fromkeys(one.linears for one in self.shares[block] if one.linears))

    def specs(self, block: int, dtype: str) -> dict[str, ArraySpec]:
        """Return the arrays of a block: of each share as many numbers as it has."""
        return {share.key: ArraySpec(dtype, (share.count,)) for share in self.shares[block]}


_FOUND: "WeakKeyDictionary[nn.Module, tuple[tuple[Inputs, ...], frozenset[str]]]" = (
    WeakKeyDictionary()
)


def _shares(
    kind: Summed, site: BlockSite, inputs: Sequence[Inputs], public: frozenset[str]
) -> Iterator[Share]:
    if isinstance(kind, BlockKind):
        for name, count in kind.measures(site).items():
            yield Share(kind.name, name, count)
        return
    for linears in inputs[site.index]:
        if site.index or not public.issuperset(linears):
            yield Share(kind.name, linears[0], site.shapes[linears[0]][1] + 1, linears)


def public_text(model: PublicModel) -> PublicText:
    """Return what is known of public text; ConfigError if nothing is."""
    if model.public is None:
        raise ConfigError("`privacy.epsilon` needs statistics of public text.")
    return model.public


def public_means(plan: Plan, model: PublicModel, block: int, share: Share, length: int) -> Numbers:
    """Return what public text makes of each number of a share, a sample of so many tokens of it."""
    public, kind = public_text(model), plan.kinds[share.kind]
    samples, observed = public.tokens / length, public.observed[block]
    if isinstance(kind, BlockKind):
        found = kind.to_measures(observed.block[kind.name], model.sites[block])
        return found[share.name] / samples
    known = observed.linears[kind.name].get(share.name)
    if not isinstance(known, ColumnSums) or not known.tokens:
        return np.zeros(share.count)  # public text never reached it
    return np.append(known.sums.double().cpu().numpy(), known.tokens) / samples


def scale_of(means: Numbers, share: Share) -> NDArray[np.float32]:
    """Return by what the numbers of a share are measured, from what public text makes of them.

    Columns by their own, since they differ by orders of magnitude. What a block tells of its own is
    compared, one expert with another, and is measured alike.
    """
    if not means.any():
        return np.ones(share.count, dtype=np.float32)
    found = means.copy()
    if share.linears:
        found[:-1] = np.maximum(found[:-1], _FLOOR * found[:-1].mean())
    else:
        found[:] = found.mean()
    return np.maximum(found, _LEAST).astype(np.float32)


def shortened(
    numbers: Numbers, scale: NDArray[Any], plan: Plan, share: Share, clip: float
) -> NDArray[np.int64]:
    """Return what a sample adds to a share, in whole units and no longer than it may be.

    `numbers`: of one sample, shape (count,). `scale`: by what they are measured, shape (count,).
    `plan`, `share`: how long they may be. `clip`: `privacy.clip`. Raises WireError if one is
    negative or not finite.
    """
    if not (np.isfinite(numbers).all() and numbers.min(initial=0.0) >= 0):
        raise WireError("what a sample adds must be finite and not negative.")
    units = unit(plan.total, clip)
    return clipped(numbers / (np.asarray(scale, dtype=np.float64) / units), plan.norm(share))


class Shortener:
    """Makes what a sample adds to the shares of a block shorter.

    `plan`: how long it may be. `scales`: key of the share -> by what its numbers are measured; of
    others nothing is recorded. `clip`: `privacy.clip`.
    """

    def __init__(
        self, plan: Plan, block: int, scales: Mapping[str, NDArray[Any]], clip: float
    ) -> None:
        self.shares = tuple(one for one in plan.shares[block] if one.key in scales)
        self._plan, self._scales, self._clip = plan, scales, clip

    def __call__(self, share: Share, numbers: Numbers) -> NDArray[np.int64]:
        """Return what a sample adds; errors as :func:`shortened`."""
        return shortened(numbers, self._scales[share.key], self._plan, share, self._clip)

    def kinds(self) -> tuple[list["ClippedKind"], list["ClippedBlock"]]:
        """Return the statistics as they are recorded: of inputs, and of the block."""
        every = self._plan.kinds.values()
        return (
            [ClippedKind(kind, self) for kind in every if isinstance(kind, ColumnKind)],
            [ClippedBlock(kind, self) for kind in every if isinstance(kind, BlockKind)],
        )


@dataclass
class ClippedSums:
    """What samples add to an input, each made shorter where it must be."""

    totals: NDArray[np.int64]  # in units, columns and then tokens, shape (d_in + 1,)
    tokens: int = 0


class _ClippedRecording:
    def __init__(
        self, kind: ColumnKind, share: Share | None, width: int, shorten: Shortener
    ) -> None:
        self._kind, self._share, self._shorten = kind, share, shorten
        self._sample = np.zeros(width + 1)
        self._sums = ClippedSums(np.zeros(width + 1, dtype=np.int64))

    def add(self, inputs: Tensor) -> None:
        self._sample[:-1] += self._kind.sums(inputs).double().cpu().numpy()
        self._sample[-1] += inputs.shape[:-1].numel()

    def end_sample(self) -> None:
        if self._share is not None:
            self._sums.totals += self._shorten(self._share, self._sample)
        elif not np.isfinite(self._sample).all():
            raise WireError("inputs are not finite.")
        self._sample[:] = 0

    def close(self) -> ClippedSums:
        return self._sums


class ClippedKind(LocalKind[ClippedSums]):
    """A statistic of columns, of which each sample adds a vector of limited length.

    Without noise the sums are for nobody else. `kind`: what is summed; its name is this one's, too.
    """

    def __init__(self, kind: ColumnKind, shorten: Shortener) -> None:
        self.name = kind.name
        self._kind, self._shorten = kind, shorten
        own = [share for share in shorten.shares if share.kind == kind.name]
        self._shares = {linear: share for share in own for linear in share.linears}

    def start(self, width: int) -> _ClippedRecording:
        """Return a record that keeps nothing: it must be known of which input it is."""
        return _ClippedRecording(self._kind, None, width, self._shorten)

    def start_at(self, linear: str, width: int) -> _ClippedRecording:
        return _ClippedRecording(self._kind, self._shares.get(linear), width, self._shorten)

    def add(self, first: ClippedSums, second: ClippedSums) -> ClippedSums:
        """Return the sums of both."""
        return ClippedSums(first.totals + second.totals, first.tokens + second.tokens)


@dataclass
class _ClippedBlockRecording:
    """Takes from running sums what each sample adds."""

    kind: BlockKind
    site: BlockSite
    inner: RunningRecording
    shorten: Shortener
    shares: Sequence[Share]
    _before: Arrays = field(init=False)
    _totals: Arrays = field(init=False)

    def __post_init__(self) -> None:
        self._before = self.inner.so_far()
        self._totals = {one.key: np.zeros(one.count, dtype=np.int64) for one in self.shares}

    def hooks(self) -> list[RemovableHandle]:
        return self.inner.hooks()

    def end_sample(self) -> None:
        now = self.inner.so_far()
        added = {name: array - self._before[name] for name, array in now.items()}
        self._before = now
        if not self.shares:
            return
        measures = self.kind.to_measures(added, self.site)
        for share in self.shares:
            self._totals[share.key] += self.shorten(share, measures[share.name])

    def close(self) -> Arrays:
        self.inner.close()
        return self._totals


class ClippedBlock(BlockKind):
    """A statistic of a block, of which each sample adds a vector of limited length.

    What it records are the totals by the shares' keys, which without noise are for nobody else.

    `kind`: what is summed, a measured one; its name is this one's, too.
    """

    def __init__(self, kind: BlockKind, shorten: Shortener) -> None:
        self.name = kind.name
        self._kind, self._shorten = kind, shorten

    def specs(self, site: BlockSite) -> dict[str, ArraySpec]:
        """Refuse: nothing of it is sent as it is."""
        raise RuntimeError("sums without noise are not sent.")

    def start(self, site: BlockSite, kept: MutableMapping[str, Any]) -> _ClippedBlockRecording:
        inner = self._kind.start(site, kept)
        if not isinstance(inner, RunningRecording):
            raise TypeError(f"recordings of '{self.name}' do not say what they have so far.")
        own = [share for share in self._shorten.shares if share.kind == self.name]
        return _ClippedBlockRecording(self._kind, site, inner, self._shorten, own)
