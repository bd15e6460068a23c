"""The server's half of secure sums: it carries keys and shares, adds masked words, opens a sum."""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from fedprune.privacy.secure_sums import SumPlan, Verifier

State = dict[str, NDArray[Any]]


class SecureServer:
    """The set-up of a run's secure sums. Order of arrival never shows in anything.

    Every ``add_...`` checks all before it takes anything; the same bytes again change nothing.

    Parameters
    ----------
    plan : SumPlan
        What it will ask for.
    roster : Verifier
        Whose adverts are taken.

    Attributes
    ----------
    participants : tuple of str
        Whose adverts are in, sorted; empty before :meth:`close_adverts`.
    members : tuple of str
        Whose shares are in, sorted: who can take part in sums; empty before :meth:`close_shares`.
    quorum : int
        How many must be in a sum, sign its list and answer its opening; known after
        :meth:`close_adverts`.
    """

    participants: tuple[str, ...]
    members: tuple[str, ...]
    quorum: int

    def __init__(self, plan: SumPlan, roster: Verifier) -> None:
        raise NotImplementedError

    def add_advert(self, name: str, data: bytes) -> None:
        """Take a client's advert; WireError, naming it, if it is not sound or not its own."""
        raise NotImplementedError

    def close_adverts(self) -> None:
        """Take no more adverts; QuorumError if they are fewer than the plan's floor."""
        raise NotImplementedError

    def adverts_for(self, name: str) -> bytes:
        """Return what a participant is told of the others."""
        raise NotImplementedError

    def add_shares(self, name: str, data: bytes) -> None:
        """Take a participant's encrypted shares; WireError, naming it, if they do not fit."""
        raise NotImplementedError

    def close_shares(self) -> None:
        """Take no more shares; QuorumError if they are of fewer than floor or quorum."""
        raise NotImplementedError

    def boxes_for(self, name: str) -> bytes:
        """Return the shares that are encrypted for a member, and who the members are."""
        raise NotImplementedError

    def sum(self, name: str, spare: int | None = None) -> "MaskedSum":
        """Return a sum of the plan, empty."""
        raise NotImplementedError

    def state(self) -> State:
        """Return all of the set-up as arrays, without the sums."""
        raise NotImplementedError

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError or ValueError if the arrays are not such."""
        raise NotImplementedError


class MaskedSum:
    """One sum: masked words are folded in as they come, then who is in is fixed, then it opens.

    Made by :meth:`SecureServer.sum`.

    Attributes
    ----------
    arrived : tuple of str
        Whose words are in, sorted.
    missing : tuple of str
        Members whose words are not in.
    """

    arrived: tuple[str, ...]
    missing: tuple[str, ...]

    def add(self, name: str, data: bytes) -> None:
        """Add a member's masked words; WireError, naming it, if they are not what they must be.

        ReplyRefusedError if they come after :meth:`close`.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Fix who is in. Keep :meth:`state` before anybody is told.

        Raises
        ------
        QuorumError
            If they are fewer than the floor or the quorum; nothing is closed then.
        """
        raise NotImplementedError

    @property
    def cohort(self) -> bytes:
        """The list of who is in, for members to sign."""
        raise NotImplementedError

    def add_signature(self, name: str, data: bytes) -> None:
        """Take a member's signature on the list; WireError, naming it, if it is not that."""
        raise NotImplementedError

    @property
    def signed(self) -> bool:
        """Whether enough members have signed."""
        raise NotImplementedError

    def unmask_request(self) -> bytes:
        """Return what members are asked for the opening; QuorumError if too few signed."""
        raise NotImplementedError

    def add_unmask(self, name: str, data: bytes) -> None:
        """Take a member's shares; WireError, naming it, if they have another form."""
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        """Whether enough members have answered for :meth:`total`."""
        raise NotImplementedError

    def total(self) -> NDArray[Any]:
        """Return the sum of the words of all who are in, of their :attr:`Words.spec`.

        Raises
        ------
        QuorumError
            If too few shares are there, or, of too many, they do not fit; says of whom. More
            answers can be added then.
        """
        raise NotImplementedError

    @property
    def liars(self) -> tuple[str, ...]:
        """Members whose shares :meth:`total` found to be wrong and left out, sorted."""
        raise NotImplementedError

    def state(self) -> State:
        """Return all of this sum as arrays; they share memory with it."""
        raise NotImplementedError

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError or ValueError if the arrays are not such."""
        raise NotImplementedError
