"""What calibration leaves behind of a linear's inputs: sums over tokens, additive over clients.

A statistic is open. A :class:`StatisticKind` says how one is recorded while a block runs, which
arrays it is and how they add up; a pruner says by name which one it needs
(:attr:`fedprune.pruning.pruner.Pruner.needs`). Another package brings one by an entry point of the
group ``fedprune.statistics`` that names its class, and a pruner on it by ``fedprune.pruners``.
Sums of one non-negative number a column and token, the usual case, take one method:

    class AbsoluteInputs(ColumnKind):
        name = "absolute"

        def sums(self, inputs: Tensor) -> Tensor:
            return inputs.float().abs().reshape(-1, inputs.shape[-1]).sum(0)

``walk.collect("absolute")`` then gives for each linear a :class:`ColumnSums` of exact sums, which
``get_kind("absolute").arrays`` turns into integers to send; the server reads, adds and hands them
to the pruner (:class:`fedprune.methods.sums.StatisticPool`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.errors import ConfigError, WireError
from fedprune.plugins import STATISTICS, load_plugin, plugin_names
from fedprune.pruning.hessian import Factor, inverse_factor, retargeted
from fedprune.wire.sums import LIMBS, ExactSums

Arrays = dict[str, NDArray[Any]]

NOTHING = "nothing"
"""What a pruner needs that looks at no text; the name of no kind."""

_CHUNK_ELEMENTS = 1 << 20  # what is summed of a chunk stays in a core's cache
_DIGIT = np.int64(0xFFFFFFFF)


class Statistic(Protocol):
    """What is known of one input. Linears that read the same input share the object."""

    @property
    def tokens(self) -> int:
        """Number of tokens summed."""
        ...


S = TypeVar("S", bound=Statistic)
S_co = TypeVar("S_co", bound=Statistic, covariant=True)


class Recording(Protocol[S_co]):
    """A statistic of one input while its block runs."""

    def add(self, inputs: Tensor) -> None:
        """Add what enters the linears: shape (..., d_in), any floating dtype, on any device."""
        ...

    def close(self) -> S_co:
        """Return the statistic; called once, after the last input."""
        ...


@runtime_checkable
class PairedRecording(Protocol):
    """A recording that also sees what the same tokens are in the dense model."""

    def compare(self, inputs: Tensor, dense: Tensor) -> None:
        """Add what enters the linears, and what does in the dense model, row by row the same."""
        ...


@runtime_checkable
class SampleRecording(Protocol):
    """A record that must know where one sample ends and the next begins."""

    def end_sample(self) -> None:
        """Take it that all inputs of a sample were added; called after each, if they run alone."""
        ...


class StatisticKind(ABC, Generic[S]):
    """A named sum over calibration tokens, and how it is recorded, carried and added up.

    What a sample contributes must depend on that sample alone.
    """

    name: str  # what a pruner's ``needs`` and :func:`get_kind` find it by
    # whether :meth:`arrays` are integers whose elementwise sums over clients are the arrays of the
    # added statistics, whatever the order: then it can be summed under secure aggregation
    exact: bool = False
    # the kind that is recorded of inputs too wide for this one (`strategy.max_width`)
    instead: str | None = None
    # what leaves a node, of :data:`fedprune.config.schema.PAYLOADS`; its operator allows it
    payload: str = "sums"
    # whether its recordings compare inputs with those of the dense model
    # (:class:`PairedRecording`), so that a walk must carry both
    # (:class:`fedprune.pruning.paired.PairedWalk`)
    paired: bool = False

    @abstractmethod
    def start(self, width: int) -> Recording[S]:
        """Return an empty record of an input of so many columns, d_in."""

    def start_at(self, linear: str, width: int) -> Recording[S]:
        """Return an empty record of a linear's input; by default it is alike for all."""
        return self.start(width)

    @abstractmethod
    def arrays(self, statistic: S) -> Arrays:
        """Return a statistic as named arrays, whose shapes follow from d_in; not its tokens."""

    @abstractmethod
    def read(self, arrays: Mapping[str, NDArray[Any]], width: int, tokens: int) -> S:
        """Return the statistic of received or summed arrays.

        Raises
        ------
        WireError
            If a name, dtype, shape or number is not one that :meth:`arrays` can return.
        """

    @abstractmethod
    def add(self, first: S, second: S) -> S:
        """Return the statistic of both's tokens; neither is used afterwards."""


