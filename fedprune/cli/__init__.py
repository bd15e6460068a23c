"""The `fedprune` command: run, sweep, evaluate, doctor."""

import argparse
import sys
from collections.abc import Sequence

from fedprune import __version__
from fedprune.errors import ConfigError, FedpruneError

_EXAMPLES = """examples:
  fedprune run                                     the embedded demo, as a simulation
  fedprune run sparsity=0.6 federation.num_clients=4
  fedprune run model=facebook/opt-125m data=/texts output_dir=runs/opt
  fedprune run federation.connection=production    on a SuperLink of Flower's configuration
  fedprune run federation.backend=inline           without Flower's runtime, starts at once
  fedprune sweep sparsity=0.5,0.6 strategy.group=layer,row seed=0,1,2
  fedprune evaluate runs/opt evaluation.seq_len=512
  fedprune doctor

exit codes: 0 done, 1 failed, 2 wrong configuration or usage, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; those of the process if left out.
    """
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return 130
    except FedpruneError as error:
        if arguments.debug:
            raise
        sys.stderr.write(f"fedprune {arguments.command}: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1


def _run(arguments: argparse.Namespace) -> int:
    # Each command's modules are loaded when it is used: torch alone takes seconds.
    if arguments.command == "run":
        from fedprune.cli.run import run_job

        return run_job(arguments.overrides)
    if arguments.command == "sweep":
        from fedprune.cli.sweep import run_sweep

        return run_sweep(arguments.overrides, keep_models=arguments.keep_models)
    if arguments.command == "evaluate":
        from fedprune.cli.evaluate import run_evaluation

        return run_evaluation(arguments.model, arguments.overrides, as_json=arguments.json)
    from fedprune.cli.doctor import run_doctor

    return run_doctor()


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    overrides = argparse.ArgumentParser(add_help=False)
    overrides.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="Hydra overrides and shortcuts, see the folder `conf`",
    )
    parser = argparse.ArgumentParser(
        prog="fedprune",
        description="Prune a language model together with the organisations that hold the data.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fedprune {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser(
        "run",
        parents=[common, overrides],
        help="run a federated pruning job and wait for its results",
        description="Run a federated pruning job through Flower and wait for its results.",
    )
    sweep = commands.add_parser(
        "sweep",
        parents=[common],
        help="run many jobs and compare their results",
        description="Run a job for every combination of values, in this process unless "
        "federation.backend or federation.connection says otherwise. What is done is skipped, so "
        "that the same command goes on after an interruption or a failure. Ends with a table, "
        "table.csv, table.md and plots in the sweep's folder (output_dir).",
    )
    sweep.add_argument(
        "overrides",
        nargs="+",
        metavar="NAME|key=a,b",
        help="a sweep of conf/sweep or a file like those; keys with one or several values",
    )
    sweep.add_argument(
        "--keep-models", action="store_true", help="keep the pruned models, not only the masks"
    )
    evaluate = commands.add_parser(
        "evaluate",
        parents=[common],
        help="measure the perplexity of a model folder",
        description="Measure the perplexity of a model folder on held-out text.",
    )
    evaluate.add_argument("model", metavar="MODEL_DIR", help="a model folder or a run's folder")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    commands.add_parser(
        "doctor",
        parents=[common],
        help="check this machine and say what to mend",
        description="Check Python, torch, Flower, disk, memory and the cache; change nothing.",
    )
    return parser
