"""Sites that sum under masks; in a small federation each message is a new process of its site."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedprune.privacy.roster import Roster
from fedprune.privacy.secure_client import SecureClient
from fedprune.privacy.secure_server import MaskedSum, SecureServer
from fedprune.privacy.secure_sums import SumPlan, WordSpec
from fedprune.privacy.signing import SigningKey
from tests.support.signing import signed_roster, site_keys

MANY = 10
"""So many sites go on running, for time's sake."""


@dataclass
class Sites:
    """Sites with a roster, and a server that has heard nothing yet."""

    folder: Path
    plan: SumPlan
    keys: Mapping[str, SigningKey]
    roster: Roster
    server: SecureServer = field(init=False)
    _running: dict[str, SecureClient] = field(default_factory=dict)

    def __post_init__(self):
        self.server = SecureServer(self.plan, self.roster)

    @property
    def names(self) -> list[str]:
        return list(self.keys)

    def client(self, name: str, **changes) -> SecureClient:
        if len(self.keys) < MANY or changes:
            return self._started(name, **changes)
        if name not in self._running:
            self._running[name] = self._started(name)
        return self._running[name]

    def _started(self, name: str, **changes) -> SecureClient:
        given = {"plan": self.plan, "roster": self.roster, "folder": self.folder / name, **changes}
        return SecureClient(name=name, signer=self.keys[name], **given)

    def advertise(self, absent: Collection[str] = ()) -> None:
        for name in self.names:
            if name not in absent:
                self.server.add_advert(name, self.client(name).advertise())
        self.server.close_adverts()

    def share(self, absent: Collection[str] = ()) -> None:
        for name in self.server.participants:
            if name not in absent:
                adverts = self.server.adverts_for(name)
                self.server.add_shares(name, self.client(name).shares(adverts))
        self.server.close_shares()

    def receive(self, absent: Collection[str] = ()) -> None:
        for name in self.server.members:
            if name not in absent:
                assert self.client(name).receive(self.server.boxes_for(name)) == ()

    def set_up(self) -> "Sites":
        self.advertise()
        self.share()
        self.receive()
        return self

    def masked(self, of: str, words, absent: Collection[str] = ()) -> MaskedSum:
        found = self.server.sum(of)
        for name in self.server.members:
            if name not in absent:
                found.add(name, self.client(name).masked(of, words[name]))
        return found

    def signed(self, found: MaskedSum, of: str, absent: Collection[str] = ()) -> bytes:
        found.close()
        for name in self.server.members:
            if name not in absent:
                found.add_signature(name, self.client(name).sign(of, found.cohort))
        return found.unmask_request()

    def unmasked(self, found: MaskedSum, of: str, request: bytes, absent=()):
        for name in self.server.members:
            if name not in absent:
                found.add_unmask(name, self.client(name).unmask(of, request))
        return found.total()

    def total(self, of: str, words, absent: Collection[str] = ()):
        """Return a sum that the same sites are absent from at all its stages."""
        found = self.masked(of, words, absent)
        request = self.signed(found, of, absent)
        return self.unmasked(found, of, request, absent)


def sites(folder: Path, count: int, sums: Mapping[str, WordSpec], floor: int = 2):
    """Return so many sites with a plan of sums."""
    keys = site_keys([f"site {number:03}" for number in range(count)])
    # Only who signs with what matters here, not who signed the roster, which takes long for many.
    roster = signed_roster(keys) if count < MANY else Roster({n: k.public for n, k in keys.items()})
    return Sites(folder, SumPlan("run 1", sums, floor), keys, roster)


def drawn(words: WordSpec, names: Collection[str], seed: int = 0):
    """Return words of each site, over the whole range."""
    rng = np.random.default_rng(seed)
    spec = words.spec
    most = np.iinfo(spec.dtype).max
    return {name: rng.integers(0, most, spec.shape, spec.dtype, endpoint=True) for name in names}


def plain_sum(words: WordSpec, terms) -> list[int]:
    """Return the sum of words as Python's integers, modulo the words' size."""
    found = [0] * words.count
    for term in terms:
        found = [a + b for a, b in zip(found, integers(term), strict=True)]
    return [one % (1 << words.bits) for one in found]


def integers(words) -> list[int]:
    """Return words as Python's integers."""
    if words.ndim == 1:
        return [int(one) for one in words]
    return [int(high) << 64 | int(low) for low, high in words]


def check_words(words, layout) -> None:
    """Assert that arrays are the words of a layout."""
    assert list(words) == list(layout)
    for name, spec in layout.items():
        assert (words[name].dtype, words[name].shape) == (spec.dtype, spec.shape), name
