"""Gathers what sites sign: each answer as it comes, and at the end what was made of all."""

import contextlib
from collections.abc import Iterable, Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from fedprune.errors import ReplyRefusedError
from fedprune.privacy.attestation import (
    ANSWER,
    Signatures,
    SignedAnswer,
    SiteSignatures,
    answer_statement,
    digests_of,
)
from fedprune.privacy.signing import PublicKey
from fedprune.records import PruneReply, attest_request, read_attested
from strategies.cohort import Client
from strategies.exchange import WorkerDiedError, exchange
from strategies.state import RunState

ATTEST = "query.attest"
_SECONDS = 120.0  # a node starts a process for it
_WINDOW = 256


def note_answer(state: RunState, reply: PruneReply, client: Client) -> None:
    """Keep the signature of an answer whose client announced a key.

    Raises ReplyRefusedError if it is not that key's.
    """
    signer = client.report.signer
    if not signer:
        return
    digests = digests_of(reply.blocks)
    key = PublicKey.parse(signer, "a client")
    if not key.holds(reply.signature, answer_statement(digests), purpose=ANSWER, run=state.job):
        raise ReplyRefusedError(
            f"its answer is not signed with the key that it announced ({key.fingerprint})."
        )
    state.signed.setdefault(signer, []).append([digests, reply.signature.hex()])


def gather_signatures(
    grid: Grid,
    clients: Iterable[Client],
    state: RunState,
    config_yaml: str,
    results: Mapping[str, str],
) -> Signatures:
    """Let clients sign what was made of their answers; return all that they signed.

    Who is gone, or does not sign, is there with the answers that it signed. These few bytes are not
    part of the run's traffic: the results are written before.

    `clients`: the run's; those without a node or a key are not asked. `results`: what is signed ->
    its SHA-256.
    """
    signers = {one.node_id: one.report.signer for one in clients if one.report.signer}
    content = attest_request(config_yaml, results)
    messages = (
        Message(content, node, ATTEST, ttl=_SECONDS, group_id=state.job)
        for node in signers
        if node >= 0
    )
    made: dict[str, dict[str, bytes]] = {}
    with contextlib.suppress(WorkerDiedError):
        for reply in exchange(grid, messages, window=_WINDOW, timeout=_SECONDS):
            signer = signers[reply.metadata.src_node_id]
            with contextlib.suppress(ReplyRefusedError):
                made[signer] = _held(signer, read_attested(reply, results), state, results)
    sites = {}
    for signer in dict.fromkeys([*state.signed, *made]):
        signed = state.signed.get(signer, ())
        answers = tuple(SignedAnswer(digests, bytes.fromhex(text)) for digests, text in signed)
        sites[PublicKey.parse(signer, "a client")] = SiteSignatures(answers, made.get(signer, {}))
    return Signatures(state.job, sites)


def _held(
    signer: str, signatures: Mapping[str, bytes], state: RunState, results: Mapping[str, str]
) -> dict[str, bytes]:
    """Return the signatures that hold; a wrong one is none."""
    key = PublicKey.parse(signer, "a client")
    return {
        what: made
        for what, made in signatures.items()
        if key.holds(made, bytes.fromhex(results[what]), purpose=what, run=state.job)
    }
