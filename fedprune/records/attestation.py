"""Asking sites to sign what a run made, and their signatures."""

import re
from collections.abc import Collection, Mapping

from flwr.app import ConfigRecord, Message, RecordDict

from fedprune.errors import ReplyRefusedError
from fedprune.privacy.attestation import MODEL, STATISTICS
from fedprune.privacy.signing import SIGNATURE_BYTES
from fedprune.records.requests import request

_RESULTS, _SIGNATURES = "results", "signatures"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def attest_request(config_yaml: str, results: Mapping[str, str]) -> RecordDict:
    """Return the content of a request to sign; ``results`` is what is signed -> its SHA-256."""
    records = request(config_yaml)
    records[_RESULTS] = ConfigRecord(dict(results))
    return records


def read_attest_request(message: Message) -> dict[str, str]:
    """Read a request to sign; ReplyRefusedError if it is malformed."""
    record = message.content.config_records.get(_RESULTS) or ConfigRecord()
    found = {
        name: value
        for name, value in record.items()
        if name in (MODEL, STATISTICS) and isinstance(value, str) and _DIGEST.fullmatch(value)
    }
    if not found or len(found) != len(record):
        raise ReplyRefusedError(
            f"a request to sign has a record 'results' of '{MODEL}' and '{STATISTICS}' with "
            "SHA-256s in hexadecimal digits."
        )
    return found


def attested_record(signatures: Mapping[str, bytes]) -> RecordDict:
    """Return the content of a reply with signatures."""
    return RecordDict({_SIGNATURES: ConfigRecord(dict(signatures))})


def read_attested(message: Message, results: Collection[str]) -> dict[str, bytes]:
    """Read a reply with a signature of each result; ReplyRefusedError if it is malformed."""
    record = message.content.config_records.get(_SIGNATURES) or ConfigRecord()
    found = {
        name: value
        for name, value in record.items()
        if isinstance(value, bytes) and len(value) == SIGNATURE_BYTES
    }
    if set(found) != set(results) or len(found) != len(record):
        raise ReplyRefusedError(
            f"a reply with signatures has one of {SIGNATURE_BYTES} bytes for each of "
            f"{', '.join(results)}."
        )
    return found
