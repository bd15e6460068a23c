"""The rules about several values: which of them go together.

Those between a method's keys, and with the others, stand in the method's own configuration type
(:meth:`fedprune.config.schema.StrategyConfig.check`).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath, PureWindowsPath

from fedprune.config.allocation import SURVEYED, allocation_of
from fedprune.config.overrides import dataset_problems
from fedprune.config.schema import (
    HubDataConfig,
    RunConfig,
    Section,
    StructuredConfig,
    strategy_for,
)
from fedprune.config.suggest import show

Relation = Callable[[RunConfig], Iterator[str]]
"""A function that yields the problems between values."""


def told(run: RunConfig, relations: Iterable[Relation]) -> Iterator[str]:
    """Yield the problems that relations find.

    Where a value is wrong by itself, the configuration lacks it, and a relation that asks for it
    has nothing to say.
    """
    for relation in relations:
        try:
            yield from relation(run)
        except AttributeError:
            if not _lacks_values(run):
                raise


def _lacks_values(run: RunConfig) -> bool:
    parts = [run, *(part for part in vars(run).values() if isinstance(part, Section))]
    return any(type(part).model_fields.keys() - vars(part).keys() for part in parts)


def _model_path(run: RunConfig) -> Iterator[str]:
    name, path = run.model.name, run.model.path
    if name == "hf" and path == "":
        yield (
            "`model.path` must be a local folder or a hub id with model=hf, got ''. "
            "Write model=/path/to/folder or model=org/name."
        )
    if name == "demo" and path:
        yield (
            f"`model.path` must be empty with model=demo, got {show(path)}. "
            "Set the model itself: model=/path/to/folder or model=org/name."
        )


def _data_path(run: RunConfig) -> Iterator[str]:
    source, path = run.data.source, run.data.path
    if source in ("files", "hub") and path == "":
        wanted = "a file or folder" if source == "files" else "a data set id or a local folder"
        yield (
            f"`data.path` must be {wanted} with `data.source` '{source}', got ''. "
            "Write data=/path/to/texts or data=org/name."
        )
    if source in ("stdlib", "node") and path:
        yield (
            f"`data.path` must be empty with `data.source` '{source}', got {show(path)}. "
            "Set the data itself, data=/path/to/texts or data=org/name; "
            "a node's own folder is `data-path` in its node_config."
        )


def samples_alone(run: RunConfig, way_out: str = "Leave it out.") -> Iterator[str]:
    """Yield why a method whose sums are exact runs its samples one by one."""
    size = run.pruner.batch_size
    if size > 1:
        yield (
            f"`pruner.batch_size` must be 1 with strategy={run.strategy.name}, got {size}: its "
            f"sums are exact only where a sample runs alone. {way_out}"
        )


def dense_model_only(run: RunConfig) -> Iterator[str]:
    """Yield why a method that asks about the dense model has no other schedule."""
    if run.schedule.name != "one_shot":
        yield (
            f"`schedule.name` must be 'one_shot' with strategy={run.strategy.name}, which sees the "
            f"dense model only, got {show(run.schedule.name)}. Set schedule=one_shot."
        )


def sketches_add(run: RunConfig) -> Iterator[str]:
    """Yield why sketches that are made of one client's moments cannot be sums under masks."""
    if run.privacy.secure and run.strategy.moments == "eigen":
        yield (
            "`strategy.moments` must be 'nystrom', 'float32' or 'float16' with `privacy.secure` "
            "true, got 'eigen': eigenvectors are one client's own, and do not add up. Set "
            "strategy.moments=nystrom."
        )


def serves_worst(run: RunConfig) -> Iterator[str]:
    """Yield why clients that nobody sees by themselves cannot be told apart by their errors."""
    if run.privacy.secure and run.strategy.serves_worst:
        yield (
            "`strategy.pooling` must not be 'worst' with `privacy.secure` true: who is served "
            "worst shows in each client's own statistics, and under masks there are sums of all. "
            "Set strategy.pooling=clients, where each counts the same, or privacy.secure=false."
        )


def _heldout_split(run: RunConfig) -> Iterator[str]:
    if isinstance(run.data, HubDataConfig) and run.data.heldout_split == run.data.split:
        yield (
            "`data.heldout_split` must differ from `data.split`, got "
            f"{show(run.data.split)} for both. "
            "Write data.heldout_split=null to keep `data.heldout_fraction` of the split apart."
        )


