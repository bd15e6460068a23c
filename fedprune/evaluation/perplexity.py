"""Perplexity by the protocol of the pruning literature.

The text is cut into windows that do not overlap, each window is scored on its own, and the mean is
taken over predicted tokens: the first token of a window is context only.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from fedprune.config import DataConfig, EvaluationConfig, RunConfig, evaluation_data
from fedprune.data.documents import Document
from fedprune.data.texts import OwnTexts, load_documents
from fedprune.errors import DataError
from fedprune.models.capture import output_of
from fedprune.models.changes import Changes
from fedprune.models.device import Limits, explain_out_of_memory
from fedprune.models.loading import LoadedModel
from fedprune.models.walk import ModelWalk

_ROWS = 256  # logits taken to float32 at a time: vocabularies are large
_SEPARATOR = "\n\n"
_DENSE: Changes = MappingProxyType({})
LIMITS = Limits(length_key="evaluation.seq_len")
"""What an evaluation may use where nobody says otherwise."""
_JOINERS = {"space": " ", "blank_line": "\n\n"}


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text.

    Parameters
    ----------
    perplexity : float
        exp(nll); infinite where that overflows.
    nll : float
        Mean negative log-likelihood of a predicted token, in nats.
    windows : int
        Windows scored.
    tokens : int
        Tokens predicted, ``seq_len - 1`` a window.
    reason : str
        Why the figures are no numbers, where they are not.
    """

    perplexity: float
    nll: float
    windows: int
    tokens: int
    reason: str = ""


def token_windows(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    seq_len: int,
    max_windows: int | None = None,
    joiner: str = "eos",
) -> Tensor:
    """Cut documents into windows of tokens that do not overlap.

    By default documents are tokenised one by one, without special tokens, and joined by the
    tokenizer's EOS token; a tokenizer that has none joins them by the tokens of a blank line. The
    published protocols join the texts themselves and tokenise the whole, with the special tokens
    that the tokenizer adds to one text. What is left after the last full window is dropped.

    Parameters
    ----------
    documents : Sequence[Document]
        The held-out texts, in the order in which they are joined.
    tokenizer : PreTrainedTokenizerBase
        The model's own.
    seq_len : int
        Tokens in a window, at least 2.
    max_windows : int, optional
        Keep only the first so many.
    joiner : str
        'eos', or how the texts themselves are joined: 'space' or 'blank_line'.

    Returns
    -------
    Tensor
        Token ids, int64, shape (windows, seq_len).

    Raises
    ------
    DataError
        If ``seq_len`` predicts nothing, or the texts do not fill one window.
    """
    if seq_len < 2:
        raise DataError(f"`evaluation.seq_len` must be at least 2, got {seq_len}.")
    wanted = None if max_windows is None else max_windows * seq_len
    if joiner == "eos":
        tokens = _joined_by_eos(documents, tokenizer, wanted)
    else:
        text = _JOINERS[joiner].join(document.rendered(tokenizer) for document in documents)
        tokens = _encode(tokenizer, text, special=True)
    windows = len(tokens) // seq_len if wanted is None else min(len(tokens), wanted) // seq_len
    if not windows:
        raise DataError(
            f"The held-out texts have {len(tokens)} tokens, one window of `evaluation.seq_len` "
            f"needs {seq_len}. Lower `evaluation.seq_len` or give more text."
        )
    return torch.tensor(tokens[: windows * seq_len]).reshape(windows, seq_len)


def perplexity(
    model: LoadedModel,
    windows: Tensor,
    device: str | torch.device = "cpu",
    changes: Changes = _DENSE,
    limits: Limits = LIMITS,
) -> Perplexity:
    """Score a model on windows of tokens; as :func:`perplexities` for one text."""
    return perplexities(model, {"": windows}, device, changes, limits)[""]


def perplexities(
    model: LoadedModel,
    windows: Mapping[str, Tensor],
    device: str | torch.device = "cpu",
    changes: Changes = _DENSE,
    limits: Limits = LIMITS,
) -> dict[str, Perplexity]:
    """Score a model on the windows of several texts, one block in memory at a time.

    All windows pass the first block before the second is read, so that a model of any size is read
    once.

    Parameters
    ----------
    model : LoadedModel
        The dense model; unchanged.
    windows : Mapping[str, Tensor]
        Label -> token ids, int64, shape (windows, seq_len), from :func:`token_windows`.
    device : str or torch.device
        Where blocks run.
    changes : Mapping[int, Mapping[str, BitMask or LinearUpdate or SparseWeight]]
        Block -> linear -> what becomes of it; asked for block by block.
    limits : Limits
        Windows that run at a time, and memory for hidden states.

    Returns
    -------
    dict[str, Perplexity]
        By label. Log-likelihoods are taken in float32 from the model's logits and added up in
        float64.

    Raises
    ------
    ModelError
        If the windows are longer than the model has positions for, the changes are another
        model's, or memory runs out.
    """
    rows = [window for text in windows.values() for window in text]
    walk = ModelWalk(model, rows, device, limits=limits)
    while walk.blocks_left:
        walk.advance(changes.get(walk.position, {}))
    with explain_out_of_memory("evaluating", *limits.keys):
        losses = _losses(model, rows, walk.hidden, torch.device(device))
        found = {label: _scored(text, losses) for label, text in windows.items()}
    odd = [label for label, one in found.items() if not math.isfinite(one.nll)]
    if odd:
        reason = _why_not_finite(model, rows, device, changes, limits)
        for label in odd:
            found[label] = replace(found[label], reason=reason)
            _log.warning("perplexity on '%s' is %s: %s", label, found[label].nll, reason)
    return found


