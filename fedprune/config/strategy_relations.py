"""The rules about strategies: which keys each of them reads, and what it needs from the others."""

from collections.abc import Callable, Iterator, Mapping

from fedprune.config.pattern import Pattern
from fedprune.config.schema import Value
from fedprune.config.suggest import show

Values = Mapping[str, Value]
"""Dotted key -> value; a value with a problem of its own is absent."""

Relation = Callable[[Values], Iterator[str]]
"""A function that yields the problems between values."""

SECOND_MOMENTS = ("sparsegpt", "alps", "sparseswaps")
"""Pruners that solve with the second moments of the inputs."""

_ONLY: Mapping[str, Mapping[str, Value]] = {
    "fedprllm": {"decode": False, "scaling": False, "majority_floor": False},
    "fedspallm": {
        "average": "l0",
        "expansion": True,
        "rounds": 1,
        "ramp": "none",
        "layer_fraction": 1.0,
        "layer_resources": "equal",
        "layer_draw": "stratified",
        "coverage": 1,
        "layer_weights": "equal",
    },
    "fedstats": {"downlink": "auto"},
    "fedhessian": {"moments": "float32", "bits_per_weight": None, "max_width": None},
}
"""Strategy -> key that it alone reads, and the value that the others must leave it at."""


def _keys_of_others(values: Values) -> Iterator[str]:
    name = values.get("strategy.name")
    if name is None:
        return
    for owner, keys in _ONLY.items():
        for key, default in keys.items():
            got = values.get(f"strategy.{key}", default)
            if name != owner and got != default:
                yield (
                    f"`strategy.{key}` must be {show(default)} with strategy={name}, got "
                    f"{show(got)}: only strategy={owner} reads it. Leave it out, or set "
                    f"strategy={owner}."
                )


def _rounding(values: Values) -> Iterator[str]:
    name, rounding = values.get("strategy.name"), values.get("strategy.rounding")
    if name not in (None, "fedspallm") and rounding == "ceil":
        yield (
            f"`strategy.rounding` must be 'floor' with strategy={name}, got 'ceil'. "
            "Set strategy.rounding=floor, or strategy=fedspallm."
        )


def _pooling(values: Values) -> Iterator[str]:
    name, pooling = values.get("strategy.name"), values.get("strategy.pooling")
    allocation = values.get("allocation.name")
    reads = name in ("fedstats", "fedhessian") or allocation == "owl"
    if None not in (name, allocation) and not reads and pooling not in (None, "tokens"):
        yield (
            f"`strategy.pooling` must be 'tokens' with strategy={name} and allocation="
            f"{allocation}, which pool no statistics, got {show(pooling)}. Leave it out, or set "
            "strategy=fedstats or allocation=owl."
        )


def _strategy_pruner(values: Values) -> Iterator[str]:
    name, pruner = values.get("strategy.name"), values.get("pruner.name")
    wanted = {"fedstats": ("wanda", "ria"), "fedhessian": SECOND_MOMENTS}.get(str(name))
    if wanted is None or pruner is None or pruner in wanted:
        return
    why = {
        "fedstats": "which sums the norms of inputs",
        "fedhessian": "which sums the second moments of inputs",
    }[str(name)]
    other = "fedhessian" if pruner in SECOND_MOMENTS else "fedprllm"
    if name == "fedhessian" and pruner in ("wanda", "ria"):
        other = "fedstats"
    names = ", ".join(repr(option) for option in wanted)
    yield (
        f"`pruner.name` must be one of {names} with strategy={name}, {why}, got {show(pruner)}. "
        f"Set pruner={wanted[0]}, or strategy={other}."
    )


def _exact_batches(values: Values) -> Iterator[str]:
    size = values.get("pruner.batch_size")
    if values.get("strategy.name") == "fedstats" and isinstance(size, int) and size > 1:
        yield (
            f"`pruner.batch_size` must be 1 with strategy=fedstats, got {size}: its sums are exact "
            "only where a sample runs alone. Leave it out, or set strategy=fedhessian."
        )


def _decode(values: Values) -> Iterator[str]:
    if values.get("strategy.decode") is not True:
        return
    wanted: Mapping[str, Value] = {
        "pruner.name": "wanda",
        "pruner.group": "row",
        "strategy.scaling": False,
        "strategy.majority_floor": False,
    }
    for key, only in wanted.items():
        got = values.get(key, only)
        if got != only:
            yield (
                f"`{key}` must be {show(only)} with `strategy.decode` true, which reads column "
                f"norms out of Wanda's masks row by row, got {show(got)}. Set "
                f"{key.removesuffix('.name')}={str(only).lower()}, or strategy.decode=false."
            )
    pattern = values.get("pruner.pattern")
    if isinstance(pattern, Pattern) and pattern.structured:
        yield (
            "`pruner.pattern` must be 'unstructured' with `strategy.decode` true, which needs one "
            f"threshold for a whole row, got {show(pattern)}. Set pruner.pattern=unstructured, or "
            "strategy.decode=false."
        )


def _rounds(values: Values) -> Iterator[str]:
    ramp, pattern = values.get("strategy.ramp"), values.get("pruner.pattern")
    if ramp not in (None, "none") and isinstance(pattern, Pattern) and pattern.structured:
        yield (
            f"`strategy.ramp` must be 'none' with `pruner.pattern` '{pattern}', which fixes the "
            f"sparsity of every round, got {show(ramp)}. Set pruner.pattern=unstructured, or "
            "strategy.ramp=none."
        )
    if values.get("schedule.name") != "iterative":
        return
    for key, only in (("rounds", 1), ("layer_fraction", 1.0)):
        got = values.get(f"strategy.{key}", only)
        if got != only:
            yield (
                f"`strategy.{key}` must be {only:g} with schedule=iterative, where every client "
                f"prunes every block once, got {show(got)}. Set schedule=one_shot, or "
                f"strategy.{key}={only:g}."
            )


def _coverage(values: Values) -> Iterator[str]:
    coverage, clients = values.get("strategy.coverage"), values.get("strategy.min_clients")
    if isinstance(coverage, int) and isinstance(clients, int) and coverage > clients:
        yield (
            f"`strategy.coverage` must be at most `strategy.min_clients` {clients}, got "
            f"{coverage}. Set strategy.min_clients={coverage} or strategy.coverage={clients}."
        )


def _bits(values: Values) -> Iterator[str]:
    moments, bits = values.get("strategy.moments"), values.get("strategy.bits_per_weight")
    if moments in ("float32", "float16") and bits is not None:
        yield (
            f"`strategy.bits_per_weight` must be null with `strategy.moments` {show(moments)}, "
            f"which sends every entry, got {show(bits)}. Set strategy.moments=eigen or "
            "strategy.moments=nystrom."
        )


STRATEGY_RELATIONS: tuple[Relation, ...] = (
    _keys_of_others,
    _rounding,
    _pooling,
    _strategy_pruner,
    _exact_batches,
    _decode,
    _rounds,
    _coverage,
    _bits,
)
"""Functions that yield the problems between a strategy's keys and the others."""