def _glob(run: RunConfig) -> Iterator[str]:
    glob = run.data.glob
    absolute = PurePosixPath(glob).is_absolute() or PureWindowsPath(glob).is_absolute()
    if absolute or ".." in PurePosixPath(glob).parts:
        yield (
            f"`data.glob` must stay inside the folder, got {show(glob)}. "
            "Write a relative pattern such as '**/*.txt'."
        )


def _pattern(run: RunConfig) -> Iterator[str]:
    pattern, sparsity = run.pruner.pattern, run.sparsity
    if pattern.density is None:
        return
    wanted = 1 - pattern.density
    if not math.isclose(sparsity, wanted, abs_tol=1e-6):
        yield (
            f"`sparsity` must be {wanted:g} with `pruner.pattern` '{pattern}', which keeps "
            f"{pattern.n} of every {pattern.m} weights, got {sparsity:g}. Set sparsity={wanted:g}, "
            "or pruner.pattern=unstructured."
        )


def _allocation_lists(run: RunConfig) -> Iterator[str]:
    name, allocation = run.allocation.name, run.allocation
    lists = {"blocks": ("per_block", "0.4,0.6"), "linears": ("per_linear", "'mlp.up_proj=0.4,0.6'")}
    for key, (owner, example) in lists.items():
        value = getattr(allocation, key)
        if name != owner and value:
            yield (
                f"`allocation.{key}` must be empty with allocation={name}, got {show(value)}. "
                f"Write allocation={owner}."
            )
        if name == owner and not value:
            yield (
                f"`allocation.{key}` must list a sparsity for each block with allocation={owner}, "
                f"got ''. Write allocation.{key}={example} or allocation=uniform."
            )


def _allocation_pattern(run: RunConfig) -> Iterator[str]:
    if allocation_of(run) != "uniform" and run.pruner.pattern.structured:
        yield (
            "`allocation.name` must be 'uniform' with an N:M pattern, got "
            f"{show(run.allocation.name)}. Set pruner.pattern=unstructured."
        )


def _allocation_mean(run: RunConfig) -> Iterator[str]:
    listed = run.allocation.listed
    if run.allocation.name != "per_block" or not listed:
        return
    mean = math.fsum(listed) / len(listed)
    if abs(mean - run.sparsity) > 1e-3:
        yield (
            f"The mean of `allocation.blocks` must be `sparsity` {run.sparsity:g}, got {mean:g}. "
            f"Set sparsity={mean:g}, or change the list."
        )


def _spread(run: RunConfig) -> Iterator[str]:
    chosen = allocation_of(run)
    if chosen not in SURVEYED:
        return
    sparsity, spread = run.sparsity, run.allocation.spread
    most = min(sparsity, 1 - sparsity)
    if most == 0:
        yield (
            f"`sparsity` must be above 0 with allocation={chosen}, which moves zeros from some "
            "matrices to others, got 0. Raise it, or set allocation=uniform."
        )
    elif chosen == "owl" and spread >= most:
        yield (
            f"`allocation.spread` must be below {most:g} with `sparsity` {sparsity:g}, so that "
            f"every block's sparsity is at least 0 and below 1, got {spread:g}. "
            f"Set allocation.spread={most / 2:g} or allocation=uniform."
        )


def _pruner_group(run: RunConfig) -> Iterator[str]:
    name, group = run.pruner.name, run.pruner.group
    allowed = {"sparsegpt": ("layer", "row"), "alps": ("layer", "row"), "sparseswaps": ("row",)}
    names = allowed.get(name)
    if names is None or group in names:
        return
    why = (
        "which trades the weights of one output"
        if name == "sparseswaps"
        else "which masks a part of every row at a time"
    )
    yield (
        f"`pruner.group` must be {' or '.join(show(option) for option in names)} with "
        f"pruner={name}, {why}, got {show(group)}. Set pruner.group={names[0]}."
    )


def _quantized(run: RunConfig) -> Iterator[str]:
    pruner, strategy = run.pruner, run.strategy
    if pruner.bits is None:
        return
    if not strategy.quantizes:
        key, wanted, got = "bits", "null", str(pruner.bits)
        if not pruner.prunes:
            key, wanted, got = "name", "one that prunes", show(pruner.name)
        yield (
            f"`pruner.{key}` must be {wanted} with strategy={strategy.name}, where clients prune "
            f"and the server puts their answers together, got {got}. Set "
            f"{'pruner=wanda' if key == 'name' else 'pruner.bits=null'}, or "
            f"strategy={strategy_for(pruner.name)}."
        )
    if not pruner.prunes and run.sparsity:
        yield (
            f"`sparsity` must be 0 with pruner={pruner.name}, which rounds weights and prunes "
            f"none, got {run.sparsity:g}. Leave it out, or set pruner=sparsegpt pruner.bits="
            f"{pruner.bits} for both at once."
        )
    if not pruner.prunes and pruner.pattern.structured:
        yield (
            f"`pruner.pattern` must be unstructured with pruner={pruner.name}, which prunes none, "
            f"got {show(str(pruner.pattern))}."
        )
    m, size = pruner.pattern.m, pruner.group_size
    if m is not None and size is not None and size % m:
        yield (
            f"`pruner.group_size` must be a multiple of {m} with `pruner.pattern` "
            f"'{pruner.pattern}', got {size}. Set pruner.group_size=null."
        )


