"""A node's work on an order: block by block, what the next order needs kept on its disk."""

import time
from collections.abc import Iterator, Mapping

from flwr.app import RecordDict

from client_app import node
from client_app.answers import Answer, Respondent
from client_app.scratch import Scratch
from client_app.seat import Seat
from client_app.update import Place, check_order, read_start, read_update
from fedprune.config import RunConfig
from fedprune.disk import is_refusal
from fedprune.logs import note
from fedprune.models.device import Limits, pick_device
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.groups import block_specs
from fedprune.pruning.registry import make_pruner
from fedprune.records import Order, PruneReply, fetched_record, prune_record, split_record
from fedprune.results.environment import peak_device_bytes, peak_rss_bytes
from fedprune.wire.changes import Change


def prune(
    config: RunConfig,
    seat: Seat,
    order: Order,
    bundle: Mapping[str, bytes],
    ahead: Mapping[str, int],
) -> RecordDict:
    """Work on the blocks of an order, going on from where this node's last one stopped.

    Parameters
    ----------
    config : RunConfig
        The run's configuration as the server sent it.
    seat : Seat
        This node.
    order : Order
        Which blocks, and where to go on from.
    bundle : Mapping[str, bytes]
        Encoded changes: ``update`` of the block before where the schedule is iterative,
        ``start-NNNNN`` of blocks that were pruned in an earlier round.
    ahead : Mapping[str, int]
        Name -> bytes of those that were delivered before.

    Returns
    -------
    RecordDict
        The reply's content; the first parcel of it if it is long.

    Raises
    ------
    FedpruneError
        If the request is wrong or the work fails. The node then forgets this run, since the
        server asks it no more; not where its disk is full: with room again it can go on.
    """
    scratch = Scratch(seat.scratch)
    with scratch.alone():
        try:
            return _reply(config, seat, order, {**scratch.read_inbox(ahead), **bundle})
        except Exception as error:
            if not is_refusal(error):
                scratch.remove()
            raise


def _reply(config: RunConfig, seat: Seat, order: Order, bundle: Mapping[str, bytes]) -> RecordDict:
    started, scratch = time.monotonic(), Scratch(seat.scratch)
    respondent = _respondent(config, order)
    scratch.go_on_from(order.resume)
    encoded, samples = _work(config, seat, order, bundle, respondent)
    total = sum(map(len, encoded.values()))
    whole = total <= order.parcel_bytes
    reply = PruneReply(
        blocks=encoded if whole else {},
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
        peak_device_bytes=peak_device_bytes(),
        num_examples=samples,
    )
    content = prune_record(reply, respondent.form)
    if not whole:
        data = b"".join(encoded.values())
        sizes = {block: len(part) for block, part in encoded.items()}
        scratch.save_outbox(data)
        split_record(content, data[: order.parcel_bytes], sizes, respondent.form)
    return content


def fetch(config: RunConfig, seat: Seat, order: Order, number: int) -> RecordDict:
    """Return a later parcel of the reply to an order."""
    parcel = Scratch(seat.scratch).parcel(number, order.parcel_bytes)
    return fetched_record(parcel, _respondent(config, order).form)


def _respondent(config: RunConfig, order: Order) -> Respondent:
    alone = not order.survey and not iterative(config) and config.schedule.prefix == "local"
    return Respondent(config, order.survey, alone)


def iterative(config: RunConfig) -> bool:
    """Whether blocks come one by one, each with what became of the one before."""
    return config.schedule.name == "iterative"


def keeps_own(config: RunConfig) -> bool:
    """Whether a node's own changes of all blocks make its own pruned model as it goes."""
    strategy = config.strategy
    return (
        config.evaluation.local_only
        and not iterative(config)
        and config.schedule.prefix == "local"
        and strategy.rounds == 1
        and strategy.layer_fraction == 1
    )


def _work(
    config: RunConfig,
    seat: Seat,
    order: Order,
    bundle: Mapping[str, bytes],
    respondent: Respondent,
) -> tuple[dict[int, bytes], int]:
    """Return the encoded answers by block, and how many samples made them."""
    loaded = node.model(config, seat)
    check_order(config, order, len(loaded.layout.blocks), bundle)
    walk = _walk(config, seat, order, bundle)
    scratch, encoded = Scratch(seat.scratch), {}
    for block, answer in _answers(config, walk, order, bundle, respondent):
        encoded[block] = answer.payload
        if keeps_own(config) and not order.survey:
            scratch.save_changes(block, answer.changes)
    if not order.last and not order.survey and (iterative(config) or walk.position not in encoded):
        scratch.save_hidden(walk.position, walk.hidden)
    return encoded, walk.num_samples


def _walk(config: RunConfig, seat: Seat, order: Order, bundle: Mapping[str, bytes]) -> BlockWalk:
    """Return a walk that stands where the order goes on, told what became of the block before."""
    loaded = node.model(config, seat)
    scratch, device = Scratch(seat.scratch), pick_device(config.pruner.device)
    limits = Limits.of(config.pruner)
    if not order.resume:
        if scratch.has_samples:
            samples = scratch.load_samples()
        else:
            samples = node.tokens(config, seat)
            if not order.last:
                scratch.save_samples(samples)
        walk = BlockWalk(loaded, samples, device, limits=limits)
    else:
        hidden = scratch.load_hidden(order.resume)
        walk = BlockWalk(
            loaded,
            scratch.load_samples(),
            device,
            hidden=hidden,
            start=order.resume,
            limits=limits,
        )
    if iterative(config) and "update" in bundle:
        # Read before anything runs; the hidden states kept are the inputs of the block it is for.
        changes = read_update(config, Place.of(walk), bundle["update"])
        _leave(config, walk, changes)
    return walk


def _answers(
    config: RunConfig,
    walk: BlockWalk,
    order: Order,
    bundle: Mapping[str, bytes],
    respondent: Respondent,
) -> Iterator[tuple[int, Answer]]:
    """Yield each ordered block's answer; blocks between them stay dense."""
    total = walk.position + walk.blocks_left
    specs = {} if order.survey else block_specs(config, range(total), total)
    while walk.position <= order.blocks[-1]:
        block, changes = walk.position, {}
        if block in order.blocks:
            note(block=block)
            start = bundle.get(f"start-{block:05d}")
            if start is not None:
                walk.start_from(read_start(Place.of(walk), start))
            answer = respondent.answer(walk, specs.get(block))
            changes = dict(answer.changes) if respondent.alone else {}
            yield block, answer
        finished = block == order.blocks[-1] and (order.last or order.survey)
        if finished or block == total - 1 or (iterative(config) and not order.survey):
            return
        _leave(config, walk, changes, order.survey)


def _leave(
    config: RunConfig, walk: BlockWalk, changes: Mapping[str, Change], survey: bool = False
) -> None:
    """Go on to the next block, running this one only where somebody needs what it returns."""
    if survey or make_pruner(config.pruner).needs != "nothing":
        walk.advance(changes)
    else:
        walk.skip()
