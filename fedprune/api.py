"""The maths without Flower: prune on some texts, put several results together, measure.

For a notebook or a script. A model is 'demo', a folder, a hub id, or what
:func:`~fedprune.models.loading.loaded_from` makes of a model and a tokenizer that are in memory. No
function changes a model: what becomes of its weights is a value, block -> linear -> change, which
:func:`~fedprune.models.export.export_model` writes as an ordinary model folder.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedprune.config import config_from_overrides
from fedprune.config.schema import strategy_for
from fedprune.data.documents import Document
from fedprune.errors import ConfigError, DataError, ModelError
from fedprune.evaluation.perplexity import Perplexity, perplexity, token_windows
from fedprune.methods.exchange import BlockExchange, BlockResult, BlockTask, Contributor
from fedprune.methods.public_model import PublicModel
from fedprune.methods.registry import get_method, method_names
from fedprune.models.changes import Changes
from fedprune.models.device import Limits, pick_device
from fedprune.models.loading import LoadedModel, check_seq_len, load_model
from fedprune.models.selection import select
from fedprune.pruning.blocks import BlockWalk, prune_blocks
from fedprune.pruning.groups import block_specs
from fedprune.pruning.pruner import Pruner
from fedprune.pruning.registry import NAMES, make_pruner
from fedprune.wire.changes import Change, keeps_survivors, mask_of

Model = str | Path | LoadedModel
"""'demo', a folder, a hub id, or a model that is loaded."""


def prune_locally(
    model: Model,
    texts: str | Tensor | Mapping[str, object] | Iterable[object],
    *,
    sparsity: float | None = None,
    pruner: str | Pruner = "wanda",
    overrides: str | Sequence[str] = (),
) -> dict[int, dict[str, Change]]:
    """Prune a model block by block on one client's texts.

    Parameters
    ----------
    model : str, Path or LoadedModel
        The dense model.
    texts : str, or iterable of str or of token ids
        What to calibrate on: texts, joined and cut into samples of `pruner.seq_len` tokens, or
        samples of token ids: what a tokenizer returns (shape (1, tokens), or several samples in one
        batch), tensors, arrays, lists of ids, mappings with ``input_ids``, a data set of these.
    sparsity : float or None
        Share of zeros, at least 0 and below 1; None: what `conf/` says, 0.5, or 0 for pruners that
        quantise.
    pruner : str or Pruner
        'wanda', 'ria', 'magnitude', 'sparsegpt', 'alps', 'sparseswaps', 'gptq', 'rounding', or one
        of your own.
    overrides : str or sequence of str
        Any other key of the configuration about pruning, as on the command line:
        ``["pruner.pattern='2:4'", "pruner.group=layer"]``.

    Returns
    -------
    dict[int, dict[str, Change]]
        Block -> linear -> mask, or survivors with new values, or a quantised weight, as the pruner
        makes them.

    Raises
    ------
    FedpruneError
        If an argument is wrong, the texts are too few or the model cannot be pruned.

    Examples
    --------
    >>> import fedprune
    >>> texts = ["Return the absolute path of a file, or None if there is no such file. " * 9]
    >>> changes = fedprune.prune_locally("demo", texts, sparsity=0.5)
    >>> round(changes[0]["self_attn.q_proj"].sparsity, 2)
    0.5
    """
    name = pruner if isinstance(pruner, str) else pruner.name
    # One of somebody's own need not be installed: it is given, and has the defaults of Wanda.
    named = [f"pruner={name}"] if isinstance(pruner, str) or name in NAMES else []
    typed = [overrides] if isinstance(overrides, str) else overrides
    # Not every strategy takes every pruner, and none is followed here.
    goes_with = [f"strategy={strategy_for(name)}"] if named else []
    share = [] if sparsity is None else [f"sparsity={sparsity}"]
    config = config_from_overrides([*share, *named, *goes_with, *typed])
    loaded = select(_opened(model), config.pruner)
    samples = _samples(loaded, texts, config.pruner.seq_len)
    device, limits = pick_device(config.pruner.device), Limits.of(config.pruner)
    walk = BlockWalk(loaded, samples, device, limits=limits)
    blocks = len(loaded.layout.blocks)
    chosen = make_pruner(config.pruner) if isinstance(pruner, str) else pruner
    return dict(prune_blocks(walk, chosen, block_specs(config, range(blocks), blocks)))


def aggregate(
    results: Sequence[Changes],
    *,
    model: Model,
    how: str = "votes",
    sparsity: float = 0.5,
    pattern: str = "unstructured",
    overrides: str | Sequence[str] = (),
) -> dict[int, dict[str, Change]]:
    """Put what several clients made of the same model together, as a method's server does.

    Parameters
    ----------
    results : sequence of Mapping[int, Mapping[str, Change]]
        One a client, as :func:`prune_locally` returns them; blocks may be left out, whole ones.
    model : str, Path or LoadedModel
        The dense model that all of them pruned.
    how : str
        'votes' prunes the weights that most clients pruned (FedPrLLM, arXiv 2505.13547). 'l0'
        takes the mean of each weight over the clients that kept it, then prunes by votes
        (FedSpaLLM, arXiv 2410.14852); 'fedavg' takes the mean over all clients. Methods of
        installed packages may bring more.
    sparsity : float
        Share of zeros to end with; an N:M pattern fixes it.
    pattern : str
        'unstructured' or 'N:M', N survivors of every M inputs.
    overrides : str or sequence of str
        Any other key of the method, as on the command line: where votes compete, and what decides
        between equal ones: ``["strategy.group=row", "strategy.ties=index"]``.

    Returns
    -------
    dict[int, dict[str, BitMask or SparseWeight]]
        Block -> linear -> what becomes of it: masks with 'votes', means with the others.

    Raises
    ------
    FedpruneError
        If an argument is wrong, or a result is of another model.

    Examples
    --------
    >>> import fedprune
    >>> sites = ["Return the absolute path of a file. " * 18, "The list is sorted in place. " * 18]
    >>> clients = [fedprune.prune_locally("demo", [text]) for text in sites]
    >>> masks = fedprune.aggregate(clients, model="demo")
    >>> masks[3]["mlp.up_proj"].shape == clients[0][3]["mlp.up_proj"].shape
    True
    >>> means = fedprune.aggregate(clients, model="demo", how="l0")
    >>> round(means[0]["mlp.up_proj"].mask.sparsity, 2)
    0.5
    """
    if not results:
        raise ConfigError("`results` must hold what at least one client made, got none.")
    ways = {way: get_method(name) for name in method_names() for way in get_method(name).ways}
    if how not in ways:
        known = ", ".join(f"'{way}'" for way in ways)
        raise ConfigError(f"`how` must be one of {known}, got '{how}'.")
    method, typed = ways[how], [overrides] if isinstance(overrides, str) else overrides
    # Whose pruner changes survivors: values are averaged even where all came unchanged.
    asked = [f"strategy={method.name}", "pruner=sparsegpt", f"pruner.pattern='{pattern}'"]
    config = config_from_overrides([*asked, f"sparsity={sparsity}", *method.ways[how], *typed])
    loaded, exchange = select(_opened(model), config.pruner), method.exchange(config)
    public = PublicModel(tuple(loaded.layout.shapes()), "", "", "", loaded.weight)
    made: dict[int, dict[str, Change]] = {}
    for block in range(public.num_blocks):
        told = [result[block] for result in results if result.get(block)]
        made[block] = _aggregated(exchange, public, block, told)
    return made


def _aggregated(
    exchange: BlockExchange, model: PublicModel, block: int, told: Sequence[Mapping[str, Change]]
) -> dict[str, Change]:
    """Return what becomes of a block of which some clients told; what nobody pruned stays dense."""
    if not told:
        return {}
    shapes = {name: model.shapes[block][name] for name in model.shapes[block] if name in told[0]}
    for changes in told:
        found = {name: change.shape for name, change in changes.items()}
        if found != shapes:
            raise ModelError(
                f"A result of block {block} has {_shown(found)}, expected {_shown(shapes)}. Give "
                "results of this model, of the same linears."
            )
    part = replace(model, shapes=(*model.shapes[:block], shapes, *model.shapes[block + 1 :]))
    sums = exchange.aggregator(BlockTask(part, block, total_weight=len(told)))
    for number, changes in enumerate(told):
        answer = exchange.answer_of(changes, partial(model.weight, block))
        sums.add(answer, Contributor(f"client {number}"))
    result: BlockResult = sums.close()
    return {
        name: mask_of(change) if keeps_survivors(change) else change
        for name, change in result.changes.items()
    }


def _shown(shapes: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(f"'{name}' of shape {shape}" for name, shape in shapes.items())


def evaluate(
    model: Model,
    text: str | Sequence[str],
    changes: Changes | None = None,
    *,
    seq_len: int = 128,
    device: str = "auto",
) -> Perplexity:
    """Measure the perplexity of a model, dense or changed, block by block.

    Parameters
    ----------
    model : str, Path or LoadedModel
        The dense model.
    text : str or sequence of str
        Held-out text.
    changes : Mapping[int, Mapping[str, Change]], optional
        What becomes of its weights; None measures the model as it is.
    seq_len : int
        Tokens of a window; the first of each is context only.
    device : str
        'auto', 'cpu', 'cuda' or 'cuda:N'.

    Returns
    -------
    Perplexity
        With the mean log-likelihood and the number of tokens behind it.

    Raises
    ------
    FedpruneError
        If the text does not fill a window, or the changes are another model's.

    Examples
    --------
    >>> import fedprune
    >>> text = "Return a list of the names of all files in a folder, in any order. " * 20
    >>> changes = fedprune.prune_locally("demo", [text], sparsity=0.9)
    >>> dense = fedprune.evaluate("demo", text)
    >>> dense.perplexity < fedprune.evaluate("demo", text, changes).perplexity
    True
    """
    loaded = _opened(model)
    texts = [text] if isinstance(text, str) else list(text)
    windows = token_windows(_documents(texts), loaded.tokenizer, seq_len)
    return perplexity(loaded, windows, pick_device(device), changes or {})


def _opened(model: Model) -> LoadedModel:
    if isinstance(model, LoadedModel):
        return model
    return load_model(config_from_overrides([f"model={model}"]).model)


def _documents(texts: Sequence[str]) -> list[Document]:
    return [Document(text, "texts", str(number)) for number, text in enumerate(texts)]


def _samples(loaded: LoadedModel, texts: object, seq_len: int) -> list[Tensor]:
    """Return calibration samples of texts, or of token ids in any form that people have them."""
    # A string is a sequence of strings, too: of its letters.
    given = (
        [texts] if isinstance(texts, str | Tensor | np.ndarray | Mapping) else list(_each(texts))
    )
    written = [one for one in given if isinstance(one, str)]
    if written and len(written) < len(given):
        raise DataError(
            f"`texts` are {len(written)} strings and {len(given) - len(written)} others. Give "
            "texts or token ids, not both."
        )
    if not written:
        return _token_samples(given, loaded)
    try:
        return list(token_windows(_documents(written), loaded.tokenizer, seq_len))
    except DataError:
        raise DataError(
            f"The texts do not fill one sample of {seq_len} tokens (`pruner.seq_len`). Give more "
            "text, or overrides=['pruner.seq_len=...']."
        ) from None


def _each(texts: object) -> Iterable[object]:
    if not isinstance(texts, Iterable):
        raise DataError(f"`texts` must be texts or token ids, got {type(texts).__name__}.")
    # One sample as a list of ids, which is no list of samples.
    ids = isinstance(texts, Sequence) and texts and all(isinstance(one, int) for one in texts)
    return [texts] if ids else texts


def _token_samples(given: Sequence[object], loaded: LoadedModel) -> list[Tensor]:
    """Return samples, int64 of shape (tokens,), checked against the model."""
    rows = loaded.model.get_input_embeddings().num_embeddings
    samples: list[Tensor] = []
    for number, one in enumerate(given):
        found = one.get("input_ids") if isinstance(one, Mapping) else one
        try:
            ids = torch.as_tensor(found)
        except (TypeError, ValueError, RuntimeError):
            ids = torch.empty(0)
        if ids.ndim not in (1, 2) or ids.is_floating_point() or ids.dtype == torch.bool:
            raise DataError(
                f"Sample {number} must be token ids: whole numbers of shape (tokens,) or (samples, "
                f"tokens), or a mapping with them as 'input_ids', got {_what(found)}."
            )
        if not ids.numel() or int(ids.min()) < 0 or int(ids.max()) >= rows:
            raise DataError(
                f"Sample {number} must have token ids from 0 to {rows - 1}, the rows of the "
                f"model's embedding, got {_what(found)}. Use the model's own tokenizer."
            )
        samples += ids.reshape(-1, ids.shape[-1]).long().unbind()
    for length in {len(sample) for sample in samples}:
        check_seq_len(loaded.model, length, "tokens of a sample")
    return samples


def _what(value: object) -> str:
    shape = getattr(value, "shape", None)
    of = "" if shape is None else f" of shape {tuple(shape)}"
    return f"{type(value).__name__}{of}"
