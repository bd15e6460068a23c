"""One job: configuration, model, strategy, evaluation, export, results."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache, partial
from logging import INFO
from pathlib import Path
from typing import Any

from flwr.common.logger import log
from flwr.serverapp import Grid

from fedprune.config import (
    RunConfig,
    compose_config,
    replace,
    resumed_config,
    resumption,
    to_yaml,
)
from fedprune.disk import file_sha256, home, is_refusal
from fedprune.errors import ConfigError, FedpruneError
from fedprune.evaluation.zero_shot import Tasks
from fedprune.logs import bound, job_mark, note
from fedprune.methods.public_model import PublicModel
from fedprune.methods.public_text import PublicMoments, PublicText
from fedprune.methods.registry import Solution, exchanges, get_method, main_exchange
from fedprune.methods.statistics_folder import (
    MANIFEST,
    Manifest,
    Participant,
    StatisticsFolder,
    write_manifest,
)
from fedprune.models.coverage import coverage
from fedprune.models.device import return_freed_memory
from fedprune.models.fingerprint import Fingerprint, fingerprint
from fedprune.models.loading import LoadedModel, load_model
from fedprune.models.quantized import check_quantizable
from fedprune.models.reshape import Reshape, write_model
from fedprune.models.selection import select
from fedprune.models.transfer import Offer
from fedprune.models.unread import describe
from fedprune.privacy.attestation import MODEL, SIGNATURES, STATISTICS
from fedprune.pruning.blocks import input_groups
from fedprune.pruning.compaction import plan_narrowing
from fedprune.pruning.loudness import most_mean_squares
from fedprune.pruning.output_gradients import OutputMoments, mean_squares
from fedprune.pruning.registry import make_pruner
from fedprune.pruning.statistics import NOTHING
from fedprune.pruning.units import Units
from fedprune.records import NodeReport
from fedprune.report.page import leave_report
from fedprune.results.build import Facts, Perplexities, build_results
from fedprune.results.card import write_card
from fedprune.results.environment import source_digest
from fedprune.results.provenance import SIGNATURES_OF_A_MODEL, write_provenance
from fedprune.results.run_status import RunStatus, WatchedLedger
from fedprune.results.tables import plain_table
from fedprune.results.tracking import Tracking, check_tracker
from server_app.measure import further_results, measure, smaller_figures, wanted_tasks
from server_app.run_folder import RunFolder, StateFiles, Tally
from strategies import FederatedPruning, strategy_class
from strategies.cohort import Client, Cohort
from strategies.messages import MESSAGE_BYTES
from strategies.progress import Report, paced, show
from strategies.signatures import gather_signatures
from strategies.state import RunState

Source = Grid | StatisticsFolder
"""What tells of the texts: nodes that can be asked, or what they told once."""


def run_job(
    source: Source, run_config: Mapping[str, str | int | float | bool], run_id: int
) -> Path:
    """Run a federated pruning job, or go on with one, and return its folder.

    `source`: of statistics a model is made without any client; that is never resumed, it begins
    anew. `run_config`: Flower's run-config: shortcuts and Hydra overrides; with ``resume=FOLDER``
    among these the run in that folder goes on. Raises FedpruneError if the configuration, the model
    or the round fails, or the statistics are another model's or not enough; whatever was aggregated
    until then, the configuration and the ledger are in the folder, a model folder is not.
    """
    with bound(role="server", run=run_id):
        return _run_job(source, run_config, run_id)


def _run_job(
    source: Source, run_config: Mapping[str, str | int | float | bool], run_id: int
) -> Path:
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
    status = RunStatus(folder.path, lambda: _nodes(source))
    with folder.locked():
        if folder.finished:
            folder.tidy()
            folder.drop_partial()
            log(INFO, "the run in %s is finished: there is nothing to go on with", folder.path)
        else:
            with status:
                results = _results(source, config, run_id, folder, status)
                folder.finish(results)
            log(INFO, "\n%s", plain_table(results))
        leave_report(folder.path)
    show(status, "done", 1, 1, str(folder.path))
    log(INFO, "%s", folder.path)
    return folder.path


def _nodes(source: Source) -> int:
    return 0 if isinstance(source, StatisticsFolder) else len(list(source.get_node_ids()))


def _results(
    source: Source, config: RunConfig, run_id: int, folder: RunFolder, status: RunStatus
) -> dict[str, object]:
    """Run a job from where its folder says it stands; a failure is noted there."""
    files, state = StateFiles(folder.state, WatchedLedger(status=status)), RunState()
    try:
        folder.reopen()
        state = files.load()
        note(job=job_mark(state.job))
        status.catch_up(files.ledger)
        with state.timings.measure("total"), Tracking(config, folder.path) as tracking:
            results, strategy = _run(source, config, run_id, folder, files, state, tracking, status)
            tracking.finish(results)
            made: dict[str, str] = {}
            if folder.model.exists():
                write_card(folder.model, config, results)
                followed = _followed(folder, config)
                made[MODEL] = write_provenance(
                    folder.model, followed, folder.config_text(), results, state.job
                )
            _signed(source, strategy, folder, made)
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


def _signed(
    source: Source, strategy: FederatedPruning, folder: RunFolder, made: Mapping[str, str]
) -> None:
    """Let the clients that have keys sign what the run made, and keep their signatures beside it.

    A model that is made of statistics without the clients stays unsigned; its statistics may be.
    """
    if isinstance(source, StatisticsFolder):
        return
    statistics = folder.statistics / MANIFEST
    results = dict(made) | ({STATISTICS: file_sha256(statistics)} if statistics.is_file() else {})
    clients = strategy.cohort.clients
    if not any(client.report.signer for client in clients) or not results:
        return
    show(strategy.status, "export", 1, 1, "clients sign what was made")
    config_yaml = to_yaml(strategy.config)
    found = gather_signatures(source, clients, strategy.state, config_yaml, results)
    if MODEL in results:
        found.write(folder.model / SIGNATURES_OF_A_MODEL)
    if STATISTICS in results:
        found.write(folder.statistics / SIGNATURES)


def _followed(folder: RunFolder, config: RunConfig) -> RunConfig:
    """Return the configuration with what a survey settled, if that was collected by."""
    if not (folder.statistics / MANIFEST).is_file():
        return config
    return StatisticsFolder.open(folder.statistics).manifest.config


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
    source: Source,
    config: RunConfig,
    run_id: int,
    folder: RunFolder,
    files: StateFiles,
    state: RunState,
    tracking: Tracking,
    status: RunStatus,
) -> tuple[dict[str, object], FederatedPruning]:
    timings = state.timings
    with timings.measure("load"):
        tasks = wanted_tasks(config)
        loaded = select(load_model(config.model), config.pruner)
        get_method(config.strategy.name).check_model(config, loaded)
        marks = fingerprint(loaded)
        narrowing = plan_narrowing(loaded, make_pruner(config.pruner), config.sparsity)
        units = None if narrowing is None else narrowing.units
        asks = not isinstance(source, StatisticsFolder)
        what = "the public model writes texts, to tell what its loss minds; no client is asked"
        report = paced(status, "survey", what)
        model = _public_model(config, loaded, marks, units, asks, report)
        config = get_method(config.strategy.name).settled(config, model)
    covered = coverage(loaded.layout)
    covered.tell()
    files.identify(_identity(folder, model))
    model.check_pattern(config.pruner.pattern)
    if config.pruner.bits is not None:
        check_quantizable(loaded.layout, config.pruner.group_size, config.pruner.symmetric)
    floor = bool(config.strategy.own_options().get("majority_floor"))
    rounds = config.strategy.rounds
    tally = Tally(folder, files, loaded, rounds, majority_floor=floor, tracking=tracking)
    strategy = strategy_class(config.strategy.name)(config, model, tally, files.ledger, state)
    strategy.status = status
    statistics = _asked(source, strategy, tally, marks)
    further: dict[str, object] = {}
    perplexities = [Perplexities(config.data.name, None, None, None, {})]
    if statistics is not None:
        further["statistics"] = statistics.summary()
    if statistics is None or strategy.method.solves_at_once or statistics is source:
        solution = Solution()
        if statistics is not None:
            solution = _solved(strategy, loaded, statistics, tally)
        if narrowing is not None:  # of what is on the disk, so that nothing is solved again
            reshape = narrowing.reshape(tally.changes())
            solution = Solution(reshape=reshape, summary=narrowing.summary)
        perplexities, more = _measured(strategy, loaded, marks, tally, solution.reshape, tasks)
        further |= more
        if solution.reshape is not None:
            further["smaller"] = smaller_figures(folder.model, solution)
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
        describe(loaded),
    )
    agreement = tally.agreement([client.name for client in strategy.cohort.clients])
    results = build_results(
        facts, tally.linears(), perplexities, _clients(strategy), files.ledger, agreement
    )
    if make_pruner(config.pruner).needs == NOTHING:
        results["experts"] = None  # nobody looked at a token
    return results | {"coverage": covered.to_dict()} | further, strategy


def _asked(
    source: Source, strategy: FederatedPruning, tally: Tally, marks: Fingerprint
) -> StatisticsFolder | None:
    """Hold the strategy's exchanges; return what was collected, None where blocks are pruned."""
    if isinstance(source, StatisticsFolder):
        source.check_model(marks, strategy.model.shapes)
        strategy.cohort = Cohort(_participants(source), strategy.ledger)
        if source.manifest.privacy:
            strategy.state.figures["privacy"] = dict(source.manifest.privacy)
        return source
    strategy.start(source)
    exchange = strategy.exchange
    if not exchange.collects:
        return None
    entries = strategy.ledger.entries
    answered = {e.client for e in entries if e.phase == exchange.name and not e.refused}
    reports = [one.report for one in strategy.cohort.clients if one.name in answered]
    manifest = Manifest(
        model=marks,
        architecture=str(tally.loaded.model.config.model_type),
        prefix=tally.loaded.layout.prefix,
        configuration=to_yaml(strategy.config),
        runs=(strategy.state.job,),
        data=(strategy.config.data.name,),
        kinds=exchange.collects,
        inputs=strategy.model.inputs,
        shapes=strategy.model.shapes,
        participants=tuple(
            Participant(one.name, **_shared(one), sample_ids=_named(one)) for one in reports
        ),
        privacy=strategy.state.figures.get("privacy", {}),
    )
    write_manifest(tally.folder.statistics, manifest)
    return StatisticsFolder.open(tally.folder.statistics)


