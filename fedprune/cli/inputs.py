"""Look for a simulation's model and texts before anything is started."""

from pathlib import Path

from fedprune.config import RunConfig
from fedprune.errors import DataError


def check_inputs(config: RunConfig) -> None:
    """Refuse a model folder or texts that are not there, while it costs nothing.

    A deployment's paths mean other machines, and hub ids are asked for when they are loaded.

    Parameters
    ----------
    config : RunConfig
        The checked configuration, paths absolute where they exist.

    Raises
    ------
    ModelError
        If `model.path` is a folder that is missing or incomplete.
    DataError
        If `data.path` or `data.heldout_path` is missing.
    ConfigError
        If the tracker's library is missing.
    """
    if config.federation.connection:
        return
    if config.tracking.name != "none":
        from fedprune.reporting.tracking import check_tracker  # loads torch, too

        check_tracker(config.tracking)
    if config.model.name == "hf":
        # Loads transformers: only where there is a folder to look at.
        from fedprune.models.folder import check_folder, is_local

        if is_local(config.model.path):
            check_folder(config.model.path)
    paths = {"data.heldout_path": config.data.heldout_path}
    if config.data.source == "files":
        paths["data.path"] = config.data.path
    for key, path in paths.items():
        if path is not None and not Path(path).expanduser().exists():
            raise DataError(f"`{key}` must be a file or folder, '{path}' does not exist.")
