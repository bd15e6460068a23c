"""Second moments of a block's inputs in the form that the configuration asks for."""

from collections.abc import Mapping

from fedprune.config import RunConfig
from fedprune.methods.moments import InputPlan, plan_inputs
from fedprune.methods.sketches import eigen_sketch, nystrom_sketch
from fedprune.pruning.statistics import MomentStatistics, Statistics, shared_inputs
from fedprune.wire.moments import Columns, InputMoments, Sketch, Triangle


def input_moments(
    config: RunConfig,
    block: int,
    statistics: Mapping[str, Statistics],
    shapes: Mapping[str, tuple[int, int]],
) -> list[InputMoments]:
    """Return what this node tells of each distinct input of a block.

    Parameters
    ----------
    config : RunConfig
        `strategy.moments` and what goes with it.
    block : int
        Index of the block.
    statistics : Mapping[str, MomentStatistics]
        Name of the linear -> what was recorded; shared inputs share the object.
    shapes : Mapping[str, tuple[int, int]]
        Name of the linear -> (d_out, d_in).
    """
    shared = dict(shared_inputs(statistics))
    plans = plan_inputs(config, block, list(shared), shapes)
    found = []
    for plan in plans:
        known = shared[plan.linears]
        found.append(InputMoments(plan.linears, known.tokens, _body(plan, known)))
    return found


def _body(plan: InputPlan, known: Statistics) -> Triangle | Sketch | Columns:
    if not isinstance(known, MomentStatistics):
        return Columns(known.sum_squares.cpu().numpy())
    moments = known.moments.cpu()
    if plan.form == "eigen":
        return eigen_sketch(moments, plan.rank)
    if plan.form == "nystrom":
        return nystrom_sketch(moments, plan.rank, plan.seed)
    return Triangle.from_matrix(moments.numpy(), "float16" if plan.form == "float16" else "float32")
