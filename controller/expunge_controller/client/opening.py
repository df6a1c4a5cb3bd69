"""The experiment that a command is about.

The experiment comes from a file or from a cluster. The experiment has a plan, a store and a backend.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from expunge_jobs.artifacts.damage import find_damaged, give_up_damaged, mark_damaged
from expunge_jobs.artifacts.manifests import read_manifest
from expunge_jobs.results.remarks import remarks
from expunge_jobs.results.summary import EvaluatedModel, collect
from expunge_jobs.results.verdict import Comparison, read_comparisons
from expunge_jobs.store import Store, check_conditional_writes, open_store
from expunge_jobs.tasks.references import ArtifactRef

from expunge_controller.client import experiments
from expunge_controller.errors import ExperimentError
from expunge_controller.execution.backends import DEFAULT, Backend, backend, names
from expunge_controller.execution.executor import Executor
from expunge_controller.execution.options import Where
from expunge_controller.experiment.loading import Loaded, load_experiment, load_resource
from expunge_controller.experiment.resource import PREFIX
from expunge_controller.experiment.schema import Spec
from expunge_controller.planning.plan import Plan
from expunge_controller.planning.records import mark_cancelled, read_failures, write_record
from expunge_controller.planning.resolve import Resolved, load_recorded, resolve
from expunge_controller.planning.step_states import StepStatus, done_keys, statuses

DEFAULT_STORE = ".expunge"


@dataclass(frozen=True, kw_only=True)
class Request:
    """The experiment that the user names, and where it runs."""

    file: str
    """A path, or ``experiment/NAME`` for an Experiment of a cluster's operator."""
    overrides: tuple[str, ...] = ()
    """Overrides ``PATH=VALUE``, with paths below spec."""
    backend: str = DEFAULT
    where: Where = field(default_factory=Where)
    digest: str = ""
    """The start of the digest of an earlier generation, whose inputs and versions the store's record has."""

    @property
    def name_on_cluster(self) -> str:
        """The name of the requested Experiment; empty for a file.

        Raises:
            ExperimentError: an Experiment with overrides.
        """
        if not self.file.startswith(PREFIX) or Path(self.file).exists():
            return ""
        if self.overrides:
            said = f"--set: {self.file} is as the cluster has it; change it by kubectl or `expunge submit`"
            raise ExperimentError([said])
        return self.file.removeprefix(PREFIX)


@dataclass(frozen=True)
class Opened:
    """A loaded, pinned and planned experiment."""

    request: Request
    """The effective request.

    An Experiment of a cluster has the cluster's backend. The store is the operator's unless the user gives a store.
    """
    store: Store
    resolved: Resolved
    spec: Spec
    backend: Backend

    @property
    def plan(self) -> Plan:
        return self.resolved.plan

    def observe(self) -> dict[str, StepStatus]:
        """Return the state of every step, regardless of the process that runs it.

        Raises:
            ApiError, StoreError: the cluster or the store refuses, or does not answer.
        """
        done = done_keys(self.store, self.plan.steps)
        running = self.backend.observe(self.store, [s for s in self.plan.steps if s.key not in done])
        return statuses(self.plan, done, running, read_failures(self.store, self.resolved))

    def results(self) -> list[EvaluatedModel]:
        """Return the scores so far, with a reason for each missing score.

        Raises:
            ApiError, StoreError: the cluster or the store refuses, or does not answer.
        """
        states = self.observe().items()
        waiting = {k: f"not evaluated yet: {s.state}" + (f", {s.reason}" if s.reason else "") for k, s in states}
        return collect(self.store, self.plan.models, waiting)

    def comparisons(self) -> list[Comparison] | None:
        """Return the merge's comparisons, or None while the report is missing."""
        return read_comparisons(self.store, self.plan.steps[-1].ref)

    def remarks(self, trial: str | None) -> list[str]:
        """Return the remarks on a trial's merged model.

        None stands for the only trial.
        """
        mine = [m for m in self.plan.models if trial in (None, m.trial) and m.model in ("base", "merged")]
        return remarks(collect(self.store, mine), self.update_norm)

    def update_norm(self, model: EvaluatedModel) -> float | None:
        """Return the norm of a model's last update, if an artifact says it."""
        ref = model.ref.adapters[-1].ref if model.ref is not None and model.ref.adapters else None
        manifest = read_manifest(self.store, ref) if isinstance(ref, ArtifactRef) else None
        norm = manifest.figures.get("norm") if manifest is not None else None
        return float(norm) if norm is not None else None

    def drop_damaged(self) -> Iterator[str]:
        """Give up finished steps whose bytes differ from their manifests.

        The next run creates these artifacts again. The method yields one line for each.
        Every finished artifact is read, unless steps have failed, because a failed step has marked the damage itself.
        """
        if not read_failures(self.store, self.resolved):
            done = done_keys(self.store, self.plan.steps)
            for step in [s for s in self.plan.steps if s.key in done]:
                for error in find_damaged(self.store, [step.ref]):
                    mark_damaged(self.store, error)
                    yield f"{step.name} is made again: {give_up_damaged(self.store, step.ref)}"

    def begin(self, parallel: int | None = None) -> Executor:
        """Record the experiment in its store, and return its executor.

        Raises:
            ExperimentError: a prerequisite of the steps is missing.
            StoreError: the store cannot keep two attempts apart, or cannot be written.
            ApiError: a cluster refuses, or does not answer.
        """
        check_conditional_writes(self.store)
        write_record(self.store, self.resolved)
        return self.backend.executor(self.store, self.resolved, self.spec, parallel or self.plan.parallel)