def _two_sided(run: RunConfig) -> Iterator[str]:
    if run.pruner.two_sided and not run.strategy.quantizes:
        yield (
            f"`pruner.two_sided` must be false with strategy={run.strategy.name}, where clients "
            "prune: what the loss says of outputs is known to the server, got true. Set "
            f"strategy={strategy_for(run.pruner.name)}, or pruner.two_sided=false."
        )


def _units(run: RunConfig) -> Iterator[str]:
    if not isinstance(run.pruner, StructuredConfig):
        return
    name, strategy = run.pruner.name, run.strategy
    if not type(strategy).removes_units and (strategy.pruners is None or name in strategy.pruners):
        yield (
            f"`pruner.name` must be one that prunes single weights with strategy={strategy.name}, "
            f"got {show(name)}: clients would each remove other units. Set pruner=wanda, or "
            f"strategy={strategy_for(name)}."
        )
    if run.pruner.pattern.structured:
        yield (
            f"`pruner.pattern` must be 'unstructured' with pruner={name}, which removes whole rows "
            f"and columns, got '{run.pruner.pattern}'. Leave it out."
        )
    if allocation_of(run) != "uniform":
        yield (
            f"`allocation.name` must be 'uniform' with pruner={name}, got "
            f"{show(run.allocation.name)}: transformers and vLLM have one width for all blocks and "
            "would not load others. Set allocation=uniform."
        )


def _pooling(run: RunConfig) -> Iterator[str]:
    strategy, allocation = run.strategy, allocation_of(run)
    if strategy.pooling != "tokens" and not strategy.pools and allocation not in SURVEYED:
        yield (
            f"`strategy.pooling` must be 'tokens' with strategy={strategy.name} and allocation="
            f"{allocation}, which pool no statistics, got {show(strategy.pooling)}. Leave it out, "
            "or set allocation=owl."
        )


def _reconstruct(run: RunConfig) -> Iterator[str]:
    name = run.reconstruct.name
    if name == "none":
        return
    if run.schedule.name != "iterative":
        yield (
            f"`reconstruct.name` must be 'none' with schedule={run.schedule.name}, where clients "
            f"never hear what became of a block and cannot fit it together, got {show(name)}. Set "
            "schedule=iterative."
        )
    if isinstance(run.pruner, StructuredConfig) or run.pruner.bits is not None:
        what = "removes units" if run.pruner.bits is None else "leaves quantised weights"
        yield (
            f"`reconstruct.name` must be 'none' with pruner={run.pruner.name}, which {what}, got "
            f"{show(name)}: survivors are fitted as they are. Set reconstruct=none."
        )
    if run.strategy.layer_fraction != 1:
        yield (
            "`strategy.layer_fraction` must be 1 with `reconstruct.name` "
            f"{show(name)}, where every client stands at every block, got "
            f"{run.strategy.layer_fraction:g}. Leave it out."
        )
    if run.privacy.secure:
        yield (
            f"`reconstruct.name` must be 'none' with `privacy.secure` true, got {show(name)}: the "
            "sums of a run under masks are counted before it starts, and how often a block is "
            "fitted shows as it goes. Set reconstruct=none."
        )
    elif run.privacy.epsilon is not None or run.privacy.first_is_public:
        key = "epsilon" if run.privacy.epsilon is not None else "first_input"
        yield (
            f"`reconstruct.name` must be 'none' with `privacy.{key}`, got {show(name)}: gradients "
            "are sent as they are, the first block's among them. Set reconstruct=none."
        )
    if name == "fedsgd" and run.reconstruct.local_steps != 1:
        yield (
            "`reconstruct.local_steps` must be 1 with reconstruct=fedsgd, which sends a gradient, "
            f"got {run.reconstruct.local_steps}. Set reconstruct=fedavg."
        )