def _why_not_finite(
    model: LoadedModel,
    rows: Sequence[Tensor],
    device: str | torch.device,
    changes: Changes,
    limits: Limits,
) -> str:
    """Walk once more and return where the first number appears that is none."""
    walk = ModelWalk(model, rows, device, limits=limits)
    while walk.blocks_left:
        found, changed = walk.not_finite(), changes.get(walk.position, {})
        if found:
            return found
        walk.advance(changed)
    if not all(bool(torch.isfinite(states).all()) for states in walk.hidden):
        return "the last block's output holds NaN or infinite values"
    return "the final norm or the head makes NaN or infinite values"


def perplexity_of(nll: float) -> float:
    """Return exp(nll), infinite where that overflows."""
    return float(torch.tensor(nll, dtype=torch.float64).exp())


def _losses(
    model: LoadedModel, rows: Sequence[Tensor], hidden: Sequence[Tensor], device: torch.device
) -> Iterator[float]:
    """Yield the summed negative log-likelihood of each window's tokens after the first."""
    outer = {name: tensor.to(device) for name, tensor in model.outer_tensors().items()}
    for window, states in zip(rows, hidden, strict=True):
        tokens = window.to(device)
        logits = output_of(model, tokens.unsqueeze(0), states.to(device), outer)[0, :-1]
        total = torch.zeros((), dtype=torch.float64, device=device)
        chunks = zip(torch.split(logits, _ROWS), torch.split(tokens[1:], _ROWS), strict=True)
        for part, targets in chunks:
            loss = functional.cross_entropy(part.float(), targets, reduction="none")
            total += loss.sum(dtype=torch.float64)
        yield float(total)


def _scored(windows: Tensor, losses: Iterator[float]) -> Perplexity:
    """Take the losses of a text's windows from those that come one after another."""
    count, seq_len = windows.shape
    total = 0.0
    for loss in islice(losses, count):
        total += loss
    predicted = count * (seq_len - 1)
    nll = total / predicted
    return Perplexity(perplexity_of(nll), nll=nll, windows=count, tokens=predicted)


def _joined_by_eos(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, wanted: int | None
) -> list[int]:
    """Return tokens of documents; from those on that come after the wanted number, none."""
    separator = _separator(tokenizer)
    tokens: list[int] = []
    for number, document in enumerate(documents):
        if wanted is not None and len(tokens) >= wanted:
            break
        tokens += separator if number else []
        tokens += _encode(tokenizer, document.rendered(tokenizer))
    return tokens


def _separator(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    eos = tokenizer.eos_token_id
    return _encode(tokenizer, _SEPARATOR) if eos is None else [int(eos)]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = False) -> list[int]:
    # Not verbose: texts longer than the model's window are the point here, not a mistake.
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids


_log = logging.getLogger("flwr")


def evaluation_windows(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    node: OwnTexts | None = None,
) -> dict[str, Tensor]:
    """Return label -> windows of the held-out part of `data` and of each of `evaluation.datasets`.

    A data set that cannot be had is told in the log and left out: what was pruned until here is
    worth more than one figure about it.

    Parameters
    ----------
    config : RunConfig
        `data` and `evaluation`.
    tokenizer : PreTrainedTokenizerBase
        The model's own.
    node : OwnTexts, optional
        A node's own texts; None on the server, and where all nodes read the same.
    """
    found: dict[str, Tensor] = {}
    for label, data in evaluation_data(config).items():
        try:
            found[label] = heldout_windows(config.evaluation, data, tokenizer, node)
        except DataError as error:
            _log.warning("not evaluated on '%s': %s", label, error)
    return found


def heldout_windows(
    chosen: EvaluationConfig,
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    node: OwnTexts | None = None,
) -> Tensor:
    """Return the windows of one data set's held-out part; DataError where they cannot be had."""
    documents = load_documents(data, "heldout", node)
    return token_windows(documents, tokenizer, chosen.seq_len, chosen.max_windows, data.joiner)
