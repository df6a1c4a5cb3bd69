"""What can be said to ``expunge``: its verbs, their options, an example for each. Loads nothing but argparse."""

from __future__ import annotations

import argparse
import os
from typing import Any

BAD_INPUT = 2
"""Exit code of an input that is wrong."""
EXECUTORS = ("local", "kubernetes")
_HELP = {
    "run": ("run an experiment to its table of scores", "expunge run examples/quickstart.yaml --set merge.density=0.5"),
    "submit": (
        "hand an experiment to the operator of a cluster",
        "expunge submit experiment.yaml --wait",
    ),
    "plan": (
        "show what would run, what is there, what is shared; change nothing",
        "expunge plan experiment.yaml -o json",
    ),
    "results": ("show the table of scores as far as it is", "expunge results experiment.yaml -o json"),
    "status": ("show each step, and why it is not done", "expunge status experiment.yaml"),
    "logs": ("show the log of a step, or of each that has one", "expunge logs experiment.yaml 'finetune over' -f"),
    "cancel": (
        "end a run's Jobs on a cluster; what is finished is kept",
        "expunge cancel experiment.yaml --executor kubernetes",
    ),
    "pull": (
        "copy the merged adapter (or with --full the merged model) out",
        "expunge pull experiment.yaml --to adapter/",
    ),
    "render": (
        "show the Jobs of a cluster as YAML; apply nothing, ask nobody",
        "expunge render experiment.yaml --store s3://bucket/prefix --image registry/expunge-jobs:0.1.0",
    ),
    "upload": (
        "put a data file or a model directory into the store, and print its address",
        "expunge upload forget.jsonl --store s3://bucket/prefix",
    ),
    "retry": (
        "run again; make anew what a step found damaged",
        "expunge retry experiment.yaml",
    ),
    "doctor": (
        "say what is missing to run on this cluster",
        "expunge doctor --store s3://bucket/prefix --image registry/expunge-jobs:0.1.0 --secret store",
    ),
    "list": ("list presets, objectives, methods, metrics, or a cluster's experiments", "expunge list presets"),
}


def _parser() -> argparse.ArgumentParser:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> Any:
            from expunge_jobs.core.errors import nearest

            word = message.partition("invalid choice: '")[2].partition("'")[0]
            hint = nearest(word, [*_HELP, "presets", "objectives", "methods", "metrics", "experiments"]) if word else ""
            self.exit(BAD_INPUT, f"error: {message}{hint}\n{self.format_usage()}")

    parser = Parser(
        prog="expunge", description="Make a language model forget a set of documents and keep the rest.",
        epilog="example: expunge run examples/quickstart.yaml",
    )  # fmt: skip
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)
    made = {
        n: verbs.add_parser(n, help=text, description=text + ".", epilog=f"example: {x}")
        for n, (text, x) in _HELP.items()
    }
    for name in ("run", "submit", "plan", "results", "status", "logs", "cancel", "pull", "render", "retry"):
        there = name in ("plan", "results", "status", "logs", "cancel", "pull", "retry")
        what = "the experiment file" + (", or experiment/NAME: what a cluster's operator runs" if there else "")
        made[name].add_argument("file", metavar="FILE", help=what)
        made[name].add_argument(
            "--set", action="append", default=[], metavar="PATH=VALUE", help="override a field below spec"
        )
    for name in [n for n in _HELP if n != "list"]:
        made[name].add_argument(
            "--store", metavar="URI", help="where artifacts lie (default: $EXPUNGE_STORE or ./.expunge)"
        )
    for name in ("run", "retry"):
        made[name].add_argument("--parallel", type=_count, metavar="N", help="steps at once, at most")
    for name in ("plan", "results", "status"):
        made[name].add_argument("-o", "--output", choices=("table", "json"), default="table")
    for name in ("run", "retry", "plan", "results", "status", "logs", "cancel"):
        made[name].add_argument(
            "--executor", choices=EXECUTORS, default=os.environ.get("EXPUNGE_EXECUTOR") or "local",
            help="what runs the steps (default: $EXPUNGE_EXECUTOR or local)",
        )  # fmt: skip
    for name in ("run", "submit", "retry", "plan", "results", "status", "logs", "cancel", "pull", "doctor", "list"):
        made[name].add_argument("--context", metavar="NAME", help="of the kubeconfig (default: its current one)")
    for name in [n for n in _HELP if n != "upload"]:
        made[name].add_argument("--namespace", metavar="NAME", help="where the Jobs belong (default: the context's)")
    for name in ("run", "retry", "doctor", "render"):
        made[name].add_argument("--image", metavar="IMAGE", help="the jobs image (default: $EXPUNGE_IMAGE)")
        made[name].add_argument(
            "--secret", metavar="NAME", help="a Secret of the namespace with the store's credentials"
        )
        made[name].add_argument(
            "--hub-secret", metavar="NAME", help="one with HF_TOKEN, for the steps that copy hf:// models"
        )
        made[name].add_argument("--gpu", metavar="RESOURCE", help="a GPU's resource name (default: nvidia.com/gpu)")
        made[name].add_argument("--service-account", metavar="NAME", help="of the pods; without a token of its own")
    made["logs"].add_argument("step", metavar="STEP", nargs="?", help="a step's name or the beginning of its key")
    made["logs"].add_argument("-f", "--follow", action="store_true", help="go on until the step ends")
    made["pull"].add_argument("--trial", metavar="NAME", help="which trial's, where there is a sweep")
    made["pull"].add_argument("--to", metavar="DIR", required=True, help="a new or empty directory")
    made["pull"].add_argument("--full", action="store_true", help="the merged model: an adapter alone does not forget")
    made["upload"].add_argument("path", metavar="PATH", help="JSON Lines, or a model or adapter directory")
    made["submit"].add_argument("--upload", action="store_true", help="put local inputs into the store first")
    made["submit"].add_argument("--wait", action="store_true", help="until it has come to an end: 0 complete, 1 not")
    made["list"].add_argument("what", choices=("presets", "objectives", "methods", "metrics", "experiments"))
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The words of one command.

    Raises:
        SystemExit: 0 after --help and --version, 2 with what is wrong.
    """
    # argparse takes `logs FILE --store URI STEP` for a mistake: an optional word may not follow an option.
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.verb == "logs" and arguments.step is None and not rest[0].startswith("-"):
        arguments.step = rest.pop(0)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if getattr(arguments, "executor", "local") not in EXECUTORS:  # argparse checks what is given, not a default
        parser.error(f"EXPUNGE_EXECUTOR is '{arguments.executor}'; allowed: {', '.join(EXECUTORS)}")
    return arguments


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("allowed: 1 or more")
    return value


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"expunge {version('expunge')}")
        parser.exit(0)
