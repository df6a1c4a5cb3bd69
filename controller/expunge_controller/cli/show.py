"""Read-only commands: plan, results, status, logs, list."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from expunge_controller.cli.parser import (
    DONE,
    Command,
    add_cluster,
    add_digest,
    add_executor,
    add_file,
    add_output,
    add_store,
    request_of,
    where_of,
)
from expunge_controller.text import put, say

if TYPE_CHECKING:
    from expunge_controller.client.opening import Opened

LISTS = ("presets", "objectives", "methods", "metrics", "experiments")


def open_shown(arguments: argparse.Namespace) -> Opened:
    """Open the experiment of a command line and print notices on inputs."""
    from expunge_controller.client.opening import open_experiment

    opened = open_experiment(request_of(arguments))
    for notice in opened.resolved.notices:
        say(f"note: {notice}")
    return opened


def _table_arguments(parser: argparse.ArgumentParser) -> None:
    add_file(parser, on_cluster=True)
    add_store(parser)
    add_executor(parser)
    add_output(parser)


def _results_arguments(parser: argparse.ArgumentParser) -> None:
    _table_arguments(parser)
    add_digest(parser)


def _plan(arguments: argparse.Namespace) -> int:
    from expunge_controller.cli import tables

    opened = open_shown(arguments)
    plan, states = opened.plan, opened.observe()
    if arguments.output == "table":
        put(tables.plan_table(plan, states))
        return DONE
    steps = [
        {
            "key": s.key,
            "kind": s.kind,
            "name": s.name,
            "trials": list(s.trials),
            "needs": list(s.needs),
            "state": states[s.key].state,
        }
        for s in plan.steps
    ]
    inputs = opened.resolved.pins
    _put_json({"experiment": plan.experiment, "trials": len(plan.trials), "steps": steps, "inputs": inputs})
    return DONE


def _status(arguments: argparse.Namespace) -> int:
    from expunge_controller.cli import tables

    opened = open_shown(arguments)
    states = opened.observe()
    if arguments.output == "table":
        put(tables.status_table(opened.plan, states))
        return DONE
    steps = [
        {"key": s.key, "name": s.name, "state": states[s.key].state, "reason": states[s.key].reason}
        for s in opened.plan.steps
    ]
    _put_json({"experiment": opened.plan.experiment, "steps": steps})
    return DONE


def _results(arguments: argparse.Namespace) -> int:
    from expunge_controller.cli import tables

    opened = open_shown(arguments)
    results = opened.results()
    if arguments.output == "table":
        put(tables.results_table(results, opened.comparisons(), opened.update_norm))
    else:
        compared = opened.comparisons()
        models = [r.as_json() for r in results]
        comparisons = None if compared is None else [c.as_json() for c in compared]
        _put_json({"experiment": opened.plan.experiment, "models": models, "comparisons": comparisons})
    return DONE


def _logs_arguments(parser: argparse.ArgumentParser) -> None:
    add_file(parser, on_cluster=True)
    add_store(parser)
    add_executor(parser)
    parser.add_argument("step", metavar="STEP", nargs="?", help="a step's name or the beginning of its key")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the step ends")


def _logs(arguments: argparse.Namespace) -> int:
    from expunge_controller.client.logs import read_logs

    for line in read_logs(open_shown(arguments), arguments.step, arguments.follow):
        put(line, flush=arguments.follow)
    return DONE


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=LISTS)
    add_cluster(parser)


def _list(arguments: argparse.Namespace) -> int:
    from expunge_jobs import plugins

    from expunge_controller.cli.tables import aligned
    from expunge_controller.experiment.presets import PRESETS

    if arguments.what == "experiments":
        from expunge_controller.client import experiments

        found = experiments.rows(where_of(arguments).cluster())
        put(aligned(["NAME", "PHASE", "TRIALS", "STEPS", "BEST", "AGE"], found))
        return DONE
    if arguments.what == "presets":
        rows = [[name, preset.description] for name, preset in PRESETS.items()]
    else:
        family = {"objectives": "objectives", "methods": "merge_methods", "metrics": "metrics"}[arguments.what]
        rows = [[name, plugins.description(family, name)] for name in plugins.names(family)]
    put(aligned(["NAME", "WHAT IT IS"], rows))
    return DONE


def _put_json(value: Any) -> None:
    text = json.dumps(value, indent=2, allow_nan=False)  # whole, before anything is written
    print(text)


COMMANDS = (
    Command(
        "plan",
        "show what would run, what is there, what is shared; change nothing",
        "expunge plan experiment.yaml -o json",
        _table_arguments,
        _plan,
    ),
    Command(
        "results",
        "show the table of scores as far as it is",
        "expunge results experiment.yaml -o json",
        _results_arguments,
        _results,
    ),
    Command(
        "status",
        "show each step, and why it is not done",
        "expunge status experiment.yaml",
        _table_arguments,
        _status,
    ),
    Command(
        "logs",
        "show the log of a step, or of each that has one",
        "expunge logs experiment.yaml 'finetune over' -f",
        _logs_arguments,
        _logs,
    ),
    Command(
        "list",
        "list presets, objectives, methods, metrics, or a cluster's experiments",
        "expunge list presets",
        _list_arguments,
        _list,
    ),
)
