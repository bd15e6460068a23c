"""The ServerApp: a thin entry into :func:`server_app.job.run_job`."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedprune.flower.grid import object_grid
from fedprune.logs import set_up
from server_app.job import run_job

set_up("server")
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federated pruning job from its configuration to its results."""
    run_job(object_grid(grid), dict(context.run_config), context.run_id)
