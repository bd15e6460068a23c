"""Who takes part: those who answer first, and the same again in a run that goes on after a kill."""

from collections.abc import Sequence
from dataclasses import replace
from logging import INFO

from flwr.common.logger import log

from fedprune.config import RunConfig
from fedprune.records import NodeReport
from fedprune.results.ledger import Ledger
from strategies.cohort import Cohort
from strategies.handshake import Client
from strategies.participation import client_weights, take_part
from strategies.run_state import RunState

_ABSENT = -1  # no node of Flower's has a number below 0


def gather(met: Sequence[Client], state: RunState, config: RunConfig, ledger: Ledger) -> Cohort:
    """Return the clients of a run, those that are still asked active.

    Parameters
    ----------
    met : Sequence[Client]
        Who passed this process's handshake.
    state : RunState
        Without clients a new run's, which gets them; else these take part and nobody else does.
    config : RunConfig
        `strategy.fraction`, `strategy.min_clients`, `strategy.client_weights`.
    ledger : Ledger
        Notes by name who does not come back.

    Raises
    ------
    QuorumError
        If fewer than `strategy.min_clients` come back.
    """
    if not state.clients:
        drawn = take_part(met, config)
        state.clients = [client.report for client in drawn]
        state.active = [client.partition for client in drawn]
        state.opened = list(state.active)
    cohort = known_cohort(met, state, config, ledger)
    for client in cohort.active:
        if client.node_id < 0:
            problem = "it has not come back with the same samples after the run was interrupted."
            cohort.refuse(client, 0, "handshake", problem)
            cohort.leave_out(client)
    log(INFO, "taking part: %s", ", ".join(client.name for client in cohort.active))
    cohort.check_quorum(len(cohort.active), config.strategy.min_clients)
    return cohort


def known_cohort(
    met: Sequence[Client], state: RunState, config: RunConfig, ledger: Ledger
) -> Cohort:
    """Return a state's clients, those with a node among ``met`` on it; parameters as above."""
    nodes = {client.partition: client for client in met}
    clients = [_returned(nodes.get(report.partition_id), report) for report in state.clients]
    cohort = Cohort(clients, ledger, client_weights(clients, config))
    for client in clients:
        if client.partition not in state.active:
            cohort.leave_out(client)
    return cohort


def _returned(met: Client | None, report: NodeReport) -> Client:
    """Return a client as it was, which decides about weights and draws, on its node of now."""
    if met is None or _samples(met.report) != _samples(report):
        return Client(_ABSENT - report.partition_id, report)
    return replace(met, report=report)


def _samples(report: NodeReport) -> tuple[int, int, str]:
    return report.samples, report.tokens, report.sample_ids
