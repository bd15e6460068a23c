"""The model on its way to nodes: what comes that nobody asked for is counted."""

from flwr.app import Message

from fedprune.models.transfer import Offer
from fedprune.records import held_record
from fedprune.results.ledger import Ledger
from strategies.delivery import Delivery
from strategies.messages import MESSAGE_BYTES
from tests.support.grid import TwiceGrid, client_app


def test_messages_that_nobody_asked_for_are_in_the_ledger(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"x" * 10_000)
    offer, ledger = Offer.of(str(tmp_path), None, MESSAGE_BYTES), Ledger()
    total = len(offer.manifest.segments)
    app = client_app(lambda message, context: None)
    app.query("model")(lambda message, context: Message(held_record(total), reply_to=message))
    delivery = Delivery(offer, 5.0, 2, "0" * 32, 0.0, ledger, lambda held, total: None)
    grid = TwiceGrid(app, 2)
    outcomes = []
    assert delivery.run(grid, grid.get_node_ids(), outcomes.append) == [100, 101]
    assert [outcome.problem for outcome in outcomes] == ["", ""]
    (entry,) = ledger.entries
    assert entry.phase == "model" and "2 messages that answer no request" in entry.refused
