"""Find a decoder in a folder, on the Hub or in the package; its weights stay in their files.

Code that comes with a checkpoint is never run, and a checkpoint that leaves a weight out is
refused instead of being completed with random numbers.
"""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from fedprune.config.schema import ModelConfig
from fedprune.errors import ModelError
from fedprune.models.folder import check_config, check_folder, is_local, weight_files
from fedprune.models.layout import DecoderLayout, find_layout
from fedprune.models.weights import (
    HeldWeights,
    Stored,
    WeightSource,
    check_complete,
    index_files,
    map_weights,
)


@dataclass
class LoadedModel:
    """A decoder with its tokenizer, the place of its blocks and the source of its weights.

    Parameters
    ----------
    model : PreTrainedModel
        The architecture in evaluation mode. Where the weights are mapped its parameters have no
        data (device "meta"); only buffers that are not saved are real.
    tokenizer : PreTrainedTokenizerBase
        The model's own.
    layout : DecoderLayout
        Its blocks.
    path : str
        Folder or Hub id that it came from.
    source : WeightSource
        Gives the weights one by one.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: DecoderLayout
    path: str
    source: WeightSource

    def names(self) -> list[str]:
        """Return the names in the model's state, in its order; tied ones under each name."""
        return list(self.model.state_dict())

    def tensor(self, name: str) -> Tensor:
        """Return a tensor of the model's state on the CPU, in the type it computes in.

        Raises
        ------
        ModelError
            If its file cannot be read any more.
        """
        return self.source.tensor(name)

    def weight(self, block: int, linear: str) -> Tensor:
        """Return a prunable weight as a (d_out, d_in) view on the CPU."""
        return self.layout.linears(block)[linear].orient(
            self.tensor(self.layout.parameter_name(block, linear))
        )

    def block_tensors(self, block: int) -> dict[str, Tensor]:
        """Return a block's parameters and buffers on the CPU, by their names inside the block."""
        prefix = f"{self.layout.prefix}.{block}."
        module = self.layout.blocks[block]
        saved = module.state_dict()
        return {
            name: self.tensor(prefix + name) if name in saved else tensor.detach()
            for name, tensor in chain(module.named_parameters(), module.named_buffers())
        }

    def outer_tensors(self) -> dict[str, Tensor]:
        """Return what is outside the blocks, embeddings and head, by full name; tied ones once."""
        saved = self.model.state_dict()
        return {
            name: self.tensor(name) if name in saved else tensor.detach()
            for name, tensor in self._outside()
        }

    def prefetch(self, block: int) -> None:
        """Let a block's weights be read in the background; none where there is no such block."""
        if block < len(self.layout.blocks):
            prefix = f"{self.layout.prefix}.{block}."
            self.source.prefetch(prefix + name for name in self.layout.blocks[block].state_dict())

    def _outside(self) -> Iterator[tuple[str, Tensor]]:
        inside = f"{self.layout.prefix}."
        for name, tensor in chain(self.model.named_parameters(), self.model.named_buffers()):
            if not name.startswith(inside):
                yield name, tensor


def loaded_from(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str = ""
) -> LoadedModel:
    """Return a model that was made in Python, weights in memory, ready to be pruned.

    Parameters
    ----------
    model : PreTrainedModel
        The model, on the CPU; it is put into evaluation mode.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer.
    path : str
        How it is called.

    Raises
    ------
    ModelError
        If it cannot be pruned block by block.
    """
    model.eval()
    return LoadedModel(model, tokenizer, find_layout(model), path, HeldWeights(model))


_DTYPES: dict[str, torch.dtype | None] = {
    "auto": None,  # as stored
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_log = logging.getLogger("flwr")
_LOADER_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


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
    architecture = _config(source, revision)
    _check_config(source, architecture)
    with _readable_errors(source), progress_on_terminals_only():
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
        files = weight_files(source, revision)
    if files:
        stored = index_files(files)
        model = _skeleton(source, architecture, _dtype(config, architecture, stored))
        weights = map_weights(source, model, stored)
        if weights is not None:
            with suppress(OSError):  # not every model has one
                model.generation_config = GenerationConfig.from_pretrained(
                    source, revision=revision
                )
            return LoadedModel(model, tokenizer, find_layout(model), source, weights)
    _log.warning(
        "'%s' cannot be read block by block and is held in memory whole: only safetensors files "
        "with the architecture's own names of weights can",
        source,
    )
    return loaded_from(_whole(source, config), tokenizer, source)


def model_shapes(config: ModelConfig, path: str | None = None) -> list[dict[str, tuple[int, int]]]:
    """Return the shapes of all prunable matrices without loading a weight.

    Parameters
    ----------
    config : ModelConfig
        Which model; only its configuration file is read.
    path : str, optional
        As for :func:`load_model`.

    Returns
    -------
    list[dict[str, tuple[int, int]]]
        One mapping a block, name -> (d_out, d_in), as in :meth:`DecoderLayout.shapes`.

    Raises
    ------
    ModelError
        As :func:`load_model`.
    """
    source = os.path.expanduser(path) if path else _source(config)
    if is_local(source):
        check_config(source)
    architecture = _config(source, config.revision)
    _check_config(source, architecture)
    return find_layout(_skeleton(source, architecture, None)).shapes()


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


def _skeleton(
    source: str, architecture: PreTrainedConfig, dtype: torch.dtype | None
) -> PreTrainedModel:
    """Return a model without weights; the buffers that no checkpoint holds are real."""
    with _readable_errors(source), init_empty_weights(), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            architecture, dtype=dtype, trust_remote_code=False
        )
    model.tie_weights()
    return model.eval()


def _dtype(
    config: ModelConfig, architecture: PreTrainedConfig, stored: Mapping[str, Stored]
) -> torch.dtype:
    """Return the type to compute in: as configured, as the model says, or as it is stored."""
    chosen = _DTYPES[config.dtype] or architecture.get_text_config().dtype
    if chosen is None:
        floating = (place.dtype for place in stored.values() if place.dtype.is_floating_point)
        chosen = next(floating, torch.float32)
    return chosen if isinstance(chosen, torch.dtype) else getattr(torch, str(chosen))


def _whole(source: str, config: ModelConfig) -> PreTrainedModel:
    with _readable_errors(source), progress_on_terminals_only():
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            revision=config.revision,
            dtype=_DTYPES[config.dtype] or "auto",
            trust_remote_code=False,
            output_loading_info=True,
        )
    check_complete(source, sorted(report["missing_keys"]))
    return model


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
