"""A node's part in secure sums: its keys, its answers under masks, and what it refuses to open.

Its secrets lie in its folder for the job, since every message may be another process, and go with
that folder. What it has sent under masks it sends again as it was, and never otherwise.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from logging import getLogger
from pathlib import Path

import numpy as np

from client_app import model
from client_app.node import Identity, NodeContext
from client_app.scratch import SENT, Scratch
from fedprune.config import RunConfig
from fedprune.disk import read_if_there, replace_file
from fedprune.errors import ReplyRefusedError, WireError
from fedprune.methods.exchange import BlockExchange, BlockTask, Contributor
from fedprune.methods.masked import (
    context_of,
    heard_alone,
    heard_next,
    packed,
    payload_of,
    sum_name,
    word_layout,
)
from fedprune.methods.public_model import PublicModel
from fedprune.models.loading import LoadedModel
from fedprune.privacy.secure_client import SecureClient
from fedprune.privacy.secure_sums import Signer, SumPlan, Unsigned, Verifier
from fedprune.pruning.registry import make_pruner
from fedprune.pruning.structured import unit_pruner
from fedprune.pruning.units import find_units
from fedprune.records import Keys, KeysOrder, Order
from fedprune.records.secure import Inputs
from fedprune.wire.arrays import Arrays, encode_arrays

_PLAN, _TOLD, _HEARD, _ANSWER = "plan.bin", "told.json", "heard.json", "answer.bin"
_PRIVATE = 0o600
_log = getLogger("flwr")


def is_secure(config: RunConfig, node: NodeContext) -> bool:
    """Whether a job's answers go under masks here.

    Raises ReplyRefusedError if they did before and are not to do so now.
    """
    if not config.privacy.secure and _folder(node).exists():
        raise ReplyRefusedError(
            "this node's answers to this job are under masks (`privacy.secure`), and stay so."
        )
    return config.privacy.secure


def join(config: RunConfig, node: NodeContext, order: KeysOrder) -> Keys:
    """Make this node's keys for the sums of a plan.

    `node`: this node; its folder for the job gets the secrets. `order`: the plan, and what else it
    takes to make words. Raises ReplyRefusedError if the plan is not one that the configuration and
    this node's operator allow, or this node has answered under another one of the same job.
    """
    if not config.privacy.secure:
        raise ReplyRefusedError("this job's configuration does not ask for `privacy.secure`.")
    plan = _plan(order.plan)
    if plan.run.partition("/")[0] != node.job:
        raise ReplyRefusedError("the plan of secure sums is that of another job.")
    if plan.floor < config.privacy.min_cohort:
        raise ReplyRefusedError(
            f"the plan's sums are over {plan.floor} clients or more, `privacy.min_cohort` is "
            f"{config.privacy.min_cohort}."
        )
    folder = _folder(node)
    if read_if_there(folder / _PLAN) != order.plan:
        if (folder / SENT).exists():
            raise ReplyRefusedError(
                "this node has answered in this job before, under other keys: the same sums over "
                "other clients would tell who makes the difference."
            )
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    weights = model.model_fingerprint(config, node).weights  # read once: that takes its time
    told = {"clients": order.clients, "inputs": order.inputs, "weights": weights}
    replace_file(folder / _TOLD, json.dumps(told).encode(), mode=_PRIVATE)
    replace_file(folder / _PLAN, order.plan, mode=_PRIVATE)
    found = SecureNode.of(config, node)
    return Keys(found.client.advertise(), found.member.name, found.member.roster)


@dataclass(frozen=True)
class Member:
    """Who this node is in the protocol, and whom it trusts."""

    name: str  # its site's in the roster, or that of its partition
    signer: Signer
    verifier: Verifier
    roster: str = ""  # SHA-256 of the roster; "" without one
    least: int = 2

    @classmethod
    def of(cls, node: NodeContext) -> "Member":
        """Read what the node's configuration names; ConfigError if a file is unfit."""
        identity = Identity.of(node.settings)
        key, roster = identity.key, identity.roster
        if roster is None or key is None:
            return cls(f"partition {node.settings.partition_id}", Unsigned(), Unsigned())
        name = str(roster.site_of(key.public))
        return cls(name, key, roster, roster.digest, roster.min_cohort)


