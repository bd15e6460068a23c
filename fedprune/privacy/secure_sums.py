"""Sums over clients of which nobody sees a term: what both halves of the protocol agree on.

Bonawitz et al., Practical Secure Aggregation (CCS 2017), with its masks, drop-outs and consistency
check; among many clients each has 100 neighbours (Bell et al., CCS 2020). The keys of all sums of a
run are made and shared at once, each sum has its own. `docs/secure_sums.md` says what is sent and
what holds against whom; :mod:`fedprune.privacy.secure_client` and
:mod:`fedprune.privacy.secure_server` are the two halves.

A client's masked words are, modulo 2**bits and with clients in the order of their names::

    y_u = x_u + stream(own_u) + sum_{v > u} stream(pair_uv) - sum_{v < u} stream(pair_uv)

where own_u is the key of u's self seed and pair_uv the key that u and its neighbour v agree on, for
this sum and in this context: all that the server told a client before it answered. A server that
tells two clients different things, so that one of them can be told from the sum, gets words whose
masks do not cancel (Pasquini et al., Eluding Secure Aggregation, CCS 2022).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import ConfigError, WireError
from fedprune.wire.arrays import Arrays, ArraySpec, encode_arrays

BITS = (8, 16, 32, 64, 128)
LEAST_COHORT = 2
"""A sum over fewer is a client's answer."""

KEY = 32  # bytes of a key, a seed, a hash
SIGNATURE = 64
MOST_CLIENTS = 1 << 16
MOST_SUMS = 1 << 14
_MOST_TEXT = 1 << 24
_PLAN = ("run", "sums", "layout", "floor")


class Signer(Protocol):
    """A site's signing key, as :class:`fedprune.privacy.signing.SigningKey`."""

    def sign(self, data: bytes, *, purpose: str, run: str) -> bytes:
        """Return a signature of 64 bytes."""
        ...


class Verifier(Protocol):
    """Who may take part, as :class:`fedprune.privacy.roster.Roster`."""

    def holds(self, site: str, signature: bytes, data: bytes, *, purpose: str, run: str) -> bool:
        """Whether a signature is that of a site that may take part."""
        ...


class Unsigned:
    """In place of a roster: signs with zeros and believes every signature.

    Secure sums without a roster hold against a server that follows the protocol and looks at what
    it gets, but not against one that makes up participants: it carries the keys, and could give its
    own.
    """

    def sign(self, data: bytes, *, purpose: str, run: str) -> bytes:
        """Return what stands where a signature would."""
        return bytes(SIGNATURE)

    def holds(self, site: str, signature: bytes, data: bytes, *, purpose: str, run: str) -> bool:
        """Believe it."""
        return True


@dataclass(frozen=True)
class WordSpec:
    """Terms of sums: unsigned integers, added modulo 2**bits."""

    count: int
    bits: int  # of each, one of `BITS`. A word of 128 bits is two uint64, the lower one first.

    @property
    def nbytes(self) -> int:
        """The bytes of all of them."""
        return self.count * self.bits // 8

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the array that holds them."""
        return np.dtype(f"uint{min(self.bits, 64)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that holds them."""
        return (self.count, 2) if self.bits == 128 else (self.count,)

    @property
    def spec(self) -> ArraySpec:
        """The array that holds them, on the wire."""
        return ArraySpec(self.dtype.name, self.shape)

    @property
    def message(self) -> dict[str, ArraySpec]:
        """The arrays of a client's masked words on the wire."""
        return {"words": self.spec, "context": ArraySpec("uint8", (KEY,))}