def open_experiment(request: Request) -> Opened:
    """Load, pin and plan an experiment, without changing anything.

    Raises:
        ExperimentError: every problem of the file; or no such Experiment, or one that reads what this user should not.
        StoreError: the store cannot be used, or does not answer.
        ApiError: a cluster refuses, or does not answer.
    """
    if name := request.name_on_cluster:
        if request.digest:
            raise ExperimentError([f"--digest: {request.file} is shown as its operator planned it; name a file"])
        return _of_cluster(request, name)
    loaded = load_experiment(Path(request.file), list(request.overrides))
    store = open_store_at(request.where.store)
    place = backend(request.backend)
    resolved = (
        _recorded(request, store, loaded, place.STAGES) if request.digest else resolve(loaded, place.STAGES, "local")
    )
    return Opened(request, store, resolved, loaded.experiment.spec, place(request.where))


def _recorded(request: Request, store: Store, loaded: Loaded, stage: bool) -> Resolved:
    folder = f"experiments/local/{loaded.name}/"
    names = [e.path.removeprefix(folder) for e in store.list(folder.rstrip("/"))]
    digests = sorted(n.removesuffix(".json") for n in names if n.endswith(".json") and "/" not in n)
    fitting = [load_recorded(store, loaded, d, "local", stage) for d in digests if d.startswith(request.digest)]
    found = [r for r in fitting if r is not None]
    if len(found) == 1:
        return found[0]
    if found:
        said = " and ".join(r.digest[:12] for r in found)
        raise ExperimentError([f"--digest {request.digest}: begins {said}; write more of it"])
    have = ", ".join(d[:12] for d in digests) or "none"
    raise ExperimentError(
        [f"--digest {request.digest}: {store.uri} has no such record of this file; its records: {have}"]
    )


def _of_cluster(request: Request, name: str) -> Opened:
    resource = experiments.read(request.where.cluster(), name)
    where = replace(request.where, store=request.where.store or experiments.store_of(resource))
    request = replace(request, backend=experiments.BACKEND, where=where)
    loaded, namespace = load_resource(resource), resource["metadata"]["namespace"]
    store = open_store_at(where.store)
    # A model's name on the hub may stand for another commit by now; therefore use the operator's own plan.
    digest = str((resource.get("status") or {}).get("digest", ""))
    resolved = load_recorded(store, loaded, digest, namespace) if digest else None
    if resolved is None:
        experiments.check_inputs(loaded, store.uri)
        resolved = resolve(loaded, stage=True, namespace=namespace)
    return Opened(request, store, resolved, loaded.experiment.spec, backend(request.backend)(where))


def cancel(request: Request) -> int:
    """End a run that continues without its runner.

    Returns the number of steps that were ended. Finished steps are kept.

    Raises:
        ExperimentError: no run continues there without its runner, or the file has problems.
        StoreError, ApiError: the store or a cluster refuses, or does not answer.
    """
    if not backend(request.backend).DETACHES:
        others = " or ".join(n for n in names() if backend(n).DETACHES)
        raise ExperimentError([f"cancel is for --executor {others}; Ctrl-C ends a run on this machine"])
    opened = open_experiment(request)
    opened.backend.connect()  # before the mark: whatever cannot be reached must not end a run that can
    mark_cancelled(opened.store, opened.resolved)  # mark first: a runner looks for the mark after it starts a step
    return opened.backend.cancel(opened.resolved)


def open_store_at(address: str | None) -> Store:
    """Open the store at an address, at $EXPUNGE_STORE or in ./.expunge.

    Raises:
        BadTask: not an address of a store.
        StoreError: the store cannot be used.
    """
    store = open_store(address or os.environ.get("EXPUNGE_STORE") or DEFAULT_STORE)
    store.check()
    return store
