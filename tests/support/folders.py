"""Model folders on the disk: saved as the library does, and loaded as a job does."""

from pathlib import Path

from fedprune.config.schema import ModelConfig
from fedprune.models.loading import LoadedModel, load_model


def model_config(path: object, dtype: str = "auto", name: str = "hf") -> ModelConfig:
    """Return the configuration that names a folder or a model of the Hub."""
    return ModelConfig(name=name, path=str(path), revision=None, dtype=dtype, source="local")


def load_folder(path: object, dtype: str = "auto") -> LoadedModel:
    """Load a model's folder."""
    return load_model(model_config(path, dtype))


def save_folder(loaded: LoadedModel, folder: Path, **options: str) -> Path:
    """Save model and tokenizer with the library's own writer."""
    loaded.model.save_pretrained(folder, **options)
    loaded.tokenizer.save_pretrained(folder)
    return folder
