"""Find a decoder in a folder, on the Hub or in the package; its weights stay in their files.

Code that comes with a checkpoint is never run, and a checkpoint that leaves a weight out is
refused instead of being completed with random numbers.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from fedprune.config.schema import ModelConfig
from fedprune.errors import ModelError
from fedprune.models.architecture import (
    asked_blocks,
    auto_class,
    read_config,
    read_generation,
    readable_errors,
    untie,
)
from fedprune.models.empty import empty_weights
from fedprune.models.folder import (
    check_config,
    check_folder,
    is_local,
    refuse_adapter,
    side_files,
    weight_files,
)
from fedprune.models.layout import DecoderLayout, find_layout
from fedprune.models.sources import (
    HeldWeights,
    WeightSource,
    check_complete,
    map_weights,
    stored_apart,
)
from fedprune.models.weights import Stored, index_files
from fedprune.models.wrapped import plain_model

if TYPE_CHECKING:  # loads torch's compiler, a second that what holds no model need not take
    from transformers import PreTrainedModel


@dataclass
class LoadedModel:
    """A decoder with its tokenizer, the place of its blocks and the source of its weights."""

    # the architecture in evaluation mode. Where the weights are mapped its parameters have no data
    # (device "meta"); only buffers that are not saved are real.
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: DecoderLayout
    path: str  # folder or Hub id that it came from
    source: WeightSource  # gives the weights one by one
    # finds what lies beside the weights where the model came from, name -> place
    side_files: Callable[[], Mapping[str, Path]] = dict

    def names(self) -> list[str]:
        """Return the names in the model's state, in its order; tied ones under each name."""
        return list(self.model.state_dict())

    def tensor(self, name: str) -> Tensor:
        """Return a tensor of the model's state on the CPU, in the type it computes in.

        Raises ModelError if its file cannot be read any more.
        """
        return self.source.tensors([name])[name]

    def weight(self, block: int, linear: str) -> Tensor:
        """Return a prunable weight as a (d_out, d_in) view on the CPU."""
        return self.layout.linears(block)[linear].orient(
            self.tensor(self.layout.parameter_name(block, linear))
        )

    def block_tensors(self, block: int) -> dict[str, Tensor]:
        """Return a block's parameters and buffers on the CPU, by their names inside the block."""
        prefix = f"{self.layout.prefix}.{block}."
        module = self.layout.blocks[block]
        stored = self.source.tensors(prefix + name for name in module.state_dict())
        return {
            name: stored[prefix + name] if prefix + name in stored else tensor.detach()
            for name, tensor in chain(module.named_parameters(), module.named_buffers())
        }

    def outer_tensors(self) -> dict[str, Tensor]:
        """Return what text passes outside the blocks, embeddings and head, by full name.

        Tied ones are there once; what text never reaches, a tower for images, is not.
        """
        saved = self.model.state_dict()
        others = tuple(f"{name}." for name in (self.layout.prefix, *self.layout.unread))
        every = chain(self.model.named_parameters(), self.model.named_buffers())
        outside = {name: tensor for name, tensor in every if not name.startswith(others)}
        stored = self.source.tensors(name for name in outside if name in saved)
        return {name: stored.get(name, tensor.detach()) for name, tensor in outside.items()}

    def prefetch(self, block: int) -> None:
        """Let a block's weights be read in the background; none where there is no such block."""
        if block < len(self.layout.blocks):
            prefix = f"{self.layout.prefix}.{block}."
            self.source.prefetch(prefix + name for name in self.layout.blocks[block].state_dict())


def loaded_from(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, path: str = ""
) -> LoadedModel:
    """Return a model that was made in Python, weights in memory, ready to be pruned.

    `model`: the model, on the CPU; it is put into evaluation mode. One that is compiled or parallel
    is taken out of its wrapper. Raises ModelError if it cannot be pruned block by block, or holds
    adapters or masks that are not merged.
    """
    plain = plain_model(model)
    plain.eval()
    layout = find_layout(plain)
    _check_tokens(plain, tokenizer)
    return LoadedModel(plain, tokenizer, layout, path, HeldWeights(plain))