class LocalKind(StatisticKind[S]):
    """A statistic that never leaves its process."""

    def arrays(self, statistic: S) -> Arrays:
        """Refuse: it is for nobody else."""
        raise RuntimeError(f"'{self.name}' is not sent.")

    def read(self, arrays: Mapping[str, NDArray[Any]], width: int, tokens: int) -> S:
        """Refuse, as :meth:`arrays`."""
        raise RuntimeError(f"'{self.name}' is not sent.")


@dataclass
class ColumnSums:
    """A sum of non-negative numbers over tokens, one a column."""

    sums: Tensor  # float32, shape (d_in,)
    tokens: int  # number of tokens summed
    # the same sums before they were rounded to float32, where they are known
    exact: ExactSums | None = None


class ColumnStatistics(ColumnSums):
    """Sum of squares of each input: ``sums`` of x_j**2."""

    @property
    def sum_squares(self) -> Tensor:
        """Sum over tokens of x_j**2, float32, shape (d_in,)."""
        return self.sums

    @property
    def norms(self) -> Tensor:
        """L2 norm of each input over all tokens, float32, shape (d_in,)."""
        # The root of a float32 in double precision, rounded once, is the correctly rounded one on
        # every machine; some processors' float32 vector roots are an ulp off.
        return self.sum_squares.double().sqrt().float()


@dataclass(frozen=True, eq=False)
class Deviation:
    """How the inputs x~ behind pruned blocks differ from those of the dense model, x.

    Both are sums over tokens, and add up over clients like second moments.
    """

    # sum_t (x_t - x~_t) x~_t^T, float32, shape (d_in, d_in), not symmetric. With the second moments
    # it is the cross moment of dense and pruned inputs, sum_t x_t x~_t^T.
    cross: Tensor
    squares: Tensor  # sum_t (x_t - x~_t)_j**2, float32, shape (d_in,)


