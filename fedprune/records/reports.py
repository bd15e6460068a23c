"""What a node says of itself in the handshake."""

from dataclasses import asdict, dataclass, fields

from flwr.app import ConfigRecord, Message, RecordDict

from fedprune.errors import ReplyRefusedError
from fedprune.records.fields import kebab, typed


@dataclass(frozen=True)
class NodeReport:
    """What a node says of itself in the handshake; no private text, only counts and hashes.

    Attributes
    ----------
    partition_id, num_partitions : int
        Which share of the data the node holds, and of how many.
    site : str
        The name its operator gave it (``site`` in the node's configuration), or "".
    config_hash, weights_hash : str
        Fingerprint of its model (hex sha256).
    code_hash : str
        Digest of the fedprune sources it runs (hex sha256).
    samples, tokens : int
        Calibration samples it offers and the tokens in them.
    device : str
        Where it will compute, for example "cpu" or "cuda:0".
    memory_bytes : int
        Memory of that device.
    versions : str
        Versions of the libraries that decide about results.
    problem : str
        Why it cannot take part; "" if it can.
    sample_ids : str
        Where its samples were taken, as hashes separated by commas; "" if the texts are its own.
    free_bytes : int
        Memory of that device that is free now; 0 if nobody knows.
    megaflops : int
        Its measured speed, million floating-point operations a second; 0 if not asked for.
    layer_permille : int
        The share of blocks its operator lets it prune, in thousandths; 0 leaves it to the server.
    """

    partition_id: int
    num_partitions: int
    site: str
    config_hash: str
    weights_hash: str
    code_hash: str
    samples: int
    tokens: int
    device: str
    memory_bytes: int
    versions: str
    problem: str
    sample_ids: str = ""
    free_bytes: int = 0
    megaflops: int = 0
    layer_permille: int = 0

    @property
    def name(self) -> str:
        """How messages call the node: its site's name and its partition."""
        label = f"partition {self.partition_id}"
        return f"'{self.site}' ({label})" if self.site else label


def report_record(report: NodeReport) -> RecordDict:
    """Return a handshake reply's content."""
    values = {kebab(key): value for key, value in asdict(report).items()}
    return RecordDict({"report": ConfigRecord(values)})


def read_report(message: Message) -> NodeReport:
    """Read a handshake reply.

    Raises
    ------
    ReplyRefusedError
        If a key is missing or has the wrong type.
    """
    record = message.content.config_records.get("report")
    if record is None:
        raise ReplyRefusedError("the handshake has no record 'report'.")
    values = {
        entry.name: typed(record, kebab(entry.name), int if entry.type is int else str)
        for entry in fields(NodeReport)
    }
    return NodeReport(**values)  # type: ignore[arg-type]
