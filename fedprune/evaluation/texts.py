"""The windows of every data set that a run is evaluated on."""

import logging

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fedprune.config import DataConfig, EvaluationConfig, RunConfig, evaluation_data
from fedprune.data.sources import OwnTexts, load_documents
from fedprune.errors import DataError
from fedprune.evaluation.perplexity import token_windows

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
