"""Perplexity by the protocol of the pruning literature, and agreement with the dense model.

The text is cut into windows that do not overlap, each window is scored on its own, and the mean is
taken over predicted tokens: the first token of a window is context only. Models of equal perplexity
can still answer differently, so where the dense model's last hidden states are at hand each
prediction is held against the dense one as well.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from fedprune.errors import DataError, ModelError
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
    """How well a model predicts a text."""

    perplexity: float  # exp(nll); infinite where that overflows
    nll: float  # mean negative log-likelihood of a predicted token, in nats
    windows: int
    tokens: int  # tokens predicted, ``seq_len - 1`` a window
    reason: str = ""  # why the figures are no numbers, where they are not
    # mean over predicted tokens of the Kullback-Leibler divergence from the dense model's
    # distribution p to this one's q, sum p (log p - log q), in nats. None where no dense model was
    # at hand.
    kl: float | None = None
    # share of tokens for which both find the same token most likely, from 0 to 1
    top1: float | None = None


def _nobody(done: int, total: int) -> None:
    """Is told how far an evaluation is, where nobody wants to know."""


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

    `documents`: the held-out texts, in the order in which they are joined. `seq_len`: tokens in a
    window, at least 2. `joiner`: 'eos', or how the texts themselves are joined: 'space' or
    'blank_line'. Returns token ids, int64, shape (windows, seq_len). Raises DataError if
    ``seq_len`` predicts nothing, or the texts do not fill one window.
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
    against: "LastStates | None" = None,
) -> dict[str, Perplexity]:
    """Score a model on the windows of several texts, one block in memory at a time.

    All windows pass the first block before the second is read, so that a model of any size is read
    once.

    `model`: the dense model; unchanged. `windows`: label -> token ids, int64, shape (windows,
    seq_len), from :func:`token_windows`. `changes`: block -> linear -> what becomes of it; asked
    for block by block. `limits`: windows that run at a time, and memory for hidden states.
    `against`: what the dense model made of the same windows, to be agreed with. Returns label ->
    figures. Log-likelihoods are taken in float32 from the model's logits and added up in float64.
    Raises ModelError if the windows are longer than the model has positions for, the changes are
    another model's, memory runs out, or ``against`` is of other windows or another vocabulary.
    """
    states = last_states(model, windows, device, changes, limits)
    return scores(states, windows, device, limits, against, changes)


@dataclass(frozen=True)
class LastStates:
    """What a model's last block makes of some windows, before the final norm and the head."""

    model: LoadedModel  # the model; its norm and head make logits of the states
    # one (1, seq_len, d_model) CPU tensor a window, in the order of the texts; beyond the limit of
    # memory on the disk
    hidden: Sequence[Tensor]


def last_states(
    model: LoadedModel,
    windows: Mapping[str, Tensor],
    device: str | torch.device = "cpu",
    changes: Changes = _DENSE,
    limits: Limits = LIMITS,
    told: Callable[[int, int], None] = _nobody,
) -> LastStates:
    """Carry windows through all blocks; parameters and errors as :func:`perplexities` has them.

    ``told`` hears after each block how many are done, and of how many.
    """
    walk = ModelWalk(model, _rows(windows), device, limits=limits)
    while walk.blocks_left:
        walk.advance(changes.get(walk.position, {}))
        told(walk.position, walk.position + walk.blocks_left)
    return LastStates(model, walk.hidden)


def predictions(
    model: LoadedModel,
    windows: Tensor,
    device: str | torch.device = "cpu",
    limits: Limits = LIMITS,
) -> Iterator[Tensor]:
    """Yield for each window the logits of what follows its tokens, but for the last one.

    `model`: the dense model; unchanged. `windows`: token ids, int64, shape (windows, seq_len).
    `limits`: as for :func:`perplexities`. Yields shape (seq_len - 1, vocabulary), on the device.
    """
    hidden = last_states(model, {"": windows}, device, limits=limits).hidden
    outer = {name: tensor.to(device) for name, tensor in model.outer_tensors().items()}
    for start in range(0, len(windows), limits.batch_size):
        some = slice(start, start + limits.batch_size)
        states = torch.cat(list(hidden[some])).to(device)
        with torch.no_grad():
            yield from output_of(model, windows[some].to(device), states, outer)[:, :-1]


