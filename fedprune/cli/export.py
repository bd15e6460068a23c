"""`fedprune export`: a model in another form, or on the Hub with only what belongs to it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from rich.console import Console

from fedprune import __version__
from fedprune.cli.evaluate import model_folder
from fedprune.errors import ConfigError, FedpruneError
from fedprune.models.compact import companions
from fedprune.models.export import SIDECAR
from fedprune.results.text import size_text


@dataclass(frozen=True)
class Wanted:
    """What becomes of a model.

    Parameters
    ----------
    compact, dense : str or None
        New folder for the model in compact form, or in the ordinary form.
    repository : str or None
        Repository on the Hub, 'owner/name', that the new folder, or the model's own, goes to.
    public : bool
        Whether everybody may see a repository that is made.
    existing : bool
        Whether the repository may be there already.
    """

    compact: str | None
    dense: str | None
    repository: str | None
    public: bool
    existing: bool


def run_export(model: str, wanted: Wanted) -> int:
    """Write or push a model and return the exit code 0.

    Parameters
    ----------
    model : str
        A model's folder in either form, or a run's folder.
    wanted : Wanted
        What becomes of it.

    Raises
    ------
    ConfigError
        If nothing, both forms, or how to push without where to is asked for.
    FedpruneError
        If the model cannot be read, a folder is taken, or the Hub refuses.
    """
    if bool(wanted.compact) == bool(wanted.dense) and (wanted.compact or not wanted.repository):
        raise ConfigError(
            "`fedprune export` takes one of --compact OUT and --dense OUT, or --push-to-hub REPO."
        )
    if (wanted.public or wanted.existing) and not wanted.repository:
        raise ConfigError("--public and --existing say how to push: give --push-to-hub REPO, too.")
    folder = model_folder(model)
    if wanted.repository:
        check_login(wanted.repository)
    screen = Console()
    if wanted.compact or wanted.dense:
        target = Path(wanted.compact or wanted.dense or "").expanduser().absolute()
        _convert(folder, target, compact=bool(wanted.compact))
        before, after = weight_bytes(folder), weight_bytes(target)
        screen.print(
            f"{target}\n{size_text(before)} of weights became {size_text(after)}, "
            f"{after / before:.1%}",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
        folder = target
    if wanted.repository:
        url = push_model(folder, wanted.repository, public=wanted.public, existing=wanted.existing)
        screen.print(url, soft_wrap=True, markup=False, highlight=False)
    return 0


def weight_bytes(folder: Path) -> int:
    """Return the size of a model's weight files and of their index."""
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.index.json")]
    return sum(path.stat().st_size for path in files)


def _convert(folder: Path, target: Path, *, compact: bool) -> None:
    from fedprune.models.compact import write_compact, write_dense

    if compact:
        write_compact(folder, target)
    else:
        write_dense(folder, target)


_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REASONS = {
    401: "the Hub does not know the token. Log in again with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there. Give one with write access, or another owner",
    409: "it exists. Give another name, or add --existing to put a commit on it",
}


def check_login(repository: str) -> None:
    """Refuse what cannot be pushed, before any work.

    Raises
    ------
    ConfigError
        If the name is no 'owner/name', or there is no token.
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

    Parameters
    ----------
    folder : Path
        A model's folder in either form. Weights, masks, configuration, tokenizer, card and licence
        are uploaded and nothing else that may lie there.
    repository : str
        'owner/name'.
    public : bool
        Whether everybody may see the repository, if it is made.
    existing : bool
        Whether it may be there already.

    Raises
    ------
    FedpruneError
        If the Hub cannot be reached or refuses.
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
    names = {path.name for path in (*weights, *companions(folder))}
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
