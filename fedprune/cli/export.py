"""`fedprune export`: a model in another form, or on the Hub."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fedprune.cli.evaluate import model_folder
from fedprune.cli.push import check_login, push_model
from fedprune.errors import ConfigError
from fedprune.reporting.progress import size_text


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
