"""A model's config.json and generation_config.json, read with care: they may come from anyone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.utils import is_compressed_tensors_available

from fedprune.errors import ModelError
from fedprune.models.folder import GENERATION, is_local

_LOADER_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    ImportError,
    AttributeError,
    TypeError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)
LAYER_KEYS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers")
"""How configurations call the number of blocks."""

_MOST_LAYERS = 4096
_SIZE_ENDS = ("_size", "_dim", "_heads", "_embeddings", "_positions", "_experts", "n_embd", "n_ctx")
_MOST_SIZE = 1 << 28


def read_config(source: str, revision: str | None, quantized: bool = False) -> PreTrainedConfig:
    """Return the configuration of a decoder in a folder or on the Hub.

    `quantized`: whether it may be of a checkpoint in compressed-tensors' form. Raises ModelError if
    it cannot be read, asks for sizes that no model has, or is none of a plain decoder.
    """
    with readable_errors(source):
        raw, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
        _check_sizes(source, raw)
        mended = _with_known_dtypes(source, raw)
        name = str(raw.get("model_type"))
        if mended == raw or name not in CONFIG_MAPPING:
            found = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        else:
            found = CONFIG_MAPPING[name].from_dict(mended)
    _check_config(source, found, quantized)
    return found


def _with_known_dtypes(source: str, raw: Mapping[str, object]) -> dict[str, object]:
    """Return a configuration without what the library takes for no dtype: "auto", "torch.x"."""
    mended: dict[str, object] = {}
    for key, value in raw.items():
        if isinstance(value, Mapping):
            mended[key] = _with_known_dtypes(source, value)
        elif key not in ("dtype", "torch_dtype") or not isinstance(value, str):
            mended[key] = value
        elif value != "auto":
            name = value.removeprefix("torch.")
            if not isinstance(getattr(torch, name, None), torch.dtype):
                raise ModelError(
                    f"`model.path` '{source}': its config.json has the {key} '{value}', which is "
                    "none. Write one such as 'bfloat16', or leave it out."
                )
            mended[key] = name
    return mended


def read_generation(source: str, revision: str | None) -> GenerationConfig | None:
    """Return how a model wants to generate; None if it does not say."""
    try:
        return GenerationConfig.from_pretrained(source, revision=revision)
    except (TypeError, ValueError, AttributeError, OSError) as error:
        if isinstance(error, OSError) and not Path(source, GENERATION).is_file():
            return None
        detail = str(error).partition("\n")[0]
        raise ModelError(
            f"`model.path` '{source}': '{GENERATION}' cannot be read: {detail} "
            "Mend it, or delete it: nothing here needs it."
        ) from error


def auto_class(config: PreTrainedConfig) -> type[Any]:
    """Return which of the library's classes loads a checkpoint as what it was saved from.

    `config`: where its ``architectures`` name no class of the library for this kind of
    configuration, a checkpoint is taken for all that its configuration describes, images and text.
    Returns ``AutoModelForCausalLM`` or ``AutoModelForImageTextToText``. Raises ModelError if the
    library has no class for this kind of configuration that writes text.
    """
    named = config.architectures or ()
    causal: type[Any] = AutoModelForCausalLM
    seeing: type[Any] = AutoModelForImageTextToText
    for auto in (causal, seeing):
        found = auto._model_mapping.get(type(config), ())
        classes = found if isinstance(found, list | tuple) else (found,)
        if any(one.__name__ in named for one in classes):
            return auto
    for auto in (seeing, causal):
        if type(config) in auto._model_mapping:
            return auto
    raise ModelError(
        f"A '{config.model_type}' cannot be pruned: transformers knows no class that writes text, "
        f"alone or of images, for a {type(config).__name__}. Set `model.path` to a causal or an "
        "image-text-to-text model."
    )


def untie(config: PreTrainedConfig) -> None:
    """Let a configuration say that head and embedding are two weights."""
    for part in (config, config.get_text_config()):
        if getattr(part, "tie_word_embeddings", False):
            part.tie_word_embeddings = False


def asked_blocks(config: Mapping[str, object]) -> int:
    """Return the number of blocks that a configuration asks for, in any of its parts."""
    found = [0]
    for key, value in config.items():
        if isinstance(value, Mapping):
            found.append(asked_blocks(value))
        elif key in LAYER_KEYS and isinstance(value, int):
            found.append(value)
    return max(found)


@contextmanager
def readable_errors(source: str) -> Iterator[None]:
    """Turn what the library raises on a model into a ``ModelError`` that says what to do."""
    try:
        yield
    except UnpicklingError as error:
        raise ModelError(
            f"`model.path` '{source}' holds pickled objects where weights were expected; they "
            "could run code and are not opened. Save the model by save_pretrained(FOLDER)."
        ) from error
    except _LOADER_ERRORS as error:
        hint = (
            "Give a complete Hugging Face model folder."
            if is_local(source)
            else "Check the id, `model.revision` and the connection, log in if access is "
            "restricted, or give a local folder."
        )
        detail = " ".join(str(error).split("\n")[:2])
        raise ModelError(f"`model.path` '{source}' cannot be loaded: {detail} {hint}") from error


def _check_sizes(source: str, raw: Mapping[str, object]) -> None:
    """Refuse sizes that no model has before anything is built of them."""
    for key, value in raw.items():
        if isinstance(value, Mapping):
            _check_sizes(source, value)
            continue
        most = _MOST_LAYERS if key in LAYER_KEYS else _MOST_SIZE
        sized = key in LAYER_KEYS or key.endswith(_SIZE_ENDS)
        if sized and isinstance(value, int) and not isinstance(value, bool) and value > most:
            raise ModelError(
                f"`model.path` '{source}': its config.json has `{key}` {value}, at most {most} is "
                "believed. Give the model's own configuration."
            )


def _check_config(source: str, config: PreTrainedConfig, quantized: bool) -> None:
    if config.is_encoder_decoder or config.get_text_config(decoder=True).is_encoder_decoder:
        raise ModelError(
            f"`model.path` '{source}' is an encoder-decoder; only decoders can be pruned. "
            "Give a causal language model."
        )
    found = getattr(config, "quantization_config", None)
    if found is None:
        return
    method = found.get("quant_method") if isinstance(found, Mapping) else "another form"
    if not quantized:
        raise ModelError(
            f"`model.path` '{source}' is quantised; masks are made for full weights. "
            "Give the unquantised checkpoint; `fedprune evaluate` measures this one."
        )
    if method != "compressed-tensors":
        raise ModelError(
            f"`model.path` '{source}' is quantised by '{method}', of which only "
            "compressed-tensors can be measured. Measure it with the tools that made it."
        )
    if not is_compressed_tensors_available():
        raise ModelError(
            f"`model.path` '{source}' is quantised, and the package compressed-tensors that "
            "unpacks it is not there. Run: pip install 'fedprune[quantized]'"
        )
