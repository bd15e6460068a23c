"""What a node says of itself in the handshake."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from flwr.app import ConfigRecord, Message, RecordDict

from fedprune.errors import ReplyRefusedError
from fedprune.records.fields import kebab, shown, typed

_MOST_PARTITIONS = 2**31
_MOST = 2**62  # of anything that is counted
_LONGEST_NAME = 64
_HASH = re.compile(r"[0-9a-z]{0,64}")
_SIGNER = re.compile(r"(ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[0-9A-Za-z+/]{43})?")
_IDS = re.compile(r"[0-9A-Za-z,]*")
_WHOLE = 1000  # thousandths
_KINDS: Mapping[object, type] = {int: int, bool: bool}


@dataclass(frozen=True)
class NodeReport:
    """What a node says of itself in the handshake; no private text, only counts and hashes."""

    # partition_id, num_partitions: which share of the data the node holds, and of how many
    partition_id: int
    num_partitions: int
    site: str  # the name its operator gave it (``site`` in the node's configuration), or ""
    # config_hash, weights_hash: fingerprint of its model (hex sha256)
    config_hash: str
    weights_hash: str
    code_hash: str  # digest of the fedprune sources it runs (hex sha256)
    # samples, tokens: calibration samples it offers and the tokens in them
    samples: int
    tokens: int
    device: str  # where it will compute, for example "cpu" or "cuda:0"
    memory_bytes: int  # memory of that device
    versions: str  # versions of the libraries that decide about results
    problem: str  # why it cannot take part; "" if it can
    # where its samples were taken, as hashes separated by commas; "" if the texts are its own
    sample_ids: str = ""
    free_bytes: int = 0  # memory of that device that is free now; 0 if nobody knows
    # its measured speed, million floating-point operations a second; 0 if not asked for
    megaflops: int = 0
    # the share of blocks its operator lets it prune, in thousandths; 0 leaves it to the server
    layer_permille: int = 0
    # whether it waits for the server's model; hashes and samples are empty until it has come
    lacks_model: bool = False
    warnings: str = ""  # what its operator should look at; "" if nothing is odd
    # the public key that its site signs answers with, as a line of OpenSSH; "" without one
    signer: str = ""

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

    Raises ReplyRefusedError if a key is missing, has the wrong type or a value that no node has.
    """
    record = message.content.config_records.get("report")
    if record is None:
        raise ReplyRefusedError("the handshake has no record 'report'.")
    values = {
        entry.name: typed(record, kebab(entry.name), _KINDS.get(entry.type, str))
        for entry in fields(NodeReport)
    }
    report = NodeReport(**values)  # type: ignore[arg-type]
    _check_numbers(report)
    _check_names(report)
    return replace(
        report,
        versions=shown(report.versions, 500),
        problem=shown(report.problem, 800),
        warnings=shown(report.warnings, 500),
    )


def _check_numbers(report: NodeReport) -> None:
    most = {"partition_id": _MOST_PARTITIONS, "num_partitions": _MOST_PARTITIONS}
    most["layer_permille"] = _WHOLE + 1
    for entry in fields(NodeReport):
        value, limit = getattr(report, entry.name), most.get(entry.name, _MOST)
        if isinstance(value, int) and not 0 <= value < limit:
            raise ReplyRefusedError(f"'{kebab(entry.name)}' must be from 0 to {limit - 1}.")


def _check_names(report: NodeReport) -> None:
    for key, name in (("site", report.site), ("device", report.device)):
        if len(name) > _LONGEST_NAME or not name.isprintable():
            raise ReplyRefusedError(
                f"'{key}' must be at most {_LONGEST_NAME} printable characters. A node's operator "
                "names the site in its --node-config."
            )
    for key in ("config_hash", "weights_hash", "code_hash"):
        if not _HASH.fullmatch(getattr(report, key)):
            raise ReplyRefusedError(f"'{kebab(key)}' must be a hash in hexadecimal digits.")
    if not _SIGNER.fullmatch(report.signer):
        raise ReplyRefusedError("'signer' must be an Ed25519 key, 'ssh-ed25519 AAAA...'.")
    if not _IDS.fullmatch(report.sample_ids):
        raise ReplyRefusedError("'sample-ids' must be hashes separated by commas.")
