"""Where a node has its model from: its operator's copy, the job's path, or the server."""

from pathlib import Path

from client_app.models_store import ModelStore
from client_app.scratch import Scratch
from client_app.seat import Seat
from fedprune.config import ModelConfig
from fedprune.errors import ModelError, ReplyRefusedError, WireError
from fedprune.models.transfer import Manifest
from fedprune.records import ModelParcel


def model_path(config: ModelConfig, seat: Seat) -> str | None:
    """Return the folder of this node's model; None: where the job's configuration says.

    Raises
    ------
    ReplyRefusedError
        If the model that the server sent is not here any more.
    """
    if seat.settings.model_path is not None:
        return seat.settings.model_path
    if not _from_server(config):
        return None
    digest = Scratch(seat.scratch).model()
    folder = _store(seat).find(digest) if digest is not None else None
    if folder is None:
        raise ReplyRefusedError(
            "the server's model is not on this node any more: its FEDPRUNE_HOME was emptied. It "
            "can take part in the next run."
        )
    return str(folder)


def lacks_model(config: ModelConfig, seat: Seat, digest: str) -> bool:
    """Return whether the server has to send the model before this node can load it.

    Parameters
    ----------
    config : ModelConfig
        `source` says whether the server would.
    seat : Seat
        This node; its scratch folder notes which model the job is about.
    digest : str
        The hash of the manifest of the server's model.

    Raises
    ------
    ModelError
        If it would have to, and the operator takes none.
    """
    if seat.settings.model_path is not None or not _from_server(config):
        return False
    store = _store(seat)
    store.heal(digest)
    if store.find(digest) is None:
        if not seat.settings.most_model_bytes:
            raise ModelError(
                "`max-model-gb` in the node's --node-config is 0: it takes no model from a server. "
                "Give it its own copy, `model-path`, or raise the limit."
            )
        return True
    store.sweep(digest)
    Scratch(seat.scratch).save_model(digest)
    return False


def take_model(seat: Seat, part: ModelParcel) -> int:
    """Keep a part of a model and return how many of its parcels are here.

    Raises
    ------
    FedpruneError
        If the part is refused, or there is no room for the model.
    """
    store = _store(seat)
    if part.number >= 0:
        return store.add(part.digest, part.number, part.data)
    try:
        manifest = Manifest.read(part.data)
    except WireError as error:
        raise ReplyRefusedError(str(error)) from None
    if manifest.digest != part.digest:
        raise ReplyRefusedError("the manifest of the model is not the one that was announced.")
    return store.begin(manifest)


def _from_server(config: ModelConfig) -> bool:
    there = config.path != "" and Path(config.path).expanduser().is_dir()
    return config.source == "server" and not there


def _store(seat: Seat) -> ModelStore:
    return ModelStore(seat.settings.most_model_bytes)
