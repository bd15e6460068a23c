"""How well a node's own pruned model, made without the others, predicts its held-out texts."""

from client_app import node
from client_app.prune import keeps_own
from client_app.scratch import Scratch
from client_app.seat import Seat
from fedprune.config import RunConfig
from fedprune.errors import DataError
from fedprune.evaluation.perplexity import perplexity
from fedprune.models.device import pick_device
from fedprune.models.masking import masked
from fedprune.pruning.blocks import prune_blocks
from fedprune.pruning.driver import BlockWalk
from fedprune.pruning.registry import make_pruner
from fedprune.pruning.spec import block_specs
from fedprune.records import LocalResult
from fedprune.wire.change import Change


def evaluate_local(config: RunConfig, seat: Seat) -> LocalResult:
    """Measure the perplexity of this node's own pruned model on the held-out texts."""
    loaded = node.model(config.model, node.model_path(seat))
    scratch = Scratch(seat.scratch)
    try:
        changes = _own_changes(config, seat)
    finally:
        scratch.remove()
    windows = node.windows(config, seat)
    if config.data.name not in windows:
        raise DataError(f"there is no text to evaluate on in '{config.data.name}'.")
    device = pick_device(config.pruner.device)
    with masked(loaded, changes):
        found = {label: perplexity(loaded.model, rows, device) for label, rows in windows.items()}
    own = found.pop(config.data.name)
    return LocalResult(own.nll, own.tokens, {label: one.nll for label, one in found.items()})


def _own_changes(config: RunConfig, seat: Seat) -> dict[int, dict[str, Change]]:
    """Return what this node makes of every block without the others."""
    loaded = node.model(config.model, node.model_path(seat))
    shapes = loaded.layout.shapes()
    if keeps_own(config):
        scratch = Scratch(seat.scratch)
        return {block: scratch.load_changes(block, named) for block, named in enumerate(shapes)}
    # What it did in the rounds belongs to the common model: it prunes once more, alone.
    walk = BlockWalk(loaded, node.tokens(config, seat), pick_device(config.pruner.device))
    specs = block_specs(config, range(len(shapes)), len(shapes))
    return dict(prune_blocks(walk, make_pruner(config.pruner), specs))
