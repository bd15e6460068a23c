"""One job: configuration, plan, strategy, evaluation, export, results."""

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
from fedprune.pruning.trace import input_groups
from fedprune.reporting.laps import lap
from fedprune.reporting.ledger import Ledger
from fedprune.reporting.results import Facts, build_results
from fedprune.reporting.sources import source_digest
from fedprune.reporting.table import plain_table
from server_app.folder import RunFolder
from server_app.measure import measure
from server_app.tally import Tally
from strategies import FederatedPruning, FedHessian, FedPrLLM, FedSpaLLM, FedStats, Plan
from strategies.progress import show

STRATEGIES: dict[str, type[FederatedPruning]] = {
    "fedprllm": FedPrLLM,
    "fedspallm": FedSpaLLM,
    "fedstats": FedStats,
    "fedhessian": FedHessian,
}


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
    config = compose_config(run_config)
    folder = RunFolder(_output_dir(config, run_id))
    folder.start(config)
    ledger = Ledger()
    try:
        results = _run(grid, config, run_id, folder, ledger)
    except FedpruneError as error:
        folder.fail(str(error), ledger)
        raise
    folder.finish(results)
    show("done", 1, 1, str(folder.path))
    log(INFO, "\n%s\n%s", plain_table(results), folder.path)
    return folder.path


def _run(
    grid: Grid, config: RunConfig, run_id: int, folder: RunFolder, ledger: Ledger
) -> dict[str, object]:
    seconds: dict[str, float] = {}
    with lap(seconds, "total"):
        with lap(seconds, "load"):
            loaded = load_model(config.model)
            marks = fingerprint(loaded)
            plan = _plan(config, loaded, marks)
        plan.check_pattern(config.pruner.pattern)
        tally = Tally(folder, loaded)
        kind = STRATEGIES[config.strategy.name]
        strategy = kind(config, plan, tally.add, ledger, tally.recall)
        strategy.start(grid)
        seconds.update(strategy.seconds)
        changes = folder.read_changes(tally.blocks)
        with lap(seconds, "evaluate"):
            perplexities = measure(strategy.config, loaded, changes, strategy)
        show("export", 0, 1, "writing the pruned model")
        with lap(seconds, "export"):
            export_model(loaded, changes, folder.model)
    facts = Facts(
        config, run_id, marks, plan.code_hash, seconds, strategy.figures, plan.dense_bytes
    )
    return build_results(facts, tally.linears(), perplexities, _clients(strategy), ledger)


def _output_dir(config: RunConfig, run_id: int) -> Path:
    if config.output_dir:
        return Path(config.output_dir).expanduser().absolute()
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return home() / "runs" / f"{stamp}-{run_id}"


def _plan(config: RunConfig, loaded: LoadedModel, marks: Fingerprint) -> Plan:
    layout = loaded.layout
    counted = config.strategy.name in ("fedstats", "fedhessian") or config.strategy.decode
    traced = counted or config.allocation.name == "owl"
    return Plan(
        shapes=tuple(
            {name: ref.shape for name, ref in layout.linears(block).items()}
            for block in range(len(layout.blocks))
        ),
        config_hash=marks.config,
        weights_hash=marks.weights,
        code_hash=source_digest(),
        weight=lambda block, name: layout.linears(block)[name].weight(),
        inputs=input_groups(loaded) if traced else (),
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
            "sample_ids": [name for name in client.report.sample_ids.split(",") if name],
            "local_nll": local[client.name].nll if client.name in local else None,
        }
        for client in strategy.cohort.clients
    ]
