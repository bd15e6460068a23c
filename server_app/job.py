"""One job: configuration, model, strategy, evaluation, export, results."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from logging import INFO
from pathlib import Path

from flwr.common.logger import log
from flwr.serverapp import Grid

from fedprune.config import RunConfig, compose_config, resumed_config, resumption
from fedprune.disk import home, is_refusal
from fedprune.errors import ConfigError, FedpruneError
from fedprune.logs import bound, job_mark, note
from fedprune.methods.registry import exchanges, get_method
from fedprune.models.device import return_freed_memory
from fedprune.models.export import export_model
from fedprune.models.fingerprint import Fingerprint, fingerprint
from fedprune.models.loading import LoadedModel, load_model
from fedprune.models.transfer import Offer
from fedprune.pruning.blocks import input_groups
from fedprune.report.page import leave_report
from fedprune.results.build import Facts, build_results
from fedprune.results.card import write_card
from fedprune.results.environment import source_digest
from fedprune.results.run_status import RunStatus, WatchedLedger
from fedprune.results.tables import plain_table
from fedprune.results.tracking import Tracking, check_tracker
from server_app.measure import further_results, measure, wanted_tasks
from server_app.run_folder import RunFolder, StateFiles, TrackedTally
from strategies import FederatedPruning, PublicModel, strategy_class
from strategies.messages import MESSAGE_BYTES
from strategies.progress import show
from strategies.state import RunState


def run_job(grid: Grid, run_config: Mapping[str, str | int | float | bool], run_id: int) -> Path:
    """Run a federated pruning job, or go on with one, and return its folder.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    run_config : Mapping
        Flower's run-config: shortcuts and Hydra overrides; with ``resume=FOLDER`` among these the
        run in that folder goes on.
    run_id : int
        Flower's number of this run.

    Raises
    ------
    FedpruneError
        If the configuration, the model or the round fails; whatever was aggregated until then,
        the configuration and the ledger are in the folder, a model folder is not.
    """
    with bound(role="server", run=run_id):
        return _run_job(grid, run_config, run_id)


def _run_job(grid: Grid, run_config: Mapping[str, str | int | float | bool], run_id: int) -> Path:
    return_freed_memory()
    resumed = resumption(run_config)
    if resumed is None:
        config = compose_config(run_config)
        check_tracker(config.tracking)
        get_method(config.strategy.name)  # before anything is written
        folder = RunFolder(_output_dir(config, run_id))
        folder.start(config)
    else:
        folder = RunFolder(resumed.folder)
        config = resumed_config(folder.config_text(), resumed)
    note(folder=folder.path.name)
    status = RunStatus(folder.path, lambda: len(list(grid.get_node_ids())))
    with folder.locked():
        if folder.finished:
            folder.tidy()
            folder.drop_partial()
            log(INFO, "the run in %s is finished: there is nothing to go on with", folder.path)
        else:
            with status:
                results = _results(grid, config, run_id, folder, status)
                folder.finish(results)
            log(INFO, "\n%s", plain_table(results))
        leave_report(folder.path)
    show(status, "done", 1, 1, str(folder.path))
    log(INFO, "%s", folder.path)
    return folder.path


def _results(
    grid: Grid, config: RunConfig, run_id: int, folder: RunFolder, status: RunStatus
) -> dict[str, object]:
    """Run a job from where its folder says it stands; a failure is noted there."""
    files, state = StateFiles(folder.state, WatchedLedger(status=status)), RunState()
    try:
        folder.reopen()
        state = files.load()
        note(job=job_mark(state.job))
        status.catch_up(files.ledger)
        with state.timings.measure("total"), Tracking(config, folder.path) as tracking:
            results = _run(grid, config, run_id, folder, files, state, tracking, status)
            tracking.finish(results)
            write_card(folder.model, config, results)
            return results
    except FedpruneError as error:
        raise _noted(error, folder, files, state) from error
    except Exception as error:
        if is_refusal(error):
            text = f"A disk is full or cannot be written: {error}. It writes to '{folder.path}'."
            raise _noted(FedpruneError(text), folder, files, state) from error
        # Nobody foresaw it: what it says is kept beside the run, and its traceback in the log.
        _noted(FedpruneError(f"{type(error).__name__}: {error}."), folder, files, state)
        raise


def _noted(
    error: FedpruneError, folder: RunFolder, files: StateFiles, state: RunState
) -> FedpruneError:
    """Return an error that stops the run with the way on, after noting it in the folder."""
    # Without clients, or with a wrong configuration, there is nothing to go on with.
    goes_on = state.clients and not isinstance(error, ConfigError)
    way = f" Go on with the run: fedprune run resume={folder.path}" if goes_on else ""
    folder.fail(f"{error}{way}", files.ledger)
    return type(error)(f"{error}{way}")


def _run(  # noqa: PLR0913 - what a job is made of
    grid: Grid,
    config: RunConfig,
    run_id: int,
    folder: RunFolder,
    files: StateFiles,
    state: RunState,
    tracking: Tracking,
    status: RunStatus,
) -> dict[str, object]:
    timings = state.timings
    with timings.measure("load"):
        tasks = wanted_tasks(config)
        loaded = load_model(config.model)
        marks = fingerprint(loaded)
        model = _public_model(config, loaded, marks, _offer(config, loaded))
    files.identify(_identity(folder, model))
    model.check_pattern(config.pruner.pattern)
    tally = TrackedTally(folder, files, loaded, config.strategy.rounds, tracking)
    strategy = strategy_class(config.strategy.name)(config, model, tally, files.ledger, state)
    strategy.status = status
    strategy.start(grid)
    changes = tally.changes()
    with timings.measure("evaluate"):
        perplexities = measure(strategy.config, loaded, changes, strategy)
    show(status, "export", 0, 1, "writing the pruned model")
    with timings.measure("export"):
        if not folder.model.exists():  # which appears whole
            export_model(loaded, changes, folder.model, marks)
    with timings.measure("zero_shot"):
        further = further_results(strategy, loaded, folder.model, tasks)
    seconds = state.timings.seconds
    facts = Facts(
        config,
        strategy.method.words,
        run_id,
        marks,
        model.code_hash,
        seconds,
        state.figures,
        model.dense_bytes,
    )
    agreement = tally.agreement([client.name for client in strategy.cohort.clients])
    results = build_results(
        facts, tally.linears(), perplexities, _clients(strategy), files.ledger, agreement
    )
    return results | further


def _identity(folder: RunFolder, model: PublicModel) -> dict[str, str]:
    """Return what must stay the same if the run is interrupted and goes on."""
    return {
        "code": model.code_hash,
        "configuration": hashlib.sha256(folder.config_text().encode()).hexdigest(),
        "model": f"{model.weights_hash} {model.config_hash}",
    }


def _output_dir(config: RunConfig, run_id: int) -> Path:
    if config.output_dir:
        return Path(config.output_dir).expanduser().absolute()
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return home() / "runs" / f"{stamp}-{run_id}"


def _offer(config: RunConfig, loaded: LoadedModel) -> Offer | None:
    """Return the model as nodes without it can get it, None where they cannot."""
    if config.model.source != "server":
        return None
    return Offer.of(loaded.path, config.model.revision, MESSAGE_BYTES)


def _public_model(
    config: RunConfig, loaded: LoadedModel, marks: Fingerprint, offer: Offer | None
) -> PublicModel:
    layout = loaded.layout
    traced = any(exchange.shares_inputs for exchange in exchanges(config).values())
    return PublicModel(
        shapes=tuple(
            {name: ref.shape for name, ref in layout.linears(block).items()}
            for block in range(len(layout.blocks))
        ),
        config_hash=marks.config,
        weights_hash=marks.weights,
        code_hash=source_digest(),
        weight=lambda block, name: loaded.weight(block, name),
        inputs=input_groups(loaded) if traced else (),
        offer=offer,
    )


def _clients(strategy: FederatedPruning) -> list[dict[str, object]]:
    local = strategy.state.local
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
