"""Where an exported model comes from, in a file beside its masks that anybody can hold it against.

It names the base model, the sources and the choices by which the model was made, and every file by
its hash, but no path, site or text. A model that was made of collected statistics names those by
their hash too: then whoever has them can make it again and see that every byte follows.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedprune.config import RunConfig, to_overrides
from fedprune.disk import file_sha256, replace_file
from fedprune.errors import ModelError

PROVENANCE = Path("fedprune", "provenance.json")
SIGNATURES_OF_A_MODEL = Path("fedprune", "signatures.json")
"""What sites signed: of their answers, and of the provenance's file."""

FORMAT = "fedprune-provenance"
VERSION = 1

_CARD = "README.md"  # says more with every release, and may be edited
_CHOICES = ("sparsity", "seed", "pruner", "strategy", "schedule", "allocation")


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from."""

    # `config_hash` and `weights_hash` of the dense model, and its `dtype` setting
    base: Mapping[str, str]
    code: str  # SHA-256 of the sources that made it
    versions: Mapping[str, str]
    choices: tuple[str, ...]  # how it was made, as overrides
    # SHA-256 of the whole resolved configuration, which has paths and stays with the run
    configuration: str
    clients: int
    # SHA-256 of `statistics.json`, which has those of all its files; "" where the model was not
    # made of collected statistics
    statistics: str
    files: Mapping[str, str]  # path inside the folder -> SHA-256
    # the key of the run that made it, which its sites' signatures hold for; "" where there was none
    job: str = ""


def write_provenance(
    folder: Path, config: RunConfig, text: str, results: Mapping[str, Any], job: str
) -> str:
    """Write where a model comes from into its folder, and return the file's SHA-256.

    `text`: the same as YAML, as it stands beside the results. `results`: the content of
    `results.json`.
    """
    model = results["model"]
    found = Provenance(
        base={
            "config_hash": model["config_hash"],
            "weights_hash": model["weights_hash"],
            "dtype": config.model.dtype,
        },
        code=results["code_hash"],
        versions=results["versions"],
        choices=tuple(one for one in to_overrides(config) if is_choice(one)),
        configuration=hashlib.sha256(text.encode()).hexdigest(),
        clients=len(results["clients"]),
        statistics=results.get("statistics", {}).get("sha256", ""),
        files=hashes(folder),
        job=job,
    )
    plain = {"format": FORMAT, "version": VERSION, **asdict(found)}
    place = folder / PROVENANCE
    place.parent.mkdir(exist_ok=True)
    data = (json.dumps(plain, indent=1) + "\n").encode()
    replace_file(place, data)
    return hashlib.sha256(data).hexdigest()


def read_provenance(folder: Path) -> Provenance:
    """Return where a model says that it comes from.

    Raises ModelError if the file is not there, damaged, or of another version.
    """
    place = folder / PROVENANCE
    try:
        plain = json.loads(place.read_text(encoding="utf-8"))
        head = plain.pop("format"), plain.pop("version")
        found = Provenance(**plain | {"choices": tuple(map(str, plain["choices"]))})
        sound = all(isinstance(one, str) for one in (*found.files, *found.files.values()))
    except FileNotFoundError:
        raise ModelError(
            f"'{folder}' has no '{PROVENANCE}': it was not made by this release, or only parts of "
            "it were copied."
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"'{place}' is damaged: {type(error).__name__}: {error}.") from error
    if head != (FORMAT, VERSION) or not sound:
        raise ModelError(
            f"'{place}' is of the form {head}, this release reads {(FORMAT, VERSION)}. Verify with "
            "the release that made it."
        )
    return found


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of a model's files but its card, this one and signatures, by path."""
    found = {}
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        name = path.relative_to(folder)
        if name not in (PROVENANCE, SIGNATURES_OF_A_MODEL, Path(_CARD)):
            found[name.as_posix()] = file_sha256(path)
    return found


def differences(told: Mapping[str, str], found: Mapping[str, str]) -> Iterator[str]:
    """Yield what is not as it is told, in a clause each."""
    for name, digest in told.items():
        if name not in found:
            yield f"`{name}` is missing"
        elif found[name] != digest:
            yield f"`{name}` is another than was made"
    yield from (f"`{name}` was not made by the run" for name in found if name not in told)


def is_choice(override: str) -> bool:
    """Whether an override is about how a model is made, not about where texts and models are."""
    return override.partition("=")[0].partition(".")[0] in _CHOICES


def weights_of(files: Mapping[str, str]) -> dict[str, str]:
    """Return those files that hold weights and masks."""
    return {name: digest for name, digest in files.items() if name.endswith(".safetensors")}
