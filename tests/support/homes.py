"""A grid whose nodes keep what they keep in homes of their own, as on machines of their own."""

import os
from pathlib import Path

from flwr.app import Message

from client_app import model, texts
from tests.support.grid import LocalGrid


class Homes(LocalGrid):
    """Nodes with a FEDPRUNE_HOME each below ``folder``; further parameters as LocalGrid."""

    def __init__(self, app, nodes, folder: Path, **more):
        super().__init__(app, nodes, **more)
        self.folder = folder

    def home(self, partition: int) -> Path:
        """Return a node's FEDPRUNE_HOME."""
        return self.folder / f"home-{partition}"

    def deliver(self, message: Message) -> Message | None:
        """Let a node answer as a process of its own: nothing cached, its own home."""
        server = os.environ["FEDPRUNE_HOME"]
        first = self.contexts[0].node_id
        os.environ["FEDPRUNE_HOME"] = str(self.home(message.metadata.dst_node_id - first))
        try:
            return super().deliver(message)
        finally:
            os.environ["FEDPRUNE_HOME"] = server
            for cached in (model.model_at, model._model_shapes, model._fingerprint):
                cached.cache_clear()
            for cached in (texts._drawn, texts._documents, texts._windows, texts._shares):
                cached.cache_clear()

    def kinds(self) -> list[str]:
        """Return the kinds of the messages that were sent, in order."""
        return [message.metadata.message_type for message in self.sent]
