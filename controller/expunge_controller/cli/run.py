"""Commands that run or end experiments: run, retry, submit, cancel."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from expunge_controller.cli.parser import (
    DONE,
    FAILED,
    STOPPED,
    Command,
    add_backend_options,
    add_cluster,
    add_executor,
    add_file,
    add_store,
    count,
    request_of,
)
from expunge_controller.cli.show import open_shown
from expunge_controller.execution.backends import DEFAULT, backend, names
from expunge_controller.text import put, say

if TYPE_CHECKING:
    from expunge_controller.client.opening import Opened
    from expunge_controller.execution.executor import Executor
    from expunge_controller.execution.runner import Runner

GRACE_SECONDS = 10.0
"""Delay between TERM and KILL when a run is stopped, in seconds."""


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    add_file(parser, on_cluster=False)
    _running_arguments(parser)


def _retry_arguments(parser: argparse.ArgumentParser) -> None:
    add_file(parser, on_cluster=True)
    _running_arguments(parser)


def _running_arguments(parser: argparse.ArgumentParser) -> None:
    add_store(parser)
    parser.add_argument("--parallel", type=count, metavar="N", help="steps at once, at most")
    add_executor(parser)
    add_backend_options(parser, *names())


def _run(arguments: argparse.Namespace) -> int:
    return _execute(arguments, open_shown(arguments))


def _retry(arguments: argparse.Namespace) -> int:
    from expunge_controller.client import experiments

    request = request_of(arguments)
    if name := request.name_on_cluster:
        experiments.retry(request.where.cluster(), name)
        say(f"asked; `kubectl get {arguments.file}` shows how it goes")
        return DONE
    opened = open_shown(arguments)
    for line in opened.drop_damaged():
        say(line)
    return _execute(arguments, opened)


def _execute(arguments: argparse.Namespace, opened: Opened) -> int:
    from expunge_jobs.results.summary import collect

    from expunge_controller.cli import tables
    from expunge_controller.cli.display import make_display
    from expunge_controller.execution.runner import Runner

    plan = opened.plan
    executor = opened.begin(arguments.parallel)
    say(tables.plan_table(plan, opened.observe()) + "\n")
    with make_display(plan) as display:
        runner = Runner(opened.store, executor, opened.resolved, display)
        with _Interrupts(runner, executor):
            try:
                outcome = runner.run()
            finally:
                executor.stop(GRACE_SECONDS)
    again = _command("run", arguments)
    if outcome.cancelled:
        say(f"Cancelled. Finished steps are kept. To go on: {again}")
        return STOPPED
    if outcome.stopped and executor.detached:
        say(
            f"Detached. The Jobs keep running. To see them: {_command('status', arguments)}\n"
            f"To go on: {again}\nTo end them: {_command('cancel', arguments)}"
        )
        return STOPPED
    if outcome.stopped:
        say(f"Stopped. Finished steps are kept. To go on: {again}")
        return STOPPED
    results = collect(opened.store, plan.models, outcome.failed)
    put(tables.results_table(results, opened.comparisons(), opened.update_norm))
    if outcome.failed:
        failed = ", ".join(plan.by_key[k].name for k in outcome.failed)
        status = _command("status", arguments)
        say(f"\n{len(outcome.failed)} failed: {failed}. `{status}` says why; run again to try again.")
        return FAILED
    return DONE


def _command(verb: str, arguments: argparse.Namespace) -> str:
    """Return the command line of a verb on this experiment and store.

    The words are quoted for a shell.
    """
    words = ["expunge", verb, arguments.file]
    for override in arguments.set:
        words += ["--set", override]
    if arguments.store:
        words += ["--store", arguments.store]
    for name in ("executor", "context", "namespace"):
        if (value := getattr(arguments, name)) and value != DEFAULT:
            words += [f"--{name}", value]
    if verb == "run":
        flags = {"--parallel": "parallel"} | {o.flag: o.name for n in names() for o in backend(n).OPTIONS}
        for flag, name in flags.items():
            if value := getattr(arguments, name):
                words += [flag, str(value)]
    return shlex.join(words)


class _Interrupts:
    """A handler of Ctrl-C and TERM.

    The first signal stops the run in order. The second signal stops the run at once.
    """

    def __init__(self, runner: Runner, executor: Executor) -> None:
        self.runner, self.executor, self.count = runner, executor, 0

    def __enter__(self) -> None:
        self.before = {n: signal.signal(n, self._stop) for n in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: object) -> None:
        self.count += 1
        if self.count > 1:
            # Local steps end when their stdin ends; therefore the steps die with this process.
            os._exit(STOPPED)
        if not self.executor.detached:
            say(f"stopping (up to {GRACE_SECONDS:.0f} s; once more stops at once)")
        self.runner.request_stop()


def _submit_arguments(parser: argparse.ArgumentParser) -> None:
    add_file(parser, on_cluster=False)
    add_store(parser)
    add_cluster(parser)
    parser.add_argument("--upload", action="store_true", help="put local inputs into the store first")
    parser.add_argument("--wait", action="store_true", help="until it has come to an end: 0 complete, 1 not")


def _submit(arguments: argparse.Namespace) -> int:
    from expunge_controller.client import experiments
    from expunge_controller.client.opening import open_store_at
    from expunge_controller.experiment.loading import load_experiment
    from expunge_controller.experiment.resource import PREFIX
    from expunge_controller.kube_client.config import connect

    loaded = load_experiment(Path(arguments.file), arguments.set)
    cluster = connect(arguments.context, arguments.namespace or loaded.experiment.metadata.namespace)
    _, changed = experiments.submit(cluster, loaded, open_store_at(arguments.store) if arguments.upload else None)
    name = f"{PREFIX}{loaded.name}"
    say(f"{name} {'changed' if changed else 'created'} in namespace {cluster.namespace}")
    if not arguments.wait:
        return DONE
    phase = ""
    for phase, steps in experiments.follow(cluster, loaded.name):
        say(f"{phase}, steps {steps}" if steps else phase)
    if phase != "Complete":
        say(f"`kubectl describe {name} -n {cluster.namespace}` says why")
    return DONE if phase == "Complete" else FAILED


def _cancel_arguments(parser: argparse.ArgumentParser) -> None:
    add_file(parser, on_cluster=True)
    add_store(parser)
    add_executor(parser)


def _cancel(arguments: argparse.Namespace) -> int:
    from expunge_controller.client import experiments
    from expunge_controller.client.opening import cancel

    request = request_of(arguments)
    if name := request.name_on_cluster:
        experiments.cancel(request.where.cluster(), name)
        say("Cancelled. Its Jobs end, finished steps are kept; `expunge retry` goes on.")
        return DONE
    ended = cancel(request)
    say(f"{ended} Job{'s' if ended != 1 else ''} deleted. Finished steps are kept.")
    return DONE


COMMANDS = (
    Command(
        "run",
        "run an experiment to its table of scores",
        "expunge run examples/quickstart.yaml --set merge.density=0.5",
        _run_arguments,
        _run,
    ),
    Command(
        "retry",
        "run again; make again what a step found damaged",
        "expunge retry experiment.yaml",
        _retry_arguments,
        _retry,
    ),
    Command(
        "submit",
        "hand an experiment to the operator of a cluster",
        "expunge submit experiment.yaml --wait",
        _submit_arguments,
        _submit,
    ),
    Command(
        "cancel",
        "end a run's Jobs on a cluster; what is finished is kept",
        "expunge cancel experiment.yaml --executor kubernetes",
        _cancel_arguments,
        _cancel,
    ),
)