def _solved(
    strategy: FederatedPruning,
    loaded: LoadedModel,
    statistics: StatisticsFolder,
    tally: Tally,
) -> Solution:
    """Let the method make a model of statistics; return what it made."""
    with strategy.state.timings.measure("prune"):
        show(strategy.status, "prune", 0, 1, "making a model of the statistics")
        solution = strategy.method.solve(strategy.config, loaded, statistics)
        strategy.state.figures |= solution.figures
        tally.solve(solution, len(statistics.manifest.participants))
    return solution


def _measured(  # noqa: PLR0913 - what is measured, and where it goes
    strategy: FederatedPruning,
    loaded: LoadedModel,
    marks: Fingerprint,
    tally: Tally,
    reshape: Reshape | None,
    tasks: Tasks,
) -> tuple[list[Perplexities], dict[str, object]]:
    """Export and measure what a run made."""
    timings, folder, changes = strategy.state.timings, tally.folder.model, tally.changes()

    def write(what: str) -> None:
        show(strategy.status, "export", 0, 1, f"writing the {what} model")
        with timings.measure("export"):
            if not folder.exists():  # which appears whole
                write_model(loaded, changes, reshape, folder, marks)

    smaller = None
    if reshape is not None:
        write("smaller")
        chosen = replace(strategy.config.model, name="hf", path=str(folder), revision=None)
        smaller = load_model(chosen)
    with timings.measure("evaluate"):
        perplexities = measure(strategy.config, loaded, changes, strategy, smaller)
    if reshape is None:
        write("pruned")
    with timings.measure("zero_shot"):
        return perplexities, further_results(strategy, loaded, folder, tasks)