@dataclass(frozen=True)
class SecureNode:
    """A node that has joined a plan."""

    config: RunConfig
    node: NodeContext
    member: Member
    plan: SumPlan
    clients: int  # how many clients' words are added up at most
    inputs: Inputs  # block -> inputs, as the server sees the model
    weights_hash: str  # of this node's dense model

    @classmethod
    def of(cls, config: RunConfig, node: NodeContext) -> "SecureNode":
        """Return this node as it joined; ReplyRefusedError if it did not."""
        plan, told = read_if_there(_folder(node) / _PLAN), read_if_there(_folder(node) / _TOLD)
        if plan is None or told is None:
            raise ReplyRefusedError(
                "this node has no keys for the run's secure sums: it missed an earlier message, or "
                "its folder was emptied. It can take part in the next run."
            )
        values = json.loads(told)
        inputs = tuple(tuple(map(tuple, block)) for block in values["inputs"])
        member, clients = Member.of(node), values["clients"]
        return cls(config, node, member, _plan(plan), clients, inputs, values["weights"])

    @cached_property
    def client(self) -> SecureClient:
        """The client's half of the protocol."""
        least = max(self.config.privacy.min_cohort, self.member.least)
        member, folder = self.member, _folder(self.node) / "protocol"
        return SecureClient(
            self.plan, member.name, member.signer, member.verifier, folder, floor=least
        )

    def kept(
        self, order: Order, bundle: Mapping[str, bytes]
    ) -> tuple[dict[int, bytes], int] | None:
        """Return what was answered to this very order, and of how many samples; None if nothing.

        With its first order come the shares of the others' secrets.
        """
        if "shares" in bundle:
            for name in self.client.receive(bundle["shares"]):
                _log.warning("what '%s' shared of its secrets cannot be opened", name)
        data = read_if_there(_folder(self.node) / _ANSWER)
        if data is None:
            return None
        names = ["order", "samples", *map(str, order.blocks)]
        try:
            arrays = Arrays(data, names)
            told = arrays.take("order", arrays.announced("order")).tobytes()
            if told != _mark(order):
                return None
            (samples,) = arrays.take("samples", arrays.announced("samples")).tolist()
            blocks = {
                block: arrays.take(str(block), arrays.announced(str(block))).tobytes()
                for block in order.blocks
            }
        except WireError:  # of other blocks
            return None
        return blocks, samples

    def hide(
        self,
        exchange: BlockExchange,
        order: Order,
        bundle: Mapping[str, bytes],
        payloads: Mapping[int, bytes],
        samples: int,
    ) -> dict[int, bytes]:
        """Return the payloads of blocks under masks, and keep them until another order comes.

        ``bundle`` is what came with the order: the masks are bound to it.

        Raises WireError if an answer is not one that can be added up. Raises ReplyRefusedError as
        :meth:`fedprune.privacy.secure_client.SecureClient.masked`.
        """
        heard = self._hear(exchange, order, bundle)
        found = _public_model(self.config, model.dense_model(self.config, self.node), self.inputs)
        hidden = {
            block: payload_of(
                self._masked(
                    exchange,
                    BlockTask(found, block, order.round, total_weight=self.clients),
                    payload,
                    context_of(self.config, self.weights_hash, heard[block]),
                )
            )
            for block, payload in payloads.items()
        }
        folder = _folder(self.node)
        parts = {str(block): np.frombuffer(data, np.uint8) for block, data in hidden.items()}
        told = {"order": np.frombuffer(_mark(order), np.uint8), "samples": np.array([samples])}
        replace_file(folder / _ANSWER, encode_arrays({**told, **parts}), mode=_PRIVATE)
        return hidden

    def _hear(
        self, exchange: BlockExchange, order: Order, bundle: Mapping[str, bytes]
    ) -> dict[int, str]:
        """Return what this node has been told of the blocks up to each that it is asked about.

        Masks are bound to that: what is heard once in a round is kept, by block.
        """
        if not exchange.prunes:  # of other blocks nothing was heard
            return {
                block: heard_alone(bundle.get(f"public-{block:05d}", b"")) for block in order.blocks
            }
        path = _folder(self.node) / _HEARD
        kept = json.loads(read_if_there(path) or b"[0, []]")
        blocks = dict(kept[1]) if kept[0] == order.round else {}
        for block in order.blocks:
            before = max((one for one in blocks if one < block), default=None)
            blocks[block] = "" if before is None else blocks[before]
            for name in ("update", f"start-{block:05d}", f"public-{block:05d}"):
                if bundle.get(name):
                    blocks[block] = heard_next(blocks[block], bundle[name])
        told = json.dumps([order.round, sorted(blocks.items())]).encode()
        replace_file(path, told, mode=_PRIVATE)
        return {block: blocks[block] for block in order.blocks}

    def _masked(
        self, exchange: BlockExchange, task: BlockTask, payload: bytes, context: bytes
    ) -> dict[int, bytes]:
        layout = word_layout(exchange, task, self.clients)
        if not layout:
            return {}
        aggregator, me = exchange.aggregator(task), Contributor("this node")
        words = aggregator.words(aggregator.check(payload, me), me, self.clients)
        # From here on no other plan is accepted in this job.
        (_folder(self.node) / SENT).touch(mode=_PRIVATE)
        return {
            bits: self.client.masked(
                sum_name(exchange.name, task.round, task.block, bits), some, context=context
            )
            for bits, some in packed(words, layout).items()
        }


def _public_model(config: RunConfig, loaded: LoadedModel, inputs: Inputs) -> PublicModel:
    """Return this node's model as the server's aggregators know it."""
    structured = unit_pruner(make_pruner(config.pruner))
    units = None if structured is None else find_units(loaded, structured.structure)
    return PublicModel.of(loaded, inputs=inputs, units=units)


def _mark(order: Order) -> bytes:
    told = json.dumps([order.exchange, order.round, order.resume, order.last, *order.blocks])
    return hashlib.sha256(told.encode()).digest()


def _plan(data: bytes) -> SumPlan:
    try:
        return SumPlan.from_bytes(data)
    except WireError as error:
        raise ReplyRefusedError(str(error)) from None


def _folder(node: NodeContext) -> Path:
    return Scratch(node.scratch).secure