@dataclass
class MomentStatistics:
    """Second moments of a linear's inputs: G = sum_t x_t x_t^T, the Hessian of its output error.

    Linears that share an input share one object, so that what is derived from it is computed once.
    """

    moments: Tensor  # symmetric, float32, shape (d_in, d_in)
    tokens: int  # number of tokens summed
    # how the inputs differ from the dense model's, where that was recorded and can be told
    deviation: Deviation | None = None
    # second moments of the loss's gradients at the outputs of the one linear that is pruned, shape
    # (d_out, d_out), where they are known (see `fedprune.pruning.output_gradients`)
    outputs: Tensor | None = None
    _factors: dict[float, Factor] = field(default_factory=dict, repr=False, compare=False)
    _ordered: dict[float, tuple[Tensor, Factor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def columns(self) -> ColumnStatistics:
        """The diagonal: sums of squares, rounded."""
        return ColumnStatistics(self.moments.diagonal().clone(), self.tokens)

    def target(self, weight: Tensor, damping: float) -> Tensor:
        """Return the weight to come close to, shape (d_out, d_in).

        Where the deviation is known, the one whose outputs for these inputs are the dense model's
        (see `hessian.retargeted`); else the weight as it is.
        """
        if self.deviation is None:
            return weight
        return retargeted(weight, self.moments, self.deviation.cross, damping)

    def factor(self, damping: float) -> Factor:
        """Return the factor of the damped inverse, computed once (see `hessian.inverse_factor`)."""
        if damping not in self._factors:
            self._factors[damping] = inverse_factor(self.moments, damping)
        return self._factors[damping]

    def ordered_factor(self, damping: float) -> tuple[Tensor, Factor]:
        """Return the inputs by falling sum of squares, and the factor in that order, once made.

        Of equal sums the lower index comes first.
        """
        if damping not in self._ordered:
            order = torch.argsort(self.moments.diagonal(), descending=True, stable=True)
            self._ordered[damping] = order, inverse_factor(self.moments[order][:, order], damping)
        return self._ordered[damping]


def beside(statistic: Statistic | None, outputs: Tensor | None) -> Statistic | None:
    """Return what is known of a linear's inputs together with the moments of its outputs."""
    if outputs is None or not isinstance(statistic, MomentStatistics):
        return statistic
    return replace(statistic, outputs=outputs)


class ColumnKind(StatisticKind[ColumnSums]):
    """Exact sums of one non-negative number a column and token; a subclass says which number.

    The arrays are ``digits``: uint32 of shape (4, d_in), each column's sum in units of 2**-64 to
    the base 2**32, lowest digit first. They add up elementwise in int64.
    """

    exact = True
    made: type[ColumnSums] = ColumnSums

    @abstractmethod
    def sums(self, inputs: Tensor) -> Tensor:
        """Return the sums over the tokens of one sample's inputs, on their device.

        Parameters
        ----------
        inputs : Tensor
            Shape (..., d_in), any floating dtype.

        Returns
        -------
        Tensor
            float32, shape (d_in,), each from 0 to 2**63; computed in float32 or better.
        """

    def start(self, width: int) -> "_ColumnRecording":
        return _ColumnRecording(self, width)

    def arrays(self, statistic: ColumnSums) -> Arrays:
        if statistic.exact is None:
            raise RuntimeError("sums are sent as they were recorded.")
        high, low = statistic.exact.words()
        words = np.stack((low, low >> np.uint64(32), high, high >> np.uint64(32)))
        return {"digits": words.astype(np.uint32)}

    def read(self, arrays: Mapping[str, NDArray[Any]], width: int, tokens: int) -> ColumnSums:
        """See `StatisticKind.read`; a digit of summed arrays may hold carries."""
        digits = arrays.get("digits")
        shape = (LIMBS, width)
        whole = digits is not None and digits.shape == shape and digits.dtype.kind in "iu"
        if digits is None or not whole or len(arrays) != 1:
            raise WireError(f"'{self.name}' is one array of whole digits of shape {shape}.")
        limbs = digits.astype(np.int64)
        if limbs.min(initial=0) < 0 or limbs.max(initial=0) >> 62:
            raise WireError(f"A digit of '{self.name}' is negative or too large.")
        for lower, upper in zip(limbs, limbs[1:], strict=False):
            upper += lower >> 32
            lower &= _DIGIT
        limbs[:, limbs[-1] > _DIGIT] = _DIGIT
        words = limbs.astype(np.uint64)
        shift = np.uint64(32)
        exact = ExactSums.from_words(words[3] << shift | words[2], words[1] << shift | words[0])
        return self.rounded(exact, tokens, "cpu")

    def add(self, first: ColumnSums, second: ColumnSums) -> ColumnSums:
        if first.exact is None or second.exact is None:
            raise RuntimeError("sums add up as they were recorded.")
        first.exact.merge(second.exact)
        return self.rounded(first.exact, first.tokens + second.tokens, "cpu")

    def rounded(self, exact: ExactSums, tokens: int, device: str | torch.device) -> ColumnSums:
        """Return the statistic of exact sums, on a device."""
        return self.made(torch.from_numpy(exact.to_float32()).to(device), tokens, exact)


class _ColumnRecording:
    def __init__(self, kind: ColumnKind, width: int) -> None:
        self._kind = kind
        self._exact = ExactSums(width)
        self._tokens = 0
        self._device = torch.device("cpu")

    def add(self, inputs: Tensor) -> None:
        self._device = inputs.device
        self._tokens += inputs.shape[:-1].numel()
        self._exact.add(self._kind.sums(inputs).cpu().numpy())

    def close(self) -> ColumnSums:
        return self._kind.rounded(self._exact, self._tokens, self._device)


class ColumnSquares(ColumnKind):
    """Sum of squares of each input: all that Wanda and RIA know of a text."""

    name = "columns"
    made = ColumnStatistics

    def sums(self, inputs: Tensor) -> Tensor:
        """Return the sum over tokens of x_j**2 (see `ColumnKind.sums`)."""
        flat = inputs.detach().reshape(-1, inputs.shape[-1])
        total = torch.zeros(flat.shape[1], dtype=torch.float32, device=flat.device)
        for chunk in torch.split(flat, max(1, _CHUNK_ELEMENTS // flat.shape[1])):
            total += chunk.to(torch.float32, copy=True).square_().sum(0)
        return total


@dataclass
class ValueSums:
    """Sums of the inputs themselves, their positive and their negative parts apart."""

    # positive, negative: sums over tokens of max(x_j, 0) and of max(-x_j, 0)
    positive: ExactSums
    negative: ExactSums
    tokens: int  # number of tokens summed

    @property
    def sums(self) -> Tensor:
        """Sum over tokens of x_j, float32, shape (d_in,)."""
        found = self.positive.to_float64() - self.negative.to_float64()
        return torch.from_numpy(found.astype(np.float32))

    @property
    def absolute(self) -> Tensor:
        r"""Sum over tokens of \|x_j\|, float32, shape (d_in,)."""
        found = self.positive.to_float64() + self.negative.to_float64()
        return torch.from_numpy(found.astype(np.float32))


class _Part(ColumnKind):
    """The positive part of each input, or of its negative."""

    def __init__(self, name: str, sign: int) -> None:
        self.name, self._sign = name, sign

    def sums(self, inputs: Tensor) -> Tensor:
        """Return the sum over tokens of max(sign * x_j, 0) (see `ColumnKind.sums`)."""
        flat = inputs.detach().reshape(-1, inputs.shape[-1]).to(torch.float32)
        return (self._sign * flat).clamp_min_(0).sum(0)


class ValueKind(StatisticKind[ValueSums]):
    """Sums of each input and of its absolute value, both from the sums of its two parts.

    The arrays are ``positive`` and ``negative``, each as the ``digits`` of a :class:`ColumnKind`.
    """

    name = "values"
    exact = True
    _parts = (_Part("positive", 1), _Part("negative", -1))

    def start(self, width: int) -> "_ValueRecording":
        return _ValueRecording([part.start(width) for part in self._parts])

    def arrays(self, statistic: ValueSums) -> Arrays:
        found = (statistic.positive, statistic.negative)
        return {
            part.name: part.arrays(part.rounded(sums, statistic.tokens, "cpu"))["digits"]
            for part, sums in zip(self._parts, found, strict=True)
        }

    def read(self, arrays: Mapping[str, NDArray[Any]], width: int, tokens: int) -> ValueSums:
        if set(arrays) != {part.name for part in self._parts}:
            raise WireError(f"'{self.name}' is two arrays, 'positive' and 'negative'.")
        found = [part.read({"digits": arrays[part.name]}, width, tokens) for part in self._parts]
        positive, negative = (sums.exact or ExactSums(width) for sums in found)
        return ValueSums(positive, negative, tokens)

    def add(self, first: ValueSums, second: ValueSums) -> ValueSums:
        first.positive.merge(second.positive)
        first.negative.merge(second.negative)
        return ValueSums(first.positive, first.negative, first.tokens + second.tokens)


class _ValueRecording:
    def __init__(self, parts: Sequence[_ColumnRecording]) -> None:
        self._parts = parts

    def add(self, inputs: Tensor) -> None:
        for part in self._parts:
            part.add(inputs)

    def close(self) -> ValueSums:
        positive, negative = (part.close() for part in self._parts)
        if positive.exact is None or negative.exact is None:
            raise RuntimeError("sums are kept as they were recorded.")
        return ValueSums(positive.exact, negative.exact, positive.tokens)


class SecondMoments(StatisticKind[MomentStatistics]):
    """All products of two inputs: what solvers that reconstruct need.

    The array is ``moments``, float32 of shape (d_in, d_in); its sums are rounded.
    """

    name = "moments"
    instead = "columns"
    payload = "moments"

    def start(self, width: int) -> "_MomentRecording":
        return _MomentRecording(width)

    def arrays(self, statistic: MomentStatistics) -> Arrays:
        return {"moments": statistic.moments.cpu().numpy()}

    def read(self, arrays: Mapping[str, NDArray[Any]], width: int, tokens: int) -> MomentStatistics:
        if len(arrays) != 1:
            raise WireError(f"'{self.name}' is one array, 'moments'.")
        return MomentStatistics(_finite(arrays, "moments", width, width), tokens)

    def add(self, first: MomentStatistics, second: MomentStatistics) -> MomentStatistics:
        total = first.moments.double() + second.moments.double()
        return MomentStatistics(total.float(), first.tokens + second.tokens)


def _finite(arrays: Mapping[str, NDArray[Any]], name: str, *shape: int) -> Tensor:
    found = arrays.get(name)
    right = found is not None and found.dtype == np.float32 and found.shape == shape
    if found is None or not right or not np.isfinite(found).all():
        raise WireError(f"'{name}' must be one finite float32 array of shape {shape}.")
    return torch.from_numpy(found)


class _MomentRecording:
    def __init__(self, width: int) -> None:
        self._width = width
        self._total: Tensor | None = None
        self._tokens = 0

    def add(self, inputs: Tensor) -> None:
        self._tokens += inputs.shape[:-1].numel()
        flat = inputs.detach().reshape(-1, inputs.shape[-1]).to(torch.float32)
        if self._total is None:
            self._total = flat.T @ flat
        else:
            self._total.addmm_(flat.T, flat)

    def close(self) -> MomentStatistics:
        total = torch.zeros(self._width, self._width) if self._total is None else self._total
        return MomentStatistics(total, self._tokens)


class PairedMoments(SecondMoments):
    """Second moments, and how the inputs differ from those of the dense model.

    The arrays are those of :class:`SecondMoments`, ``cross`` and ``squares`` (:class:`Deviation`).
    Inputs that not every token reaches, an expert's, are not compared: other tokens may reach it
    in the dense model.
    """

    name = "paired_moments"
    paired = True

    def start(self, width: int) -> "_PairedRecording":
        return _PairedRecording(width)

    def arrays(self, statistic: MomentStatistics) -> Arrays:
        found, deviation = super().arrays(statistic), statistic.deviation
        width = len(statistic.moments)
        cross = torch.zeros(width, width) if deviation is None else deviation.cross
        squares = torch.zeros(width) if deviation is None else deviation.squares
        return found | {"cross": cross.cpu().numpy(), "squares": squares.cpu().numpy()}

    def read(self, arrays: Mapping[str, NDArray[Any]], width: int, tokens: int) -> MomentStatistics:
        parts = {name: array for name, array in arrays.items() if name not in ("cross", "squares")}
        found = super().read(parts, width, tokens)
        cross = _finite(arrays, "cross", width, width)
        deviation = Deviation(cross, _finite(arrays, "squares", width))
        return MomentStatistics(found.moments, tokens, deviation)

    def add(self, first: MomentStatistics, second: MomentStatistics) -> MomentStatistics:
        found, both = super().add(first, second), (first.deviation, second.deviation)
        known = [one for one in both if one is not None]
        if known:
            cross = sum(one.cross.double() for one in known)
            squares = sum(one.squares.double() for one in known)
            found.deviation = Deviation(
                torch.as_tensor(cross).float(), torch.as_tensor(squares).float()
            )
        return found


class _PairedRecording(_MomentRecording):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self._cross: Tensor | None = None
        self._squares: Tensor | None = None

    def compare(self, inputs: Tensor, dense: Tensor) -> None:
        self.add(inputs)
        flat = inputs.detach().reshape(-1, inputs.shape[-1]).to(torch.float32)
        away = dense.detach().reshape(flat.shape).to(torch.float32) - flat
        cross, squares = away.T @ flat, away.square().sum(0)
        self._cross = cross if self._cross is None else self._cross.add_(cross)
        self._squares = squares if self._squares is None else self._squares.add_(squares)

    def close(self) -> MomentStatistics:
        found = super().close()
        if self._cross is not None and self._squares is not None:
            found.deviation = Deviation(self._cross, self._squares)
        return found


KINDS: Mapping[str, StatisticKind[Any]] = {
    kind.name: kind for kind in (ColumnSquares(), ValueKind(), SecondMoments(), PairedMoments())
}
"""The kinds that are part of this package, by name."""


def get_kind(name: str) -> StatisticKind[Any]:
    """Return a kind of statistic by name.

    Parameters
    ----------
    name : str
        One of :data:`KINDS`, or the entry point of an installed package.

    Raises
    ------
    ConfigError
        If there is none of this name, or a plugin is none.
    """
    return KINDS[name] if name in KINDS else _plugin(name)


@cache
def _plugin(name: str) -> StatisticKind[Any]:
    if name not in plugin_names(STATISTICS):
        known = ", ".join(f"'{one}'" for one in (*KINDS, *plugin_names(STATISTICS)))
        raise ConfigError(f"There is no statistic '{name}' of a linear's inputs, only {known}.")
    kind = load_plugin(STATISTICS, name)
    made = kind() if callable(kind) else kind
    if not isinstance(made, StatisticKind) or getattr(made, "name", None) != name:
        raise ConfigError(
            f"The plugin '{name}' is no statistic of that name "
            "(see fedprune.pruning.statistics.StatisticKind)."
        )
    return made


def shared_inputs(statistics: Mapping[str, S]) -> list[tuple[tuple[str, ...], S]]:
    """Return each distinct input's linears and statistic, in the order of their first linear.

    Parameters
    ----------
    statistics : Mapping[str, Statistic]
        Name of the linear -> statistic; linears that read the same input share the object.
    """
    names: dict[int, list[str]] = {}
    for name, found in statistics.items():
        names.setdefault(id(found), []).append(name)
    return [(tuple(group), statistics[group[0]]) for group in names.values()]
