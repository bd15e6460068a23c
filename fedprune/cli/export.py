"""`fedprune export`: a model on the Hub with only what belongs to it; statistics for llama.cpp."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from rich.console import Console

from fedprune import __version__
from fedprune.cli.evaluate import model_folder
from fedprune.cli.screen import say
from fedprune.errors import ConfigError, FedpruneError
from fedprune.models.export import SIDECAR
from fedprune.models.folder import is_side_file
from fedprune.results.text import count


def run_export(
    model: str, *, push_to_hub: str | None, imatrix: str | None, public: bool, existing: bool
) -> int:
    """Push a model to the Hub, or write statistics as an importance matrix; return 0.

    `public`: whether everybody may see a repository that is made. `existing`: whether it may be
    there already.
    """
    if push_to_hub is None:
        from fedprune.methods.imatrix import write_imatrix
        from fedprune.methods.statistics_folder import StatisticsFolder

        path = Path(imatrix or "").expanduser().absolute()
        tensors = write_imatrix(StatisticsFolder.open(model), path)
        say(Console(), f"{count(tensors, 'tensor')}\n{path}")
        return 0
    folder = model_folder(model)
    check_login(push_to_hub)
    say(Console(), push_model(folder, push_to_hub, public=public, existing=existing))
    return 0


_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REASONS = {
    401: "the Hub does not know the token. Log in again with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there. Give one with write access, or another owner",
    409: "it exists. Give another name, or add --existing to put a commit on it",
}


def check_login(repository: str) -> None:
    """Refuse what cannot be pushed, before any work.

    Raises ConfigError if the name is no 'owner/name', or there is no token.
    """
    if not _NAME.fullmatch(repository):
        raise ConfigError(f"--push-to-hub takes 'owner/name', got '{repository}'.")
    if get_token() is None:
        raise ConfigError(
            "--push-to-hub needs a token of the Hub, and there is none. "
            "Log in with `hf auth login`, or set HF_TOKEN."
        )


def push_model(folder: Path, repository: str, *, public: bool, existing: bool) -> str:
    """Upload a model's folder and return the address of the commit.

    Weights, masks, configuration, tokenizer, card and licence are uploaded and nothing else that
    may lie there. Raises FedpruneError if the Hub cannot be reached or refuses.
    """
    api = HfApi(library_name="fedprune", library_version=__version__)
    with _readable_errors(repository):
        api.create_repo(repository, private=not public, exist_ok=existing)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=model_files(folder),
            commit_message=f"Pruned with fedprune {__version__}",
        )
    return str(commit.commit_url)


def model_files(folder: Path) -> list[str]:
    """Return the names of the files in a folder that belong to its model."""
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.index.json")]
    beside = [path for path in folder.iterdir() if path.is_file() and is_side_file(path.name)]
    names = {path.name for path in (*weights, *beside)}
    if (folder / SIDECAR).is_file():
        names.add(SIDECAR.as_posix())
    return sorted(names)


@contextmanager
def _readable_errors(repository: str) -> Iterator[None]:
    try:
        yield
    except HFValidationError as error:
        raise ConfigError(
            f"--push-to-hub takes 'owner/name', got '{repository}': {error}"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = _REASONS.get(status, f"the Hub answered {error.server_message or status}")
        raise FedpruneError(f"'{repository}' could not be pushed: {reason}.") from error
    except (httpx.HTTPError, OSError) as error:
        raise FedpruneError(
            f"'{repository}' could not be pushed: the Hub cannot be reached ({error}). "
            "Check the connection and HF_ENDPOINT; the folder is as it was."
        ) from error
