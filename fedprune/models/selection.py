"""Which of a model's prunable matrices a run prunes: `pruner.targets` without `pruner.ignore`.

The words are those of llm-compressor. An entry is a name, or ``re:`` and a regular expression that
a name must begin with. Names are those of linear maps, and of the modules and blocks around them,
in the model (``model.layers.0``) or inside a block (``mlp``); or a class of maps, ``Linear``.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from fedprune.config.schema import PrunerConfig
from fedprune.errors import ConfigError
from fedprune.models.layout import DecoderLayout
from fedprune.models.loading import LoadedModel

_SHOWN = 8


def select(model: LoadedModel, pruner: PrunerConfig) -> LoadedModel:
    """Return the model whose prunable matrices are those that a configuration selects.

    `model`: the model; unchanged. `pruner`: its `targets` and `ignore`. Raises ConfigError if an
    entry matches nothing, or nothing is left.
    """
    targets, ignore = pruner.target_entries, pruner.ignore_entries
    if not targets and not ignore:
        return model
    return replace(model, layout=selected(model.layout, targets, ignore))


def selected(layout: DecoderLayout, targets: Sequence[str], ignore: Sequence[str]) -> DecoderLayout:
    """Return a layout without the matrices that are not selected; see :func:`select`."""
    known = {
        f"{layout.prefix}.{block}.{name}": frozenset(
            [type(linear.module).__name__, *_names(layout.prefix, block, name)]
        )
        for block in range(len(layout.blocks))
        for name, linear in layout.linears(block).items()
    }
    for key, entries in (("pruner.targets", targets), ("pruner.ignore", ignore)):
        for entry in entries:
            if not any(_matches(entry, names) for names in known.values()):
                shown = list(
                    dict.fromkeys(
                        one for b in range(len(layout.blocks)) for one in layout.linears(b)
                    )
                )
                more = ", ..." if len(shown) > _SHOWN else ""
                raise ConfigError(
                    f"`{key}`: '{entry}' matches nothing that can be pruned. Blocks are called "
                    f"'{layout.prefix}.0' and so on, and hold {', '.join(shown[:_SHOWN])}{more}. "
                    "Write such a name, or 're:' and an expression that a whole name begins with, "
                    "such as 're:.*mlp'."
                )
    left_out = frozenset(
        full
        for full, names in known.items()
        if (targets and not any(_matches(entry, names) for entry in targets))
        or any(_matches(entry, names) for entry in ignore)
    )
    if len(left_out) == len(known):
        raise ConfigError(
            "`pruner.targets` without `pruner.ignore` leaves nothing to prune. "
            "Ignore less, or leave both out."
        )
    return replace(layout, left_out=layout.left_out | left_out, _known={})


def _names(prefix: str, block: int, linear: str) -> Iterator[str]:
    """Yield the names of a linear map and of what is around it, in the model and in the block."""
    parts = linear.split(".") if linear else []
    inside = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    yield f"{prefix}.{block}"
    for name in inside:
        yield name
        yield f"{prefix}.{block}.{name}"


def _matches(entry: str, names: frozenset[str]) -> bool:
    if not entry.startswith("re:"):
        return entry in names
    pattern = re.compile(entry.removeprefix("re:"))
    return any(pattern.match(name) for name in names)
