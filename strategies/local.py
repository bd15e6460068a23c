"""What clients measure on the models that they pruned alone."""

from collections.abc import Iterable

from flwr.app import Message

from fedprune.errors import ReplyRefusedError
from fedprune.records import LocalResult, read_local
from strategies.cohort import Cohort

EVALUATE_LOCAL = "evaluate.local"


def collect_local(replies: Iterable[Message], cohort: Cohort, step: int) -> dict[str, LocalResult]:
    """Return client's name -> what it measured; a wrong reply is refused and left out.

    Parameters
    ----------
    replies : Iterable[Message]
        In the order of arrival.
    cohort : Cohort
        The clients; its ledger gets an entry a reply.
    step : int
        The ledger's round.
    """
    found: dict[str, LocalResult] = {}
    for message in replies:
        client = cohort.sender(message)
        if client is None:
            continue
        try:
            found[client.name] = read_local(message)
        except ReplyRefusedError as error:
            cohort.refuse(client, step, "evaluate", str(error))
        else:
            cohort.ledger.add(cohort.entry(client, step, "evaluate"))
    return found
