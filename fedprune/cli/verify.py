"""`fedprune verify`: whether a model is what its provenance says, and follows from statistics."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedprune.cli.evaluate import model_folder
from fedprune.cli.screen import say
from fedprune.config import RunConfig, config_from_overrides, to_overrides
from fedprune.disk import file_sha256
from fedprune.errors import ConfigError, ModelError
from fedprune.methods.registry import get_method
from fedprune.methods.statistics_folder import StatisticsFolder
from fedprune.models.fingerprint import fingerprint
from fedprune.models.loading import load_model
from fedprune.models.reshape import write_model
from fedprune.models.selection import select
from fedprune.privacy.attestation import (
    MODEL,
    SIGNATURES,
    STATISTICS,
    Signatures,
    Verdict,
    judge,
)
from fedprune.privacy.roster import Roster
from fedprune.results.environment import source_digest
from fedprune.results.provenance import (
    PROVENANCE,
    SIGNATURES_OF_A_MODEL,
    Provenance,
    differences,
    hashes,
    is_choice,
    read_provenance,
    weights_of,
)
from fedprune.results.text import count


def run_verify(model: str, statistics: str, overrides: Sequence[str], roster: Path | None) -> int:
    """Hold a model against its provenance and return the exit code, 1 if something is not so.

    `statistics`: the statistics folder that it was made of, to make it again; "" for its files
    alone. `overrides`: ``model=PATH`` where the dense model is not where the collection had it.
    """
    sites = None if roster is None else Roster.read(roster)
    if sites is not None:
        sites.verify()
    folder = model_folder(model)
    told = read_provenance(folder)
    screen, found = Console(), hashes(folder)
    wrong = list(differences(told.files, found))
    if not wrong:
        say(screen, f"{count(len(told.files), 'file is', 'files are')} as the run made them.")
        say(screen, f"Base model: weights {told.base['weights_hash']}")
        say(screen, f"Made by sources {told.code}, with {count(told.clients, 'client')}.")
    collected = StatisticsFolder.open(statistics) if statistics else None
    if collected is not None and not wrong:
        wrong = list(_made_again(folder, told, collected, overrides))
        if not wrong:
            say(screen, "Made again of the statistics: every byte of weights and masks follows.")
    verdict = _signed(folder, told, collected, sites)
    for line in verdict.holds:
        say(screen, line)
    wrong += verdict.wrong
    for one in wrong:
        sys.stderr.write(f"fedprune verify: {one}\n")
    return 1 if wrong else 0


def _signed(
    folder: Path, told: Provenance, statistics: StatisticsFolder | None, roster: Roster | None
) -> Verdict:
    """Say who signed a model, or the statistics that it was made of."""
    found = Signatures.read(folder / SIGNATURES_OF_A_MODEL)
    if found is None and statistics is not None:
        runs = statistics.manifest.runs
        job = runs[0] if len(runs) == 1 else ""  # merged ones are signed by nobody
        found = Signatures.read(statistics.path / SIGNATURES)
        return judge(found, STATISTICS, statistics.digest, job, roster)
    return judge(found, MODEL, file_sha256(folder / PROVENANCE), told.job, roster)


def _made_again(
    folder: Path, told: Provenance, statistics: StatisticsFolder, overrides: Sequence[str]
) -> list[str]:
    """Make a model again and return what of it is different."""
    if statistics.digest != told.statistics:
        raise ConfigError(
            f"'{folder}' was made of statistics with the SHA-256 {told.statistics or 'none'}, "
            f"those in '{statistics.path}' have {statistics.digest}. Give those that its run used; "
            "a model whose clients pruned along has none."
        )
    config = _configuration(told, statistics, overrides)
    loaded = select(load_model(config.model), config.pruner)
    mark = fingerprint(loaded)
    statistics.check_model(mark, loaded.layout.shapes())
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".verify-") as beside:
        again = Path(beside) / "model"
        solution = get_method(config.strategy.name).solve(config, loaded, statistics)
        write_model(loaded, solution.changes, solution.reshape, again, mark)
        wrong = list(differences(weights_of(told.files), weights_of(hashes(again))))
    if wrong and source_digest() != told.code:
        wrong.append(f"these are other sources ({source_digest()[:16]}) than made it")
    return wrong


def _configuration(
    told: Provenance, statistics: StatisticsFolder, overrides: Sequence[str]
) -> RunConfig:
    """Return the collection's model with the choices that the model was made by."""
    before = [one for one in to_overrides(statistics.manifest.config) if not is_choice(one)]
    if any(one.startswith("model=") for one in overrides):
        before = [one for one in before if not one.startswith("model.")]
    try:
        return config_from_overrides([*before, *told.choices, *overrides])
    except ConfigError as error:
        raise ModelError(f"The provenance has choices that cannot be followed: {error}") from error
