"""The bookkeeping of replies keeps figures, not the replies."""

import weakref

from flwr.app import Message, RecordDict

from fedprune.results.ledger import Ledger
from strategies.cohort import Client, Cohort
from strategies.exchange import Outcome
from tests.support.grid import become_server
from tests.support.scripted import REPORT


def test_a_reply_is_let_go_once_it_is_noted() -> None:
    become_server()
    client = Client(5, REPORT)
    cohort = Cohort([client], Ledger())
    reply = Message(RecordDict(), 5, "train.prune")
    seen = weakref.ref(reply)
    cohort.note(Outcome(5, "", bytes_down=10, bytes_up=20, seconds=1.5, reply=reply))
    del reply
    assert seen() is None
    entry = cohort.entry(client, 3, "prune")
    assert (entry.bytes_down, entry.bytes_up, entry.round_trip_seconds) == (10, 20, 1.5)