def _named(report: NodeReport) -> tuple[str, ...]:
    """Return the names of a client's samples, none where its texts are its own."""
    return tuple(filter(None, report.sample_ids.split(",")))


_SHARED = ("site", "partition_id", "num_partitions", "samples", "tokens")


def _shared(told: NodeReport | Participant) -> dict[str, Any]:
    """Return what is kept with statistics of what a client said of itself."""
    return {name: getattr(told, name) for name in _SHARED}


def _participants(statistics: StatisticsFolder) -> list[Client]:
    """Return those who are in collected statistics; none of them can be asked anything now."""
    return [
        Client(
            -1 - place,
            NodeReport(
                **_shared(one),
                config_hash=statistics.manifest.model.config,
                weights_hash=statistics.manifest.model.weights,
                code_hash="",
                device="",
                memory_bytes=0,
                versions="",
                problem="",
                sample_ids=",".join(one.sample_ids),
            ),
        )
        for place, one in enumerate(statistics.manifest.participants)
    ]


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


def _public_model(
    config: RunConfig,
    loaded: LoadedModel,
    marks: Fingerprint,
    units: Units | None,
    asks: bool,
    report: Report,
) -> PublicModel:
    """Describe the model to those who are asked, and what their answers are held against."""
    traced = any(exchange.shares_inputs for exchange in exchanges(config).values())
    offer = public = None
    if config.model.source == "server":  # what nodes without the model get
        offer = Offer.of(loaded.path, config.model.revision, MESSAGE_BYTES)
    if config.privacy.first_is_public:
        kinds = main_exchange(config).summed if config.privacy.epsilon is not None else ()
        public = PublicText.of(config, loaded, kinds)
    return PublicModel.of(
        loaded,
        config_hash=marks.config,
        weights_hash=marks.weights,
        code_hash=source_digest(),
        inputs=input_groups(loaded) if traced else (),
        loudness=most_mean_squares(loaded) if traced and asks else (),
        offer=offer,
        units=units,
        output_moments=OutputMoments(config, loaded, report),
        public_moments=PublicMoments(config, loaded),
        sensitivities=cache(partial(mean_squares, config, loaded, report)),
        public=public,
    )


_TOLD = ("partition_id", "samples", "tokens", "device", "memory_bytes", "versions")


def _clients(strategy: FederatedPruning) -> list[dict[str, object]]:
    local = strategy.state.local
    return [
        {
            "name": client.name,
            **{name: getattr(client.report, name) for name in _TOLD},
            "sample_ids": list(_named(client.report)),
            "local_nll": local[client.name].nll if client.name in local else None,
        }
        for client in strategy.cohort.clients
    ]