def _cohort(run: RunConfig) -> Iterator[str]:
    least, cohort = run.strategy.min_clients, run.privacy.min_cohort
    if run.privacy.secure and least < cohort:
        yield (
            f"`strategy.min_clients` must be at least `privacy.min_cohort` {cohort} with "
            f"`privacy.secure` true, or the run could not open what it was sent, got {least}. Set "
            f"strategy.min_clients={cohort}, or a lower privacy.min_cohort."
        )


def _under_masks(run: RunConfig) -> Iterator[str]:
    if not run.privacy.secure:
        return
    weights = run.strategy.client_weights
    if weights != "equal":
        yield (
            "`strategy.client_weights` must be 'equal' with `privacy.secure` true, where nobody "
            f"can see whether an answer has the weight that its client claims, got {show(weights)}."
            " Leave it out."
        )
    if run.evaluation.federated:
        yield (
            "`evaluation.federated` must be false with `privacy.secure` true, got true: what each "
            "client measures on its own texts is a figure of one client. Leave it out."
        )


def _noise(run: RunConfig) -> Iterator[str]:
    """Yield what a guarantee for every sample does not go with."""
    privacy = run.privacy
    if privacy.epsilon is None:
        return
    asked = f"with `privacy.epsilon` {privacy.epsilon:g}"
    if run.strategy.pooling != "tokens":
        yield (
            f"`strategy.pooling` must be 'tokens' {asked}, got {show(run.strategy.pooling)}: what "
            "one sample can change is known of sums only. Leave it out."
        )
    if run.pruner.batch_size > 1:
        yield (
            f"`pruner.batch_size` must be 1 {asked}, got {run.pruner.batch_size}: what a sample "
            "adds is limited sample by sample. Leave it out."
        )
    if run.data.sampling == "published":
        yield (
            f"`data.sampling` must be 'packed' {asked}, got 'published', which may take the same "
            "text several times. Set data.sampling=packed."
        )
    for key in ("local_only", "federated"):
        if getattr(run.evaluation, key):
            yield (
                f"`evaluation.{key}` must be false {asked}, got true: a client's figures have no "
                f"noise. Set evaluation.{key}=false."
            )
    if privacy.first_input == "own":
        yield (
            f"`privacy.first_input` must be 'public' or 'auto' {asked}, got 'own'. Leave it out."
        )
    if privacy.secure and privacy.tolerate >= privacy.min_cohort:
        yield (
            f"`privacy.tolerate` must be below `privacy.min_cohort` {privacy.min_cohort} {asked}, "
            f"got {privacy.tolerate}: somebody's noise must remain. Set privacy.tolerate=0."
        )


def _prefix(run: RunConfig) -> Iterator[str]:
    if run.schedule.name == "iterative" and run.schedule.prefix == "dense":
        yield (
            "`schedule.prefix` must be 'local' with schedule=iterative, where earlier blocks are "
            "the pruned ones, got 'dense'. Set schedule=one_shot, or schedule.prefix=local."
        )


def _schedule(run: RunConfig) -> Iterator[str]:
    blocks = run.schedule.blocks_per_message
    if run.schedule.name == "iterative" and blocks not in (None, 1):
        yield (
            "`schedule.blocks_per_message` must be null or 1 with schedule=iterative, which goes "
            f"block by block, got {show(blocks)}."
        )


def _baselines(run: RunConfig) -> Iterator[str]:
    if run.data.source == "node" and run.evaluation.centralized:
        yield (
            "`evaluation.centralized` must be false with data=node, got true: the baseline pools "
            "all clients' texts, and those never leave their nodes."
        )


def enough_simulated_clients(run: RunConfig) -> Iterator[str]:
    """Yield a problem where a local simulation has fewer clients than the round needs.

    Only the command line knows how many clients there will be; the apps are told by Flower.
    """
    clients, wanted = run.federation.num_clients, run.strategy.min_clients
    if run.federation.connection == "" and wanted > clients:
        yield (
            "`strategy.min_clients` must be at most `federation.num_clients` in a simulation, got "
            f"{wanted} with {clients}. Set federation.num_clients={wanted} or "
            f"strategy.min_clients={clients}."
        )


RELATIONS: tuple[Relation, ...] = (
    _model_path,
    _data_path,
    _heldout_split,
    _glob,
    _pattern,
    _pruner_group,
    _quantized,
    _two_sided,
    _units,
    _allocation_lists,
    _allocation_pattern,
    _allocation_mean,
    _spread,
    _pooling,
    _reconstruct,
    _cohort,
    _under_masks,
    _noise,
    _schedule,
    _prefix,
    _baselines,
    lambda run: dataset_problems(run.evaluation.datasets),
)
"""What must hold between the values of every configuration."""
