"""How well a node's own pruned model, made without the others, predicts its held-out texts."""

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path

from client_app import model, texts
from client_app.node import NodeContext
from client_app.scratch import InboxQuota, Scratch
from client_app.session import keeps_local_model
from fedprune.config import RunConfig
from fedprune.errors import DataError, ReplyRefusedError, WireError
from fedprune.evaluation.own_texts import OwnTextResult
from fedprune.evaluation.perplexity import perplexities, perplexity
from fedprune.methods.registry import main_exchange
from fedprune.models.changes import Changes, Recalled
from fedprune.models.device import Limits, pick_device
from fedprune.models.loading import LoadedModel
from fedprune.pruning.blocks import pruned_in_passing
from fedprune.pruning.groups import block_specs
from fedprune.pruning.paired import walk_for
from fedprune.pruning.registry import make_pruner, towards
from fedprune.records import FINAL, FinalOrder, LocalResult
from fedprune.wire.changes import Change


def evaluate_local(config: RunConfig, node: NodeContext) -> LocalResult:
    """Measure the perplexity of this node's own pruned model on the held-out texts.

    Raises ReplyRefusedError if the job's sums are secure: what one client's model can do tells of
    that client.
    """
    if config.privacy.secure:
        raise ReplyRefusedError("with `privacy.secure` no client's own model is measured.")
    loaded = model.dense_model(config, node)
    windows = texts.windows(config, node)
    if config.data.name not in windows:
        raise DataError(f"there is no text to evaluate on in '{config.data.name}'.")
    limits = Limits.of(config.pruner, "evaluation.seq_len")
    try:
        changes, device = _own_changes(config, node), pick_device(config.pruner.device)
        found = perplexities(loaded, windows, device, changes, limits)
    except Exception:
        Scratch(node.scratch).remove()
        raise
    own = found.pop(config.data.name)
    return LocalResult(own.nll, own.tokens, {label: one.nll for label, one in found.items()})


def _own_changes(config: RunConfig, node: NodeContext) -> Changes:
    """Return what this node makes of every block without the others, block by block."""
    loaded = model.dense_model(config, node)
    shapes = loaded.layout.shapes()
    blocks = range(len(shapes))
    if keeps_local_model(config, main_exchange(config)):
        scratch = Scratch(node.scratch)
        return Recalled(blocks, lambda block: scratch.load_changes(block, shapes[block]))
    # What it did in the rounds belongs to the common model: it prunes once more, alone.
    device, limits = pick_device(config.pruner.device), Limits.of(config.pruner)
    pruner = towards(make_pruner(config.pruner), config)
    walk = walk_for(pruner)(loaded, texts.tokens(config, node), device, limits=limits)
    specs = block_specs(config, blocks, len(shapes))
    return pruned_in_passing(walk, pruner, specs)


def evaluate_own_texts(config: RunConfig, node: NodeContext, order: FinalOrder) -> OwnTextResult:
    """Measure the dense and the final model on this node's own held-out texts.

    `node`: this node; its scratch folder holds the segments that came before. `order`: the last
    segment of the final model's changes, and the blocks that they are of. The result is of 0 tokens
    if the texts do not fill one window. Raises ReplyRefusedError if the changes are damaged or
    incomplete, or are not what the configuration asks for.
    """
    loaded = model.dense_model(config, node)
    scratch, device = Scratch(node.scratch), pick_device(config.pruner.device)
    limits = Limits.of(config.pruner, "evaluation.seq_len")
    quota = InboxQuota.of(loaded.layout.shapes())
    quota.check(scratch, FINAL, order.start + len(order.segment))
    scratch.receive(FINAL, order.start, order.segment)
    changes = _final_changes(config, loaded, scratch.inbox(FINAL), order.sizes)
    windows = texts.own_windows(config, node)
    if windows is None:
        return OwnTextResult(0.0, 0.0, 0)
    pruned = perplexity(loaded, windows, device, changes, limits)
    dense = perplexity(loaded, windows, device, limits=limits)
    return OwnTextResult(dense.nll, pruned.nll, dense.tokens)


def _final_changes(
    config: RunConfig, loaded: LoadedModel, path: Path, sizes: Mapping[int, int]
) -> Changes:
    """Return what became of the blocks, read from the disk and checked one block at a time."""
    shapes, found = loaded.layout.shapes(), path.stat().st_size
    *starts, total = accumulate(sizes.values(), initial=0)
    if found != total or not set(sizes) <= set(range(len(shapes))):
        raise ReplyRefusedError(
            f"the final model must come in {total} bytes for blocks 0 to {len(shapes) - 1}, "
            f"{found} bytes arrived for blocks {list(sizes)[:8]}."
        )
    places = dict(zip(sizes, starts, strict=True))
    exchange = main_exchange(config)

    def recall(block: int) -> dict[str, Change]:
        with path.open("rb") as file:
            file.seek(places[block])
            data = file.read(sizes[block])
        try:
            return exchange.read_result(shapes[block], block, len(shapes), data)
        except WireError as error:
            raise ReplyRefusedError(f"what became of block {block}: {error}") from None

    return Recalled(tuple(sizes), recall)
