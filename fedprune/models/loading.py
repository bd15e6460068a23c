"""Load a decoder from a folder, the Hub or the package, or only its shapes.

Code that comes with a checkpoint is never run, and a checkpoint that leaves a weight out is
refused instead of being completed with random numbers.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from fedprune.config.schema import ModelConfig
from fedprune.errors import ModelError
from fedprune.models.folder import check_config, check_folder, is_local
from fedprune.models.layout import DecoderLayout, find_layout

_DTYPES = {
    "auto": "auto",  # as stored
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_LOADER_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


@dataclass
class LoadedModel:
    """A decoder in memory with its tokenizer and the place of its blocks.

    Parameters
    ----------
    model : PreTrainedModel
        In evaluation mode, on the CPU.
    tokenizer : PreTrainedTokenizerBase
        The model's own.
    layout : DecoderLayout
        Its blocks.
    path : str
        Folder or Hub id that it came from.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: DecoderLayout
    path: str


def load_model(config: ModelConfig, path: str | None = None) -> LoadedModel:
    """Load the model that a run prunes.

    Parameters
    ----------
    config : ModelConfig
        Which model, which revision, and in which dtype ('auto': as stored).
    path : str, optional
        A node's own copy, used in place of ``config.path``.

    Raises
    ------
    ModelError
        If the model cannot be found, is incomplete, or is nothing that can be pruned block by
        block; the message says what was looked for and what to do.
    """
    source = os.path.expanduser(path) if path else _source(config)
    if is_local(source):
        check_folder(source)
    revision = config.revision
    _check_config(source, _config(source, revision))
    with _readable_errors(source), progress_on_terminals_only():
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=_DTYPES[config.dtype],
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
    absent = sorted(report["missing_keys"])
    if absent:
        raise ModelError(
            f"`model.path` '{source}' lacks {len(absent)} weights of its architecture, among "
            f"them {', '.join(absent[:3])}. Give a complete checkpoint."
        )
    model.eval()
    return LoadedModel(model, tokenizer, find_layout(model), source)


def model_shapes(config: ModelConfig) -> list[dict[str, tuple[int, int]]]:
    """Return the shapes of all prunable matrices without loading a weight.

    Parameters
    ----------
    config : ModelConfig
        Which model; only its configuration file is read.

    Returns
    -------
    list[dict[str, tuple[int, int]]]
        One mapping a block, name -> (d_out, d_in), as in :meth:`DecoderLayout.shapes`.

    Raises
    ------
    ModelError
        As :func:`load_model`.
    """
    source = _source(config)
    if is_local(source):
        check_config(source)
    architecture = _config(source, config.revision)
    _check_config(source, architecture)
    with _readable_errors(source), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture, trust_remote_code=False)
    return find_layout(model).shapes()


def check_seq_len(model: PreTrainedModel, seq_len: int, key: str) -> None:
    """Raise ``ModelError`` if a sequence is longer than the model has positions for.

    Parameters
    ----------
    model : PreTrainedModel
        The model; one whose configuration names no limit takes any length.
    seq_len : int
        Length in tokens.
    key : str
        Configuration key that sets the length.
    """
    text = model.config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if limit is not None and seq_len > limit:
        raise ModelError(
            f"`{key}` is {seq_len}, but {type(model).__name__} has {limit} positions. "
            f"Set `{key}` to at most {limit}."
        )


@contextmanager
def progress_on_terminals_only() -> Iterator[None]:
    """Keep the loader's progress bars out of log files."""
    shown = transformers_logging.is_progress_bar_enabled()
    if sys.stderr.isatty() or not shown:
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


def _source(config: ModelConfig) -> str:
    if config.name == "demo":
        # Only the demo unpacks anything; other models must not pay for it.
        from fedprune.models.embedded import demo_model_path

        return str(demo_model_path())
    return os.path.expanduser(config.path)


def _config(source: str, revision: str | None) -> PreTrainedConfig:
    with _readable_errors(source):
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)


def _check_config(source: str, config: PreTrainedConfig) -> None:
    if config.is_encoder_decoder:
        raise ModelError(
            f"`model.path` '{source}' is an encoder-decoder; only decoders can be pruned. "
            "Give a causal language model."
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"`model.path` '{source}' is quantised; masks are made for full weights. "
            "Give the unquantised checkpoint."
        )


@contextmanager
def _readable_errors(source: str) -> Iterator[None]:
    try:
        yield
    except _LOADER_ERRORS as error:
        hint = (
            "Give a complete Hugging Face model folder."
            if is_local(source)
            else "Check the id, `model.revision` and the connection, log in if access is "
            "restricted, or give a local folder."
        )
        detail = str(error).partition("\n")[0]
        raise ModelError(f"`model.path` '{source}' cannot be loaded: {detail} {hint}") from error