def scores(
    states: LastStates,
    windows: Mapping[str, Tensor],
    device: str | torch.device = "cpu",
    limits: Limits = LIMITS,
    against: LastStates | None = None,
    changes: Changes = _DENSE,
) -> dict[str, Perplexity]:
    """Score windows whose last hidden states are known; as :func:`perplexities` otherwise."""
    model, rows = states.model, _rows(windows)
    with explain_out_of_memory("evaluating", *limits.keys):
        sums = _window_sums(states, rows, torch.device(device), against)
        found = {label: _scored(text, sums, against is not None) for label, text in windows.items()}
    odd = [label for label, one in found.items() if not math.isfinite(one.nll)]
    if odd:
        reason = _why_not_finite(model, rows, device, changes, limits)
        for label in odd:
            found[label] = replace(found[label], reason=reason)
            _log.warning("perplexity on '%s' is %s: %s", label, found[label].nll, reason)
    return found


def _rows(windows: Mapping[str, Tensor]) -> list[Tensor]:
    """Return all windows of all texts, one after another."""
    return [window for text in windows.values() for window in text]


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


_Sums = tuple[float, float, int]
"""Sums over a window's predicted tokens: nats, divergences, equal first choices."""


def _window_sums(
    states: LastStates, rows: Sequence[Tensor], device: torch.device, against: LastStates | None
) -> Iterator[_Sums]:
    """Yield the sums of each window's tokens after the first."""
    if against is not None and len(against.hidden) != len(rows):
        raise ModelError(
            f"The dense model's states are of {len(against.hidden)} windows, these are "
            f"{len(rows)}. Give both models the same windows."
        )
    logits = _logits(states, rows, device)
    dense = _logits(against, rows, device) if against is not None else None
    for window, found in zip(rows, logits, strict=True):
        targets = window[1:].to(device)
        nll = _added(
            functional.cross_entropy(part.float(), wanted, reduction="none")
            for part, wanted in _chunks(found, targets)
        )
        if dense is None:
            yield nll, 0.0, 0
            continue
        other = next(dense)
        if other.shape != found.shape:
            raise ModelError(
                f"The dense model predicts {other.shape[-1]} tokens, this one {found.shape[-1]}: "
                "two vocabularies cannot be held against each other. Give models of one tokenizer."
            )
        kl = _added(_divergence(p, q) for p, q in _chunks(other, found))
        yield nll, kl, int((other.argmax(-1) == found.argmax(-1)).sum())


def _logits(states: LastStates, rows: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield the logits of each window's predictions, shape (seq_len - 1, vocabulary)."""
    model = states.model
    outer = {name: tensor.to(device) for name, tensor in model.outer_tensors().items()}
    for window, hidden in zip(rows, states.hidden, strict=True):
        tokens = window.to(device).unsqueeze(0)
        yield output_of(model, tokens, hidden.to(device), outer)[0, :-1]


def _chunks(first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(first, _ROWS), torch.split(second, _ROWS), strict=True)


def _added(parts: Iterator[Tensor]) -> float:
    """Return the sum of float32 figures, added in float64."""
    return float(sum(part.sum(dtype=torch.float64) for part in parts))


def _divergence(dense: Tensor, found: Tensor) -> Tensor:
    """Return the divergence from the dense distribution to the other, one figure a row."""
    p, q = (logits.float().log_softmax(-1) for logits in (dense, found))
    terms = functional.kl_div(q, p, reduction="none", log_target=True)
    return terms.masked_fill_(p.isneginf(), 0).sum(-1)  # a token that is ruled out adds nothing


def _scored(windows: Tensor, sums: Iterator[_Sums], compared: bool) -> Perplexity:
    """Take the sums of a text's windows from those that come one after another."""
    count, seq_len = windows.shape
    nll, kl, same = 0.0, 0.0, 0
    for one in islice(sums, count):  # one by one: `sum` rounds otherwise from Python 3.12 on
        nll, kl, same = nll + one[0], kl + one[1], same + one[2]
    predicted = count * (seq_len - 1)
    found = Perplexity(
        perplexity_of(nll / predicted), nll=nll / predicted, windows=count, tokens=predicted
    )
    return replace(found, kl=kl / predicted, top1=same / predicted) if compared else found


def _joined_by_eos(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, wanted: int | None
) -> list[int]:
    """Return tokens of documents; from those on that come after the wanted number, none."""
    eos = tokenizer.eos_token_id
    separator = _encode(tokenizer, _SEPARATOR) if eos is None else [int(eos)]
    tokens: list[int] = []
    for number, document in enumerate(documents):
        if wanted is not None and len(tokens) >= wanted:
            break
        tokens += separator if number else []
        tokens += _encode(tokenizer, document.rendered(tokenizer))
    return tokens


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

    `config`: `data` and `evaluation`. `node`: a node's own texts; None on the server, and where all
    nodes read the same.
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
