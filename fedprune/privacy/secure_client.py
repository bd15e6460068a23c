"""A client's half of secure sums: masks for its words, shares for its neighbours, and refusals."""

from pathlib import Path

from numpy.typing import NDArray

from fedprune.privacy.secure_sums import Signer, SumPlan, Verifier


class SecureClient:
    """What a client says, and what it refuses to say, in one run.

    Everything that it must not forget is in a folder before its answer leaves: a process that dies
    goes on with a new object on the same folder, gives the same answers and refuses the same. Two
    processes must not use a folder at once, and a folder must not be put back to an earlier state.

    Parameters
    ----------
    plan : SumPlan
        As the server sent it.
    name : str
        This client's in the roster.
    signer : Signer
        Its signing key.
    roster : Verifier
        Who may take part.
    folder : Path
        Made on first use, for its owner's eyes only; holds secrets until it is removed.
    floor : int
        The fewest clients this one will be summed with, itself included, whatever the plan says.

    Raises
    ------
    ReplyRefusedError
        If the plan's floor is below this client's, or the folder is that of another plan or name.
    """

    def __init__(
        self,
        plan: SumPlan,
        name: str,
        signer: Signer,
        roster: Verifier,
        folder: Path,
        floor: int = 2,
    ) -> None:
        raise NotImplementedError

    def advertise(self) -> bytes:
        """Make this run's keys and return the public ones, signed; the same bytes ever after."""
        raise NotImplementedError

    def shares(self, adverts: bytes) -> bytes:
        """Return encrypted shares of this client's secrets for its neighbours.

        Parameters
        ----------
        adverts : bytes
            Of :meth:`SecureServer.adverts_for`.

        Returns
        -------
        bytes
            For :meth:`SecureServer.add_shares`; the same bytes for the same adverts.

        Raises
        ------
        WireError
            If the adverts are malformed or damaged.
        ReplyRefusedError
            If one is not signed by a site of the roster, they are fewer than the floor, this
            client's own is not there as it was sent, or they are others than those before.
        """
        raise NotImplementedError

    def receive(self, boxes: bytes) -> None:
        """Take the shares of the neighbours' secrets; set-up is done then.

        Parameters
        ----------
        boxes : bytes
            Of :meth:`SecureServer.boxes_for`; taking the same again changes nothing.

        Raises
        ------
        WireError
            If they are malformed or damaged.
        ReplyRefusedError
            If one cannot be opened, they leave fewer than floor or quorum, or they are others than
            those before.
        """
        raise NotImplementedError

    def masked(self, sum_name: str, words: NDArray, spare: int | None = None) -> bytes:  # type: ignore[type-arg]
        """Return this client's words under its masks.

        Parameters
        ----------
        sum_name : str
            One of the plan's.
        words : NDArray
            Of the sum's :attr:`Words.spec`.
        spare : int, optional
            To take the sum again under a spare key, 0 <= spare < plan.spares.

        Returns
        -------
        bytes
            For :meth:`MaskedSum.add`.

        Raises
        ------
        ReplyRefusedError
            If other words went out under the same masks, or the spare key served another sum.
        """
        raise NotImplementedError

    def sign(self, sum_name: str, cohort: bytes, spare: int | None = None) -> bytes:
        """Return this client's signature on who is in a sum.

        Parameters
        ----------
        cohort : bytes
            Of :attr:`MaskedSum.cohort`.

        Returns
        -------
        bytes
            For :meth:`MaskedSum.add_signature`.

        Raises
        ------
        WireError
            If the list is malformed.
        ReplyRefusedError
            If it has fewer than the floor or the quorum, has this client in it though it sent
            nothing, or is another than one signed before for the same sum, also under a spare key.
        """
        raise NotImplementedError

    def unmask(self, sum_name: str, request: bytes, spare: int | None = None) -> bytes:
        """Return shares that open the sum: of the self seed of who is in, of the key of who is not.

        Parameters
        ----------
        request : bytes
            Of :meth:`MaskedSum.unmask_request`: the list and the signatures on it.

        Returns
        -------
        bytes
            For :meth:`MaskedSum.add_unmask`.

        Raises
        ------
        WireError
            If the request is malformed.
        ReplyRefusedError
            As :meth:`sign`, and if fewer than the quorum signed this very list.
        """
        raise NotImplementedError