_DTYPES: dict[str, torch.dtype | None] = {
    "auto": None,  # as stored
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_log = logging.getLogger("flwr")


def load_model(
    config: ModelConfig, path: str | None = None, *, quantized: bool = False
) -> LoadedModel:
    """Load the model that a run prunes.

    `config`: which model, which revision, and in which dtype ('auto': as stored). `path`: a node's
    own copy, used in place of ``config.path``. `quantized`: whether a checkpoint in
    compressed-tensors' form is opened: to be measured, with the weights that its codes stand for,
    all in memory. Raises ModelError if the model cannot be found, is incomplete, or is nothing that
    can be pruned block by block; the message says what was looked for and what to do.
    """
    source = os.path.expanduser(path) if path else _source(config)
    revision = config.revision
    if is_local(source):
        check_folder(source)
    architecture = read_config(source, revision, quantized)
    packed = getattr(architecture, "quantization_config", None) is not None
    with readable_errors(source), progress_on_terminals_only():
        refuse_adapter(source, revision)
        tokenizer = AutoTokenizer.from_pretrained(
            source, config=architecture, revision=revision, trust_remote_code=False
        )
        files = [] if packed else weight_files(source, revision)
    loaded = _mapped(source, config, architecture, tokenizer, files) if files else None
    if loaded is None and not packed:
        _log.warning(
            "'%s' cannot be read block by block and is held in memory whole: only safetensors "
            "files with the architecture's own names of weights can",
            source,
        )
    if loaded is None:
        loaded = loaded_from(_whole(source, config, architecture), tokenizer, source)
    if config.name != "demo":
        loaded.side_files = partial(side_files, source, revision)
    generation = read_generation(source, revision)
    if generation is not None:
        loaded.model.generation_config = generation
    return loaded


def model_shapes(config: ModelConfig, path: str | None = None) -> list[dict[str, tuple[int, int]]]:
    """Return the shapes of all prunable matrices without loading a weight.

    `path`: as for :func:`load_model`. Returns one mapping a block, name -> (d_out, d_in), as in
    :meth:`DecoderLayout.shapes`. Raises ModelError as :func:`load_model`.
    """
    source = os.path.expanduser(path) if path else _source(config)
    if is_local(source):
        check_config(source)
    architecture = read_config(source, config.revision)
    return find_layout(_skeleton(source, architecture, None)).shapes()


def whole_model(source: str, revision: str | None = None) -> PreTrainedModel:
    """Load a model whole into memory, by the class that it was saved from; also a quantised one.

    Raises ModelError if it cannot be loaded.
    """
    architecture = read_config(source, revision, quantized=True)
    with readable_errors(source), progress_on_terminals_only():
        found: PreTrainedModel = auto_class(architecture).from_pretrained(
            source, revision=revision, dtype="auto", trust_remote_code=False
        )
    return found


def check_seq_len(model: PreTrainedModel, seq_len: int, key: str) -> None:
    """Raise ``ModelError`` if a sequence is longer than the model has positions for.

    `model`: the model; one whose configuration names no limit takes any length.
    """
    text = model.config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if limit is not None and 0 < limit < seq_len:  # XLNet writes -1 for none
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
    with readable_errors(source), empty_weights():
        model: PreTrainedModel = auto_class(architecture).from_config(
            architecture, dtype=dtype, trust_remote_code=False
        )
    model.tie_weights()
    return model.eval()


def _mapped(
    source: str,
    config: ModelConfig,
    architecture: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    files: Sequence[Path],
) -> LoadedModel | None:
    """Return a model whose weights stay in their files; None where they cannot."""
    stored = index_files(files)
    blocks = asked_blocks(architecture.to_dict())
    if blocks > len(stored):
        raise ModelError(
            f"`model.path` '{source}' has a configuration of {blocks} blocks, but its files hold "
            f"{len(stored)} tensors. Give a complete checkpoint with its own config.json."
        )
    dtype = _dtype(config, architecture, stored)
    model = _skeleton(source, architecture, dtype)
    if stored_apart(model, stored):
        _log.warning(
            "'%s' stores a head that differs from the embedding, though its configuration ties "
            "them: both count, and the export says so",
            source,
        )
        untie(architecture)
        model = _skeleton(source, architecture, dtype)
    weights = map_weights(source, model, stored, dtype)
    if weights is None:
        return None
    layout = find_layout(model)
    _check_tokens(model, tokenizer)
    return LoadedModel(model, tokenizer, layout, source, weights)


def _dtype(
    config: ModelConfig, architecture: PreTrainedConfig, stored: Mapping[str, Stored]
) -> torch.dtype:
    """Return the type to compute in: as configured, as the model says, or as most is stored."""
    said = architecture.dtype or architecture.get_text_config().dtype
    chosen = _DTYPES[config.dtype] or said
    if chosen is None:
        sizes: dict[torch.dtype, int] = {}
        for place in stored.values():
            if place.dtype.is_floating_point:
                sizes[place.dtype] = sizes.get(place.dtype, 0) + place.nbytes
        chosen = max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)
    return chosen if isinstance(chosen, torch.dtype) else getattr(torch, str(chosen))


def _whole(source: str, config: ModelConfig, architecture: PreTrainedConfig) -> PreTrainedModel:
    packed = getattr(architecture, "quantization_config", None)
    if isinstance(packed, dict):
        packed["dequantize"] = True
    with readable_errors(source), progress_on_terminals_only():
        model, report = auto_class(architecture).from_pretrained(
            source,
            config=architecture,
            revision=config.revision,
            dtype=_DTYPES[config.dtype] or "auto",
            trust_remote_code=False,
            output_loading_info=True,
        )
    check_complete(source, sorted(report["missing_keys"]))
    return model


def _check_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that can give tokens that the embedding has no row for."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    beyond = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows)
    if beyond:
        number, token = beyond[0]
        raise ModelError(
            f"The tokenizer has {len(beyond)} token(s) that the model has no embedding for, among "
            f"them {token!r} as {number}: the embedding has {rows} rows. Give the model its own "
            "tokenizer, or call model.resize_token_embeddings(len(tokenizer)) and save it."
        )


def _source(config: ModelConfig) -> str:
    if config.name == "demo":
        # Only the demo unpacks anything; other models must not pay for it.
        from fedprune.models.embedded import demo_model_path

        return str(demo_model_path())
    return os.path.expanduser(config.path)
