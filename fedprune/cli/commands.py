"""What the commands of `fedprune` are called, which arguments they take and what they run.

A command is an entry in :data:`COMMANDS`. Its own module is imported when it runs: this module is
read for every `--help`, and torch alone takes seconds.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

# arguments of every command that are none of its function's
_OF_ALL = ("command", "debug", "function", "verb")


@dataclass(frozen=True)
class Command:
    """One command."""

    help: str  # one line for the list of commands
    description: str  # what its own `--help` starts with
    arguments: Callable[[ArgumentParser], None] | None  # adds its arguments to its parser
    # what runs it, below `fedprune`: it gets the arguments by their names and returns the exit
    # code; a `fedprune.errors.FedpruneError` becomes a message. "" where each of its verbs has one
    function: str = ""


def call(arguments: Namespace) -> int:
    """Run a command with its arguments and return the exit code."""
    module, _, name = arguments.function.rpartition(".")
    given = {key: value for key, value in vars(arguments).items() if key not in _OF_ALL}
    code: int = getattr(import_module(f"fedprune.{module}"), name)(**given)
    return code


def _run_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="Hydra overrides and shortcuts, see the folder `conf`",
    )


def _solve_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "statistics", metavar="STATISTICS", help="a statistics folder, or the run that made it"
    )
    _run_arguments(parser)


def _merge_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "statistics", nargs="+", metavar="STATISTICS", help="statistics folders of the same model"
    )
    parser.add_argument("output", metavar="OUTPUT", help="a new folder")


def _sweep_arguments(parser: ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="NAME|key=a,b",
        help="an experiment with a grid, or a file with one; keys with one or several values",
    )
    what.add_argument(
        "--collect",
        metavar="FOLDER",
        help="run nothing: tables, plots and page of the runs in a folder, whoever started them",
    )
    parser.add_argument(
        "--keep-models", action="store_true", help="keep the pruned models, not only the masks"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="how many to run at once; chosen from processors, memory and model if left out",
    )


def _compare_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of completed runs")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print one JSON object")


def _evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL_DIR", help="a model folder, a run's folder, or 'demo'"
    )
    parser.add_argument(
        "others",
        nargs="*",
        metavar="MODEL_DIR | key=value",
        help="more models, to be held against the first, and Hydra overrides",
    )
    parser.add_argument("--json", dest="as_json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--tasks",
        default="",
        metavar="A,B",
        help="also zero-shot tasks of lm-evaluation-harness, YAML files of tasks, or 'paper'; "
        "short for evaluation.tasks=A,B",
    )
    parser.add_argument(
        "--speed",
        action="store_true",
        help="also time it, dense and with 2:4 kernels; several models side by side",
    )


def _audit_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
    parser.add_argument(
        "--output", default="", metavar="FOLDER", help="write audit.html and audit.json there"
    )
    parser.add_argument("--json", dest="as_json", action="store_true", help="print one JSON object")


def _approve_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "job", nargs="?", default="", metavar="JOB", help="approve the job whose key begins so"
    )
    parser.add_argument("--whole", action="store_true", help="print the configurations, too")
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="POLICY",
        help="sign a standing policy instead; - reads it from a pipe and prints it",
    )
    parser.add_argument("--key", type=Path, help="the key that signs it")


def _roster_arguments(parser: ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="what")
    add = verbs.add_parser("add", help="add a site, or its new key; makes the file")
    add.set_defaults(function="cli.roster.add_site")
    add.add_argument("path", type=Path, metavar="ROSTER", help="the file, in TOML")
    add.add_argument("site", metavar="SITE", help="the name that results call it by")
    add.add_argument("key", type=Path, metavar="KEY.pub", help="the public half of its signing key")
    add.add_argument(
        "--min-cohort", type=int, metavar="N", help="no sum over fewer sites is opened (2)"
    )
    add.add_argument(
        "--signatures", type=int, metavar="N", help="how many sites must sign it (all)"
    )
    sign = verbs.add_parser("sign", help="sign it as the site that has the key")
    sign.set_defaults(function="cli.roster.sign_roster")
    sign.add_argument(
        "path", type=Path, metavar="ROSTER", help="the file; - reads it from a pipe and prints it"
    )
    sign.add_argument("--key", type=Path, required=True, help="the site's signing key")
    show = verbs.add_parser("show", help="print who is in it and whose signatures hold")
    show.set_defaults(function="cli.roster.show_roster")
    show.add_argument("path", type=Path, metavar="ROSTER", help="the file")


def _verify_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL_DIR", help="an exported model, or a run's folder")
    parser.add_argument(
        "statistics",
        nargs="?",
        default="",
        metavar="STATISTICS",
        help="what it was made of, to make it again",
    )
    parser.add_argument("overrides", nargs="*", metavar="model=PATH", help="the dense model")
    parser.add_argument(
        "--roster", type=Path, metavar="ROSTER", help="the file that says who the signers are"
    )


def _ledger_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("what", choices=("show", "verify"), help="print it, or check its chain")
    parser.add_argument("path", metavar="LEDGER", help="the file that `ledger` of a node names")
    parser.add_argument(
        "--head", default="", metavar="HASH", help="a hash noted before that must be in it"
    )
    parser.add_argument(
        "--json", dest="as_json", action="store_true", help="print entries as lines of JSON"
    )


def _apply_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "base", metavar="BASE", help="the dense model: a folder, a Hub id or 'demo'"
    )
    parser.add_argument("masks", metavar="MASKS", help="masks.safetensors, or the run that has it")
    parser.add_argument("output", metavar="OUTPUT", help="a new folder")


def _export_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="FOLDER", help="a model folder, a run's folder, or a statistics folder"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--push-to-hub",
        metavar="REPO",
        help="upload a model to this repository of the Hub, 'owner/name'",
    )
    what.add_argument(
        "--imatrix",
        metavar="FILE",
        help="write collected statistics as an importance matrix for llama.cpp, a .gguf file",
    )
    parser.add_argument(
        "--public", action="store_true", help="let everybody see the new repository"
    )
    parser.add_argument(
        "--existing", action="store_true", help="put a commit on a repository that exists"
    )


def _report_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a completed run")
    parser.add_argument("--open", dest="show", action="store_true", help="show it in a browser")


def _supernode_arguments(parser: ArgumentParser) -> None:
    # What is not known goes to `flower-supernode`, and nothing of it may be taken for a short form.
    parser.allow_abbrev = False
    parser.usage = "%(prog)s [options] [--] ARGUMENTS OF flower-supernode"
    parser.set_defaults(passed_on=[])
    parser.add_argument(
        "--app",
        action="append",
        default=[],
        metavar="SHA256",
        help="also run the app with this digest; may be repeated",
    )
    parser.add_argument("--any-app", action="store_true", help="run whatever the server sends")
    parser.add_argument(
        "--print-app", action="store_true", help="print the digest of this installation's app only"
    )


def _status_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "run", nargs="?", metavar="RUN", help="a run's folder; the newest run if left out"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--watch", action="store_true", help="show it until the run ends; exit 1 if it fails"
    )
    form.add_argument("--json", dest="as_json", action="store_true", help="print one JSON object")
    form.add_argument(
        "--metrics", action="store_true", help="print metrics in the text format of Prometheus"
    )


COMMANDS: dict[str, Command] = {
    "run": Command(
        "run a federated pruning job and wait for its results",
        "Run a federated pruning job through Flower and wait for its results.",
        _run_arguments,
        "cli.run.run_job",
    ),
    "collect": Command(
        "gather statistics of a model from all clients, once",
        "Ask every client once for statistics of the dense model (strategy.statistics), and keep "
        "them in a folder that any number of models are made of: see `fedprune solve`.",
        _run_arguments,
        "cli.collect.run_collection",
    ),
    "solve": Command(
        "make a model of collected statistics, without any client",
        "Make a model of a statistics folder: the one that a federation of its participants would "
        "make with schedule.prefix=dense, to the last bit. Model, texts and windows are those of "
        "the collection unless they are given; everything about pruning is chosen here.",
        _solve_arguments,
        "cli.solve.run_solve",
    ),
    "merge": Command(
        "add up statistics of several federations",
        "Add up statistics folders of the same model and of different participants. Exact sums "
        "add up exactly: the result is that of one federation of all.",
        _merge_arguments,
        "cli.merge.run_merge",
    ),
    "sweep": Command(
        "run many jobs and compare their results",
        "Run a job for every combination of values, on this machine without Flower's runtime "
        "unless federation.backend or federation.connection says otherwise. What is done is "
        "skipped, so that the same command goes on after an interruption or a failure. "
        "Ends with a table, and with table.csv, table.md, plots and the page sweep.html in the "
        "sweep's folder (output_dir).",
        _sweep_arguments,
        "cli.sweep.run_sweep",
    ),
    "compare": Command(
        "print the differences between runs",
        "Print what is different between runs: settings, perplexities, sparsity of blocks, bytes, "
        "seconds, and how far their masks agree.",
        _compare_arguments,
        "cli.compare.run_comparison",
    ),
    "evaluate": Command(
        "measure perplexity, zero-shot tasks, size and speed of models",
        "Measure the perplexity of a model folder on the held-out part of `data` and on each of "
        "`evaluation.datasets`, those of its run if one made it, and what its files take; "
        "zero-shot tasks and speed if asked for. Of several models the others are held against "
        "the first: bytes, agreement of predictions, tokens a second side by side.",
        _evaluate_arguments,
        "cli.evaluate.run_evaluation",
    ),
    "audit": Command(
        "measure what would leave this site and what that tells",
        "Attack, without a network, what this site's texts would send under each strategy, as "
        "somebody who has the public model: norms behind masks, words of the samples, whether a "
        "known sample was among them; of one client and of the sum over "
        "`federation.num_clients`.",
        _audit_arguments,
        "cli.audit.run_audit",
    ),
    "approve": Command(
        "show the jobs that wait for this site's operator, or approve one",
        "Show in plain words what jobs would take from the nodes of this machine that have "
        'approve="ask" in their --node-config, or say yes to one of them; or sign a standing '
        "policy, which allows what is within its limits without asking.",
        _approve_arguments,
        "cli.approve.run_approve",
    ),
    "roster": Command(
        "make, sign or show the list of a federation's sites and their keys",
        "A roster names the sites, the keys that they sign with and the least cohort, and is "
        "signed by the sites. A node whose --node-config names it trusts no key outside it.",
        _roster_arguments,
    ),
    "ledger": Command(
        "show or verify a site's own record of what left it",
        "Print what left a site by job and kind of answer, from the file that `ledger` in its "
        "--node-config names, or check that no entry of it was changed, left out or put in.",
        _ledger_arguments,
        "cli.ledger.run_ledger",
    ),
    "verify": Command(
        "hold a model against where it says it comes from",
        "Check every file of an exported model against its provenance, and who signed that; with "
        "the statistics that it was made of, make it again and say whether every byte follows.",
        _verify_arguments,
        "cli.verify.run_verify",
    ),
    "apply": Command(
        "make a pruned model of its base model and its masks",
        "Write the model that a run made, of the dense model and the run's masks alone, a bit a "
        "weight. Masks of another model are refused.",
        _apply_arguments,
        "cli.apply.run_apply",
    ),
    "export": Command(
        "push a model to the Hub, or write an importance matrix for llama.cpp",
        "Upload a model to a new private repository, unless --public or --existing say otherwise: "
        "weights, masks, configuration, tokenizer, card and licence, and nothing else. Or, of "
        "collected statistics, write the importance matrix that llama-quantize takes.",
        _export_arguments,
        "cli.export.run_export",
    ),
    "report": Command(
        "write a run's report.html again",
        "Write report.html, a page that needs nothing else, from results.json in a run's folder.",
        _report_arguments,
        "cli.report.run_report",
    ),
    "supernode": Command(
        "run a site's SuperNode, which takes part in a federation",
        "Run Flower's SuperNode, with all the arguments of `flower-supernode`, which "
        "`flower-supernode --help` lists. It runs only the app that this installation's own "
        "sources make, unless --app or --any-app allow others, and ends with exit code 70 where "
        "Flower's own would live on half dead: start it again then.",
        _supernode_arguments,
        "flower.supernode.run_supernode",
    ),
    "status": Command(
        "show where a run is",
        "Show where a run is: phase, blocks, clients, bytes, time left and what was refused, from "
        "progress.json in its folder, which its ServerApp keeps. On the machine of the ServerApp.",
        _status_arguments,
        "cli.status.run_status",
    ),
    "doctor": Command(
        "check this machine and say what to mend",
        "Check Python, torch, Flower, disk, memory and the cache; change nothing.",
        None,
        "cli.doctor.run_doctor",
    ),
}
"""Name -> command, in the order of the list that `fedprune --help` shows."""