@dataclass(frozen=True)
class SumPlan:
    """Which sums a run will ask for; everybody has the same or finds that signatures do not hold.

    Raises ConfigError if there are no sums, too many, or the floor is below :data:`LEAST_COHORT`.
    """

    run: str  # what no other run is called
    sums: Mapping[str, WordSpec]  # their names and terms, in the order in which keys are made
    floor: int  # the fewest clients that a sum may be of

    def __post_init__(self) -> None:
        """Check the numbers."""
        for words in self.sums.values():
            if words.bits not in BITS or not 1 <= words.count < 1 << 48:
                raise ConfigError(
                    f"A secure sum has 1 or more words of {', '.join(map(str, BITS))} bits, got "
                    f"{words.count} of {words.bits}."
                )
        if not 1 <= self.keys <= MOST_SUMS:
            raise ConfigError(f"A run has 1 to {MOST_SUMS} secure sums, got {self.keys}.")
        if not LEAST_COHORT <= self.floor <= MOST_CLIENTS:
            raise ConfigError(
                f"A secure sum is over {LEAST_COHORT} to {MOST_CLIENTS} clients, got a floor of "
                f"{self.floor} (`privacy.min_cohort`)."
            )

    @property
    def keys(self) -> int:
        """How many keys each client makes: one a sum."""
        return len(self.sums)

    def words(self, sum_name: str) -> WordSpec:
        """Return the terms of a sum; WireError if it is not planned."""
        if sum_name not in self.sums:
            raise WireError("the sum that was asked for is not one of this run's plan.")
        return self.sums[sum_name]

    def key_of(self, sum_name: str) -> int:
        """Return the place of a sum's key; WireError if the sum is not planned."""
        self.words(sum_name)
        return list(self.sums).index(sum_name)

    def to_bytes(self) -> bytes:
        """Return it as named arrays; the same plan is the same bytes."""
        layout = [(words.count, words.bits) for words in self.sums.values()]
        return encode_arrays(
            {
                "run": text_array(self.run),
                "sums": text_array(json.dumps(list(self.sums))),
                "layout": np.array(layout, np.uint64),
                "floor": np.array([self.floor], np.uint64),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what :meth:`to_bytes` made; WireError if it is something else."""
        arrays = Arrays(data, _PLAN)
        run, told = take_text(arrays, "run"), take_text(arrays, "sums")
        names = read_names(told)
        layout = arrays.take("layout", ArraySpec("uint64", (len(names), 2))).tolist()
        (floor,) = arrays.take("floor", ArraySpec("uint64", (1,))).tolist()
        arrays.finish()
        try:
            words = [WordSpec(count, bits) for count, bits in layout]
            return cls(run, dict(zip(names, words, strict=True)), floor)
        except ConfigError as error:
            raise WireError(f"a plan of secure sums: {error}") from None

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the plan."""
        return hashlib.sha256(bound("plan", self.to_bytes())).digest()


def bound(label: str, *parts: bytes) -> bytes:
    """Return bytes that no other label and parts give, to be hashed, signed or bound to a key."""
    given = (b"fedprune secure sums 1", label.encode(), *parts)
    return b"".join(len(part).to_bytes(8, "little") + part for part in given)


def text_array(text: str) -> NDArray[np.uint8]:
    """Return text as an array of bytes."""
    return np.frombuffer(text.encode(), np.uint8)


def take_text(arrays: Arrays, name: str) -> str:
    """Take text out of a message; WireError if it is none."""
    shape = arrays.announced(name).shape
    if len(shape) != 1 or shape[0] > _MOST_TEXT:
        raise WireError(f"'{name}' must be text of at most {_MOST_TEXT} bytes.")
    try:
        return bytes(arrays.take(name, ArraySpec("uint8", shape))).decode()
    except UnicodeDecodeError:
        raise WireError(f"'{name}' must be text.") from None


def names_array(names: Sequence[str]) -> NDArray[np.uint8]:
    """Return names as an array of bytes."""
    return text_array(json.dumps(list(names)))


def read_names(text: str) -> list[str]:
    """Return different names of what :func:`json.dumps` made of a list of such; else WireError."""
    try:
        names: Any = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    sound = isinstance(names, list) and all(
        isinstance(name, str) and name and name.isprintable() for name in names
    )
    if not sound or len(set(names)) != len(names) or json.dumps(names) != text:
        raise WireError("a list of names must be different printable names in JSON.")
    return list(names)
