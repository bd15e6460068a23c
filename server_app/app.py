"""The ServerApp: a thin entry into :func:`server_app.job.run_job`."""

from logging import INFO

from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from fedprune.flower.grid import object_grid
from fedprune.logs import set_up
from server_app.job import run_job

_MORE = (
    "A simulation has as many clients as Flower has virtual nodes, usually two; for more: "
    "flwr run . --stream --federation-config 'num-supernodes=8'"
)

set_up("server")
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federated pruning job from its configuration to its results."""
    if "federation.num_clients" not in str(context.run_config.get("overrides", "")):
        log(INFO, "%s", _MORE)  # not `fedprune run`, which says how many
    run_job(object_grid(grid), dict(context.run_config), context.run_id)
