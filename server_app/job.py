"""One job: configuration, plan, strategy, evaluation, export, results."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from logging import INFO
from pathlib import Path

from flwr.common.logger import log
from flwr.serverapp import Grid

from fedprune.config import RunConfig, compose_config
from fedprune.errors import FedpruneError
from fedprune.home import home
from fedprune.models.export import export_model
from fedprune.models.fingerprint import Fingerprint, fingerprint
from fedprune.models.loading import LoadedModel, load_model
from fedprune.reporting.progress import Progress
from fedprune.reporting.results import Facts, build_results
from fedprune.reporting.sources import source_digest
from fedprune.reporting.table import plain_table
from server_app.folder import RunFolder
from server_app.measure import measure
from server_app.tally import Tally
from strategies import FederatedPruning, FedPrLLM, Plan

STRATEGIES: dict[str, type[FederatedPruning]] = {"fedprllm": FedPrLLM}


def run_job(grid: Grid, run_config: Mapping[str, str | int | float | bool], run_id: int) -> Path:
    """Run a federated pruning job and return its folder.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    run_config : Mapping
        Flower's run-config: shortcuts and Hydra overrides.
    run_id : int
        Flower's number of this run.

    Raises
    ------
    FedpruneError
        If the configuration, the model or the round fails; whatever was aggregated until then,
        the configuration and the ledger are in the folder, a model folder is not.
    """
    started = time.monotonic()
    config = compose_config(run_config)
    folder = RunFolder(_output_dir(config, run_id))
    folder.start(config)
    loaded = load_model(config.model)
    marks = fingerprint(loaded)
    tally = Tally(folder, loaded)
    strategy = STRATEGIES[config.strategy.name](config, _plan(loaded, marks), tally.add)
    try:
        strategy.start(grid)
    except FedpruneError as error:
        folder.fail(str(error), strategy.ledger)
        raise
    pruned_seconds = time.monotonic() - started
    masks = folder.read_masks(tally.blocks)
    perplexities = measure(config, loaded, masks, strategy)
    _progress("export", 0, 1, "writing the pruned model")
    export_model(loaded, masks, folder.model)
    facts = Facts(
        config=config,
        run_id=run_id,
        fingerprint=marks,
        code_hash=source_digest(),
        rounds_seconds=pruned_seconds,
        total_seconds=time.monotonic() - started,
    )
    results = build_results(
        facts, tally.linears(), perplexities, _clients(strategy), strategy.ledger
    )
    folder.finish(results)
    _progress("done", 1, 1, str(folder.path))
    log(INFO, "\n%s\n%s", plain_table(results), folder.path)
    return folder.path


def _output_dir(config: RunConfig, run_id: int) -> Path:
    if config.output_dir:
        return Path(config.output_dir).expanduser().absolute()
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return home() / "runs" / f"{stamp}-{run_id}"


def _plan(loaded: LoadedModel, marks: Fingerprint) -> Plan:
    layout = loaded.layout
    return Plan(
        shapes=tuple(
            {name: ref.shape for name, ref in layout.linears(block).items()}
            for block in range(len(layout.blocks))
        ),
        config_hash=marks.config,
        weights_hash=marks.weights,
        code_hash=source_digest(),
        magnitude=lambda block, name: (
            layout.linears(block)[name].weight().detach().abs().float().reshape(-1).numpy()
        ),
    )


def _clients(strategy: FederatedPruning) -> list[dict[str, object]]:
    local = strategy.local
    return [
        {
            "name": client.name,
            "partition_id": client.report.partition_id,
            "samples": client.report.samples,
            "tokens": client.report.tokens,
            "device": client.report.device,
            "memory_bytes": client.report.memory_bytes,
            "versions": client.report.versions,
            "local_nll": local[client.name].nll if client.name in local else None,
        }
        for client in strategy.cohort.clients
    ]


def _progress(phase: str, done: int, total: int, detail: str) -> None:
    log(INFO, Progress(phase, done, total, detail).line())
