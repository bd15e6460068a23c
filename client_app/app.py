"""The ClientApp: thin handlers around what a node does."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client_app.approval import check_approval
from client_app.evaluation import evaluate_local, evaluate_own_texts
from client_app.guard import guarded, read_configuration
from client_app.handshake import report
from client_app.model import block_shapes, take_model
from client_app.node import Identity, NodeContext, agreed, use_threads
from client_app.scratch import InboxQuota, Scratch
from client_app.secure import SecureNode, join
from client_app.session import Session, fetch
from fedprune.config import RunConfig
from fedprune.errors import ReplyRefusedError
from fedprune.logs import set_up
from fedprune.privacy.secure_client import SecureClient
from fedprune.records import (
    attested_record,
    held_record,
    keys_record,
    local_record,
    own_text_record,
    parts_record,
    read_ahead,
    read_attest_request,
    read_bundle,
    read_final,
    read_keys_request,
    read_model_segment,
    read_order,
    read_parts,
    report_record,
    requested,
)

set_up("client")
app = ClientApp(mods=[guarded])


def _asked(message: Message, context: Context) -> tuple[RunConfig, NodeContext]:
    """Return the configuration that a request brings, and this node in the request's job."""
    node = NodeContext.of(message, context)
    use_threads(node.settings.threads)
    wanted = _configuration(message)
    config = agreed(node.settings, wanted)
    check_approval(wanted, node.settings)
    return config, node


def _configuration(message: Message) -> RunConfig:
    return read_configuration(str(requested(message, "config_yaml", str)))


@contextmanager
def _participant(message: Message, context: Context) -> Iterator[SecureClient]:
    """Give this node's half of the protocol of secure sums, while no other process works here."""
    config, node = _asked(message, context)
    with Scratch(node.scratch).exclusive():
        yield SecureNode.of(config, node).client


@app.query("handshake")
def handshake(message: Message, context: Context) -> Message:
    """Say who this node is, and whether it can take part."""
    config, model = _configuration(message), ""
    if config.model.source == "server":
        model = str(requested(message, "model", str))
    told = report(config, NodeContext.of(message, context), model)
    return Message(report_record(told), reply_to=message)


@app.query("model")
def take_model_segment(message: Message, context: Context) -> Message:
    """Keep a part of the model that the server sends, and say how many parts are here."""
    held = take_model(NodeContext.of(message, context), read_model_segment(message))
    return Message(held_record(held), reply_to=message)


@app.train("prune")
def prune_blocks(message: Message, context: Context) -> Message:
    """Work on the ordered blocks with this node's texts and send what the strategy asks for."""
    order, bundle, ahead = read_order(message), read_bundle(message), read_ahead(message)
    session = Session(*_asked(message, context), order)
    with session.begun(bundle, ahead) as given:
        started = time.monotonic()
        payloads, samples = session.answers(given)
        content = session.record(payloads, samples, time.monotonic() - started)
    return Message(content, reply_to=message)


@app.query("keys")
def make_keys(message: Message, context: Context) -> Message:
    """Make this node's keys for the run's secure sums, and send the public ones."""
    config, node = _asked(message, context)
    with Scratch(node.scratch).exclusive():
        keys = join(config, node, read_keys_request(message))
    return Message(keys_record(keys), reply_to=message)


@app.query("shares")
def share_secrets(message: Message, context: Context) -> Message:
    """Send the others shares of this node's secrets, which only they can read."""
    with _participant(message, context) as client:
        said = {"shares": client.shares(read_parts(message, ["adverts"])["adverts"])}
    return Message(parts_record(said), reply_to=message)


@app.query("sign")
def sign_cohort(message: Message, context: Context) -> Message:
    """Sign who is in some secure sums, if this node agrees."""
    with _participant(message, context) as client:
        said = {name: client.sign(name, one) for name, one in read_parts(message).items()}
    return Message(parts_record(said), reply_to=message)


@app.query("unmask")
def unmask_sums(message: Message, context: Context) -> Message:
    """Send shares that open some secure sums, if enough others have signed who is in them."""
    with _participant(message, context) as client:
        said = {name: client.unmask(name, one) for name, one in read_parts(message).items()}
    return Message(parts_record(said), reply_to=message)


@app.query("fetch")
def fetch_segment(message: Message, context: Context) -> Message:
    """Send a later segment of a long reply."""
    number, order = int(requested(message, "segment", int)), read_order(message)
    return Message(fetch(*_asked(message, context), order, number), reply_to=message)


@app.query("deliver")
def take_segment(message: Message, context: Context) -> Message:
    """Keep a segment of what the next order will need."""
    bundle = read_bundle(message)
    if set(bundle) != {"segment"}:
        raise ReplyRefusedError("a delivery holds one array, 'segment'.")
    name, start = str(requested(message, "name", str)), int(requested(message, "start", int))
    config, node = _asked(message, context)
    scratch, segment = Scratch(node.scratch), bundle["segment"]
    InboxQuota.of(block_shapes(config, node)).check(scratch, name, start + len(segment))
    scratch.receive(name, start, segment)
    received = RecordDict({"received": ConfigRecord({"start": start})})
    return Message(received, reply_to=message)


@app.query("attest")
def attest(message: Message, context: Context) -> Message:
    """Sign what the server says that the run made, with this site's key."""
    results = read_attest_request(message)
    _, node = _asked(message, context)
    key = Identity.of(node.settings).key
    if key is None:
        raise ReplyRefusedError("this node has no `signing-key`.")
    signatures = {
        what: key.sign(bytes.fromhex(digest), purpose=what, run=node.job)
        for what, digest in results.items()
    }
    return Message(attested_record(signatures), reply_to=message)


@app.query("forget")
def forget(message: Message, context: Context) -> Message:
    """Delete what this node keeps of a job that is over."""
    Scratch(NodeContext.of(message, context).scratch).forget()
    return Message(RecordDict(), reply_to=message)


@app.evaluate("local")
def local(message: Message, context: Context) -> Message:
    """Measure this node's own pruned model; only the number leaves the node."""
    result = evaluate_local(*_asked(message, context))
    return Message(local_record(result), reply_to=message)


@app.evaluate("federated")
def federated(message: Message, context: Context) -> Message:
    """Measure dense and final model on this node's own texts; only the numbers leave the node."""
    order = read_final(message)
    result = evaluate_own_texts(*_asked(message, context), order)
    return Message(own_text_record(result), reply_to=message)
