"""A first pass over the dense model: what enters every linear, for the allocation of zeros."""

from logging import INFO

from flwr.common.logger import log

from fedprune.config import RunConfig, resolved_allocation
from fedprune.pruning.owl import outlier_share, owl_sparsities
from fedprune.records import SUMS, Order, PruneReply
from fedprune.wire.sums import decode_sums
from strategies.cohort import Client
from strategies.messages import Post, Reading
from strategies.plan import MESSAGE_BYTES, Plan
from strategies.pools import ColumnPools, add_checked
from strategies.progress import surveying


def survey(post: Post, config: RunConfig, plan: Plan, figures: dict[str, object]) -> RunConfig:
    """Ask every client for the sums of the dense model and allocate the zeros by them.

    OWL (Yin et al., arXiv 2310.05175): blocks whose scores have more outliers stay denser.

    Parameters
    ----------
    post : Post
        How messages are sent.
    config : RunConfig
        With `allocation.name` 'owl'.
    plan : Plan
        The public model.
    figures : dict
        Gets the outlier shares and sparsities of the blocks.

    Returns
    -------
    RunConfig
        The configuration with a sparsity for each block.

    Raises
    ------
    QuorumError
        If fewer than `strategy.min_clients` answers can be used.
    """
    pools = _collect(post, config, plan)
    shares = [
        outlier_share(
            {name: plan.weight(block, name) for name in plan.shapes[block]},
            pools[block].statistics(),
            config.allocation.threshold,
        )
        for block in range(len(plan.shapes))
    ]
    sparsities = owl_sparsities(shares, config.sparsity, config.allocation.spread)
    figures["allocation"] = {"outlier_shares": shares, "sparsities": sparsities}
    log(INFO, "allocation: %s", " ".join(f"{one:.3f}" for one in sparsities))
    return resolved_allocation(config, sparsities)


def _collect(post: Post, config: RunConfig, plan: Plan) -> list[ColumnPools]:
    blocks = tuple(range(len(plan.shapes)))
    orders = {
        client.node_id: Order(blocks, 0, False, MESSAGE_BYTES, survey=True)
        for client in post.cohort.active
    }
    pools = [ColumnPools(plan.inputs[block], config.strategy.pooling) for block in blocks]
    replies = post.replies(
        post.requests(orders, lambda order: {}),
        "survey",
        report=surveying(post.status),
        joiner=post.joiner(orders, SUMS, sum(map(plan.column_bytes, blocks))),
    )

    def fold(reply: PruneReply, client: Client) -> None:
        found = {b: decode_sums(data, plan.shapes[b]) for b, data in reply.blocks.items()}
        add_checked(dict(enumerate(pools)), found)

    reading = Reading(post.cohort, post.step, "survey", SUMS, plan.column_bytes)
    used = reading.fold_all(replies, orders, fold)
    post.cohort.check_quorum(len(used), config.strategy.min_clients)
    return pools
