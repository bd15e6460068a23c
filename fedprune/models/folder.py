"""What a model folder must hold, and where its files are, in a folder or on the Hub.

The loader's own messages name its internals; these name the configuration key and the files.
"""

import json
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from fedprune.errors import ModelError

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
_INDEXES = (SAFETENSORS_INDEX, "pytorch_model.bin.index.json")
_SINGLE = (SAFETENSORS, "pytorch_model.bin")
GENERATION = "generation_config.json"
_SIDE_SUFFIXES = (".json", ".jinja", ".md", ".model", ".txt", ".tiktoken", ".spm", ".vocab", ".bpe")
_LICENSES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
_ON_THE_HUB = (
    GENERATION,
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "USE_POLICY.md",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")


def is_local(path: str) -> bool:
    """Whether a model's path means a folder here rather than a repository on the Hub.

    A Hub id has the form ``name`` or ``owner/name``; whatever exists here, or cannot be such an
    id, is a folder.
    """
    looks_like_path = path.startswith((".", "/")) or path.count("/") > 1 or "\\" in path
    return looks_like_path or Path(path).is_dir()


def check_config(path: str) -> None:
    """Raise ``ModelError`` unless a folder exists and holds a model configuration."""
    folder = Path(path)
    if not folder.is_dir():
        raise ModelError(
            f"`model.path` '{path}' is not a folder. "
            "Give a Hugging Face model folder, or a Hub id such as 'owner/name'."
        )
    refuse_adapter(path, None)
    _need(folder, (CONFIG,), "no configuration")


def check_folder(path: str) -> None:
    """Raise ``ModelError`` unless a folder holds configuration, tokenizer and every weight file."""
    check_config(path)
    folder = Path(path)
    _need(folder, _TOKENIZERS, "no tokenizer")
    _need(folder, (*_SINGLE, *_INDEXES), "no weights")
    if any((folder / name).is_file() for name in _SINGLE):
        return
    index = next(folder / name for name in _INDEXES if (folder / name).is_file())
    missing = sorted(name for name in shard_names(index) if not (folder / name).is_file())
    if missing:
        raise ModelError(
            f"`model.path` '{path}' misses {len(missing)} weight file(s) that '{index.name}' "
            f"lists: {', '.join(missing[:3])}. Copy the whole model folder again."
        )


def refuse_adapter(source: str, revision: str | None) -> None:
    """Raise ``ModelError`` if an adapter lies beside the weights, or alone."""
    if _file(source, revision, ADAPTER) is not None:
        raise ModelError(
            f"`model.path` '{source}' has an adapter ('{ADAPTER}'), which belongs to the weights "
            "and is not merged into them. Merge it, with peft installed: "
            "AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload()"
            ".save_pretrained(NEW), and the tokenizer's save_pretrained(NEW); or give the model "
            "without it."
        )


def _need(folder: Path, names: tuple[str, ...], problem: str) -> None:
    if not any((folder / name).is_file() for name in names):
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        missed = f"`model.path` '{folder}' has {problem}: looked for {' or '.join(names)}"
        way_out = "Give a complete Hugging Face model folder."
        # A wrong folder's files may be anything, patients' names among it.
        raise ModelError(f"{missed}, found {found}. {way_out}", outside=f"{missed}. {way_out}")


def shard_names(index: Path) -> set[str]:
    """Return the files that an index of weights names; ModelError if it is no index."""
    try:
        return {str(name) for name in json.loads(index.read_text())["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"'{index}' is not an index of weight files ({error!r}). "
            "Copy the whole model folder again."
        ) from error


def weight_files(source: str, revision: str | None) -> list[Path]:
    """Return the files that hold a model's weights; none if it is not stored as safetensors.

    `revision`: of a Hub id; None is its main branch. Raises OSError if the Hub cannot be reached.
    Raises ModelError if the index of several files is damaged.
    """
    whole = _file(source, revision, SAFETENSORS)
    if whole is not None:
        return [whole]
    index = _file(source, revision, SAFETENSORS_INDEX)
    if index is None:
        return []
    files = [_file(source, revision, name) for name in sorted(shard_names(index))]
    return [path for path in files if path is not None]


def is_side_file(name: str) -> bool:
    """Whether a file of a model is configuration, tokenizer, card or licence, by its name."""
    known = name.endswith(_SIDE_SUFFIXES) or name.upper().startswith(_LICENSES)
    return known and not name.startswith(".") and not name.endswith(".index.json")


def side_files(source: str, revision: str | None) -> dict[str, Path]:
    """Return name -> place of what lies beside a model's weights.

    On the Hub these are the files of a fixed list, since a repository cannot be listed offline.
    """
    if is_local(source):
        entries = sorted(Path(source).iterdir())
        return {path.name: path for path in entries if path.is_file() and is_side_file(path.name)}
    found = {name: _file(source, revision, name) for name in _ON_THE_HUB}
    return {name: path for name, path in found.items() if path is not None}


def _file(source: str, revision: str | None, name: str) -> Path | None:
    """Return a file of a model, None if the model has no such file."""
    if is_local(source):
        path = Path(source, name)
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(source, name, revision=revision))
    except EntryNotFoundError:
        return None
