"""What clients measure on the models that they pruned alone."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from flwr.app import Message, RecordDict

from fedprune.config import RunConfig
from fedprune.errors import ReplyRefusedError
from fedprune.evaluation.own_texts import OwnTextResult, own_text_figures
from fedprune.methods.public_model import PublicModel
from fedprune.records import (
    FINAL,
    FinalOrder,
    LocalResult,
    final_record,
    read_local,
    read_own_text,
    request,
)
from fedprune.wire.changes import Change, encode_update
from strategies.cohort import Client, Cohort
from strategies.messages import DELIVER, MESSAGE_BYTES, ExchangeClient, window_for
from strategies.progress import counting

EVALUATE_LOCAL = "evaluate.local"


def collect_local(replies: Iterable[Message], cohort: Cohort, step: int) -> dict[str, LocalResult]:
    """Return client's name -> what it measured; a wrong reply is refused and left out.

    `cohort`: the clients; its ledger gets an entry a reply.
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


EVALUATE_FEDERATED = "evaluate.federated"
_PHASE = "evaluate"


@dataclass(frozen=True)
class OwnTexts:
    """The evaluation of the final model on the clients' own texts."""

    exchange_client: ExchangeClient
    model: PublicModel
    config: RunConfig  # `evaluation.seq_len` and `pruner.pattern`
    # block -> what became of it; empty where it stays dense
    recall: Callable[[int], Mapping[str, Change]]

    def measure(self) -> dict[str, object]:
        """Return the clients' figures as :func:`own_text_figures` does.

        A client that drops out, sends nonsense or has too little text is left out by name.
        """
        content = final_record(self.exchange_client.config_yaml, self._send_segments())
        found: dict[str, OwnTextResult] = {}
        left_out: dict[str, str] = {}
        for client, reply in self._exchange(EVALUATE_FEDERATED, content):
            try:
                result = read_own_text(reply)
            except ReplyRefusedError as error:
                self._cohort.refuse(client, self.exchange_client.step, _PHASE, str(error))
                continue
            self._note(client)
            if result.tokens:
                found[client.name] = result
            else:
                left_out[client.name] = (
                    "its held-out text does not fill one window of "
                    f"{self.config.evaluation.seq_len} tokens (`evaluation.seq_len`)"
                )
        for client in self._cohort.clients:
            if client.name not in found and client.name not in left_out:
                left_out[client.name] = self._cohort.ledger.reason(client.name)
        return own_text_figures(found, left_out)

    @property
    def _cohort(self) -> Cohort:
        return self.exchange_client.cohort

    def _send_segments(self) -> FinalOrder:
        """Send the changes of all blocks but for the last segment, which is returned."""
        sizes: dict[int, int] = {}
        waiting, sent = bytearray(), 0
        for block in range(self.model.num_blocks):
            changes = self.recall(block)
            if not changes:
                continue
            data = encode_update(changes)
            sizes[block] = len(data)
            waiting += data
            while len(waiting) > MESSAGE_BYTES:
                self._deliver(sent, bytes(waiting[:MESSAGE_BYTES]))
                del waiting[:MESSAGE_BYTES]
                sent += MESSAGE_BYTES
        return FinalOrder(sizes, sent, bytes(waiting))

    def _deliver(self, start: int, segment: bytes) -> None:
        content = request(
            self.exchange_client.config_yaml, {"segment": segment}, name=FINAL, start=start
        )
        for client, _ in self._exchange(DELIVER, content):
            self._note(client)

    def _exchange(self, kind: str, content: RecordDict) -> Iterator[tuple[Client, Message]]:
        """Send the same to all active clients; yield each reply and whom it is from."""
        clients = {client.node_id: client for client in self._cohort.active}
        window = window_for(self.exchange_client.strategy.window, MESSAGE_BYTES)
        sender = replace(self.exchange_client, window=window)
        messages = (sender.message(node, kind, content) for node in clients)
        what = "clients measure the pruned model on their own texts"
        report = (
            counting(self.exchange_client.status, "evaluate", what)
            if kind == EVALUATE_FEDERATED
            else lambda done, total: None
        )
        for reply in sender.replies(messages, _PHASE, report):
            yield clients[reply.metadata.src_node_id], reply

    def _note(self, client: Client) -> None:
        self._cohort.ledger.add(self._cohort.entry(client, self.exchange_client.step, _PHASE))
