"""The verbs of ``expunge``, nothing else. stdout is data, stderr is talk.

Exit codes: 0 done, 1 a step failed, 2 the user's input is wrong, 130 stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge_controller.cli.parser import BAD_INPUT, parse
from expunge_controller.text import put, say

if TYPE_CHECKING:
    from expunge_jobs.store import Store

    from expunge_controller.execution.executor import Executor
    from expunge_controller.execution.kubernetes.site import Site
    from expunge_controller.execution.runner import Runner
    from expunge_controller.experiment.schema import Spec
    from expunge_controller.kube_client.client import Cluster
    from expunge_controller.planning.resolve import Resolved
    from expunge_controller.planning.step_states import StepStatus

DONE, FAILED, STOPPED = 0, 1, 130
GRACE = 10.0
"""Seconds between TERM and KILL when a run is stopped."""


def main(argv: list[str] | None = None) -> int:
    """The exit code of one command."""
    from expunge_jobs.core.errors import StepError

    arguments = parse(argv)
    # After parsing: --help loads nothing but argparse.
    from expunge_controller.errors import ExperimentError
    from expunge_controller.kube_client.client import ApiError

    try:
        code: int = globals()[f"_{arguments.verb}"](arguments)
        return code
    except ExperimentError as error:
        for problem in error.problems:
            say(f"error: {problem}")
        return BAD_INPUT
    except StepError as error:
        say(f"error: {error}")
        return BAD_INPUT
    except ApiError as error:
        say(f"error: the cluster: {error}")
        return BAD_INPUT
    except KeyboardInterrupt:
        return STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _store(arguments: argparse.Namespace) -> Store:
    from expunge_jobs.store import open_store

    store = open_store(arguments.store or os.environ.get("EXPUNGE_STORE") or ".expunge")
    store.check()
    return store


def _open(arguments: argparse.Namespace) -> tuple[Store, Resolved]:
    store, resolved, _ = _load(arguments)
    return store, resolved


def _load(arguments: argparse.Namespace) -> tuple[Store, Resolved, Spec]:
    """The store, the plan, and what the file says besides (resources, and what concerns clusters)."""
    from expunge_controller.client import experiments
    from expunge_controller.experiment.loading import load_experiment, load_resource
    from expunge_controller.planning.resolve import recall, resolve

    name, known = _there(arguments), ""
    if name:
        resource = experiments.read(_cluster(arguments), name)
        arguments.executor = "kubernetes"
        arguments.store = arguments.store or experiments.store_of(resource)
        loaded, namespace = load_resource(resource), resource["metadata"]["namespace"]
        known = str((resource.get("status") or {}).get("digest", ""))
    else:
        loaded, namespace = load_experiment(Path(arguments.file), arguments.set), "local"
    store = _store(arguments)
    stage = getattr(arguments, "executor", "local") == "kubernetes"
    # What the operator runs is as it was planned there, whatever a model's name on the hub stands for by now.
    recalled = recall(store, loaded, known, namespace) if known else None
    if name and recalled is None:
        experiments.check_inputs(loaded, store.uri)
    resolved = recalled or resolve(loaded, stage, namespace, report=bool(name))
    for notice in resolved.notices:
        say(f"note: {notice}")
    return store, resolved, loaded.experiment.spec


def _there(arguments: argparse.Namespace) -> str:
    """The name of an Experiment of the cluster, where that is meant and no file."""
    from expunge_controller.errors import ExperimentError
    from expunge_controller.experiment.resource import PREFIX

    if not arguments.file.startswith(PREFIX) or Path(arguments.file).exists():
        return ""
    if arguments.set:
        raise ExperimentError(
            [f"--set: {arguments.file} is as the cluster has it; change it by kubectl or `expunge submit`"]
        )
    return str(arguments.file.removeprefix(PREFIX))


def _cluster(arguments: argparse.Namespace) -> Cluster:
    from expunge_controller.kube_client.config import connect

    return connect(arguments.context, arguments.namespace)


def _site(arguments: argparse.Namespace, namespace: str) -> Site:
    from expunge_controller.execution.kubernetes.site import Site

    return Site(
        namespace=namespace, image=arguments.image or os.environ.get("EXPUNGE_IMAGE") or "",
        store=arguments.store or os.environ.get("EXPUNGE_STORE") or "", secret=arguments.secret,
        hub_secret=arguments.hub_secret, hub_endpoint=os.environ.get("HF_ENDPOINT"),
        service_account=arguments.service_account, gpu=arguments.gpu or Site.gpu,
    )  # fmt: skip


def _observe(store: Store, resolved: Resolved, arguments: argparse.Namespace) -> dict[str, StepStatus]:
    from expunge_controller.execution.runner import read_failures
    from expunge_controller.planning.step_states import done_keys, statuses

    plan = resolved.plan
    done = done_keys(store, plan.steps)
    left = [s for s in plan.steps if s.key not in done]
    if arguments.executor == "kubernetes":
        from expunge_controller.execution.kubernetes.observe import observe_jobs

        cluster = _cluster(arguments)
        running = observe_jobs(cluster, cluster.namespace, left)
    else:
        from expunge_controller.execution.local import observe_running

        running = observe_running(store, left)
    return statuses(plan, done, running, read_failures(store, resolved))


def _executor(arguments: argparse.Namespace, store: Store, resolved: Resolved, spec: Spec) -> Executor:
    from importlib.util import find_spec

    from expunge_controller.errors import ExperimentError

    plan = resolved.plan
    parallel = arguments.parallel or plan.parallel
    if arguments.executor == "kubernetes":
        from expunge_controller.execution.kubernetes.executor import KubernetesExecutor
        from expunge_controller.execution.kubernetes.site import check_reachable
        from expunge_controller.execution.kubernetes.watch import Watch

        cluster = _cluster(arguments)
        site = _site(arguments, cluster.namespace)
        check_reachable(site, resolved.pins)
        watch = Watch(cluster, cluster.namespace)
        watch.open()
        executor = KubernetesExecutor(
            store, watch, site, spec.resources, spec.kubernetes, resolved.digest[:16], parallel
        )
        executor.read_logs()
        return executor
    from expunge_controller.execution.local import LocalExecutor

    if find_spec("torch") is None:
        raise ExperimentError(["this Python has no torch, which steps need: pip install 'expunge[jobs]'"])
    return LocalExecutor(store, plan.specialists, spec.resources, parallel)


def _run(arguments: argparse.Namespace) -> int:
    return _run_loaded(arguments, *_load(arguments))


def _run_loaded(arguments: argparse.Namespace, store: Store, resolved: Resolved, spec: Spec) -> int:
    from expunge_jobs.results.summary import collect
    from expunge_jobs.store import check_conditional_writes

    from expunge_controller.cli import tables
    from expunge_controller.cli.display import make_display
    from expunge_controller.execution.runner import Runner
    from expunge_controller.planning.resolve import write_record

    check_conditional_writes(store)
    write_record(store, resolved)
    plan = resolved.plan
    executor = _executor(arguments, store, resolved, spec)
    say(tables.plan_table(plan, _observe(store, resolved, arguments)) + "\n")
    with make_display(plan) as display:
        runner = Runner(store, executor, resolved, display)
        with _Interrupts(runner, executor):
            try:
                outcome = runner.run()
            finally:
                executor.stop(GRACE)
    if outcome.cancelled:
        say(f"cancelled; finished steps are kept. To go on: {_command('run', arguments)}")
        return STOPPED
    if outcome.stopped and executor.detached:
        say(
            f"left; its Jobs go on. To see them: {_command('status', arguments)}\n"
            f"To go on: {_command('run', arguments)}\nTo end them: {_command('cancel', arguments)}"
        )
        return STOPPED
    if outcome.stopped:
        say(f"stopped; finished steps are kept. To go on: {_command('run', arguments)}")
        return STOPPED
    put(tables.results_table(collect(store, plan.models, outcome.failed)))
    if outcome.failed:
        names = ", ".join(plan.by_key[k].name for k in outcome.failed)
        say(
            f"\n{len(outcome.failed)} failed: {names}. `{_command('status', arguments)}` says why; run again to try again."
        )
        return FAILED
    return DONE


def _command(verb: str, arguments: argparse.Namespace) -> str:
    """The command line of a verb on this experiment and store, fit to be pasted into a shell."""
    words = ["expunge", verb, arguments.file]
    for override in arguments.set:
        words += ["--set", override]
    if arguments.store:
        words += ["--store", arguments.store]
    for name in ("executor", "context", "namespace"):
        if (value := getattr(arguments, name)) and value != "local":
            words += [f"--{name}", value]
    for name in ("parallel", "image", "secret", "hub_secret", "service_account", "gpu") if verb == "run" else ():
        if value := getattr(arguments, name, None):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


class _Interrupts:
    """Ctrl-C (or TERM) once: stop in order; twice: at once."""

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
            # The steps die with this process: the end of their stdin tells them.
            os._exit(STOPPED)
        if not self.executor.detached:
            say(f"stopping (up to {GRACE:.0f} s; once more stops at once)")
        self.runner.request_stop()


def _submit(arguments: argparse.Namespace) -> int:
    from expunge_controller.client import experiments
    from expunge_controller.experiment.loading import load_experiment
    from expunge_controller.experiment.resource import PREFIX

    loaded = load_experiment(Path(arguments.file), arguments.set)
    arguments.namespace = arguments.namespace or loaded.experiment.metadata.namespace
    cluster = _cluster(arguments)
    _, changed = experiments.submit(cluster, loaded, _store(arguments) if arguments.upload else None)
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


def _plan(arguments: argparse.Namespace) -> int:
    from expunge_controller.cli import tables

    store, resolved = _open(arguments)
    plan, states = resolved.plan, _observe(store, resolved, arguments)
    if arguments.output == "table":
        put(tables.plan_table(plan, states))
        return DONE
    steps = [
        {"key": s.key, "kind": s.kind, "name": s.name, "trials": list(s.trials), "needs": list(s.needs),
         "state": states[s.key].state} for s in plan.steps
    ]  # fmt: skip
    _json({"experiment": plan.experiment, "trials": len(plan.trials), "steps": steps, "inputs": resolved.pins})
    return DONE


def _status(arguments: argparse.Namespace) -> int:
    from expunge_controller.cli import tables

    store, resolved = _open(arguments)
    states = _observe(store, resolved, arguments)
    if arguments.output == "table":
        put(tables.status_table(resolved.plan, states))
        return DONE
    steps = [
        {"key": s.key, "name": s.name, "state": states[s.key].state, "reason": states[s.key].reason}
        for s in resolved.plan.steps
    ]
    _json({"experiment": resolved.plan.experiment, "steps": steps})
    return DONE


def _results(arguments: argparse.Namespace) -> int:
    from expunge_jobs.results.summary import collect

    from expunge_controller.cli import tables

    store, resolved = _open(arguments)
    states = _observe(store, resolved, arguments)
    waiting = {k: f"not evaluated yet: {s.state}" + (f", {s.reason}" if s.reason else "") for k, s in states.items()}
    results = collect(store, resolved.plan.models, waiting)
    if arguments.output == "table":
        put(tables.results_table(results))
    else:
        _json({"experiment": resolved.plan.experiment, "models": [r.as_json() for r in results]})
    return DONE


def _logs(arguments: argparse.Namespace) -> int:
    from expunge_controller.client.logs import follow, read_logs, select_steps
    from expunge_controller.execution.runner import read_failures

    store, resolved = _open(arguments)
    steps = select_steps(resolved.plan, arguments.step)
    cluster = _cluster(arguments) if arguments.follow and arguments.executor == "kubernetes" else None
    failures = read_failures(store, resolved)
    for step in steps:
        for line in follow(store, step, cluster) if arguments.follow else read_logs(store, step):
            put(line, flush=arguments.follow)
        if arguments.follow:  # it may have failed meanwhile
            failures = read_failures(store, resolved)
        if step.key in failures:
            put(f"failed: {failures[step.key]}", flush=True)
    return DONE


def _cancel(arguments: argparse.Namespace) -> int:
    from expunge_controller.errors import ExperimentError
    from expunge_controller.execution.kubernetes.observe import cancel
    from expunge_controller.execution.runner import mark_cancelled

    if name := _there(arguments):
        from expunge_controller.client import experiments

        experiments.cancel(_cluster(arguments), name)
        say("cancelled: its Jobs end, finished steps are kept; `expunge retry` goes on")
        return DONE
    if arguments.executor != "kubernetes":
        raise ExperimentError(["cancel is for --executor kubernetes; Ctrl-C ends a run on this machine"])
    store, resolved = _open(arguments)
    cluster = _cluster(arguments)
    mark_cancelled(store, resolved)
    count = cancel(cluster, cluster.namespace, resolved.digest[:16])
    say(f"{count} Job{'s' if count != 1 else ''} deleted; finished steps are kept")
    return DONE


def _retry(arguments: argparse.Namespace) -> int:
    from expunge_controller.execution.runner import drop_damaged

    if name := _there(arguments):
        from expunge_controller.client import experiments

        experiments.retry(_cluster(arguments), name)
        say(f"asked; `kubectl get {arguments.file}` shows how it goes")
        return DONE
    store, resolved, spec = _load(arguments)
    for line in drop_damaged(store, resolved):
        say(line)
    return _run_loaded(arguments, store, resolved, spec)


def _upload(arguments: argparse.Namespace) -> int:
    from expunge_controller.client.upload import upload

    put(upload(_store(arguments), Path(arguments.path)))
    return DONE


def _doctor(arguments: argparse.Namespace) -> int:
    from expunge_controller.cli.tables import aligned
    from expunge_controller.client.doctor import examine

    cluster = _cluster(arguments)
    rows, well = [], True
    for check in examine(cluster, _site(arguments, cluster.namespace)):
        rows.append([check.state, check.what, check.words])
        well = well and check.state != "FAIL"
    put(aligned(["", "WHAT", "FOUND"], rows))
    return DONE if well else FAILED


def _pull(arguments: argparse.Namespace) -> int:
    from expunge_controller.client.pull import pull

    store, resolved = _open(arguments)
    for line in pull(store, resolved.plan, arguments.trial, Path(arguments.to), arguments.full):
        say(line)
    return DONE


def _render(arguments: argparse.Namespace) -> int:
    import yaml

    from expunge_controller.execution.kubernetes.jobspec import job
    from expunge_controller.execution.kubernetes.site import check_reachable
    from expunge_controller.experiment.loading import load_experiment
    from expunge_controller.planning.resolve import resolve

    loaded = load_experiment(Path(arguments.file), arguments.set)
    resolved = resolve(loaded, stage=True)
    site = _site(arguments, arguments.namespace or "default")
    check_reachable(site, resolved.pins)
    spec = loaded.experiment.spec
    jobs = [job(s, site, spec.resources, spec.kubernetes, resolved.digest[:16]) for s in resolved.plan.steps]
    print("# In the values of env, $$ stands for $: Kubernetes expands $(NAME) there.")
    print(yaml.safe_dump_all(jobs, sort_keys=False, width=120), end="")
    return DONE


def _list(arguments: argparse.Namespace) -> int:
    from expunge_jobs import plugins

    from expunge_controller.cli.tables import aligned
    from expunge_controller.experiment.presets import PRESETS

    if arguments.what == "experiments":
        from expunge_controller.client import experiments

        put(aligned(["NAME", "PHASE", "TRIALS", "STEPS", "BEST", "AGE"], experiments.rows(_cluster(arguments))))
        return DONE
    if arguments.what == "presets":
        rows = [[name, preset.description] for name, preset in PRESETS.items()]
    else:
        family = {"objectives": "objectives", "methods": "merge_methods", "metrics": "metrics"}[arguments.what]
        rows = [[name, plugins.description(family, name)] for name in plugins.names(family)]
    put(aligned(["NAME", "WHAT IT IS"], rows))
    return DONE


def _json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, allow_nan=False)
    print()
