"""How well a node's own pruned model, made without the others, predicts its held-out texts."""

from client_app import node
from client_app.prune import keeps_own
from client_app.scratch import Scratch
from client_app.seat import Seat
from fedprune.config import RunConfig
from fedprune.errors import DataError
from fedprune.evaluation.perplexity import perplexities
from fedprune.models.changes import Changes, Recalled
from fedprune.models.device import Limits, pick_device
from fedprune.pruning.blocks import BlockWalk, pruned_in_passing
from fedprune.pruning.groups import block_specs
from fedprune.pruning.registry import make_pruner
from fedprune.records import LocalResult


def evaluate_local(config: RunConfig, seat: Seat) -> LocalResult:
    """Measure the perplexity of this node's own pruned model on the held-out texts."""
    loaded = node.model(config, seat)
    windows = node.windows(config, seat)
    if config.data.name not in windows:
        raise DataError(f"there is no text to evaluate on in '{config.data.name}'.")
    limits = Limits.of(config.pruner, "evaluation.seq_len")
    try:
        changes, device = _own_changes(config, seat), pick_device(config.pruner.device)
        found = perplexities(loaded, windows, device, changes, limits)
    except Exception:
        Scratch(seat.scratch).remove()
        raise
    own = found.pop(config.data.name)
    return LocalResult(own.nll, own.tokens, {label: one.nll for label, one in found.items()})


def _own_changes(config: RunConfig, seat: Seat) -> Changes:
    """Return what this node makes of every block without the others, block by block."""
    loaded = node.model(config, seat)
    shapes = loaded.layout.shapes()
    blocks = range(len(shapes))
    if keeps_own(config):
        scratch = Scratch(seat.scratch)
        return Recalled(blocks, lambda block: scratch.load_changes(block, shapes[block]))
    # What it did in the rounds belongs to the common model: it prunes once more, alone.
    device, limits = pick_device(config.pruner.device), Limits.of(config.pruner)
    walk = BlockWalk(loaded, node.tokens(config, seat), device, limits=limits)
    specs = block_specs(config, blocks, len(shapes))
    return pruned_in_passing(walk, make_pruner(config.pruner), specs)
