"""The plan of an experiment: experiment -> trials -> steps.

Planning is pure: no clock, network or randomness. The same file gives the same keys everywhere.

A trial's steps are named by role (``finetune over``). Steps of different trials with the same key are one step.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

from expunge_jobs.results.summary import EvaluatedModel
from expunge_jobs.tasks.references import ArtifactRef
from expunge_jobs.tasks.tasks import (
    KIND_VERSIONS,
    ReportTask,
    StageTask,
    Task,
)

from expunge_controller.experiment.loading import Loaded, Trial, plain
from expunge_controller.planning.trial_plan import Keys, Pins, TrialPlan, Versions


@dataclass(frozen=True)
class Step:
    """One unit of work.

    ``name`` holds the swept values that the step depends on. ``needs`` are keys.
    """

    key: str
    kind: str
    name: str
    task: Task
    needs: tuple[str, ...]
    trials: tuple[str, ...]

    @property
    def ref(self) -> ArtifactRef:
        return ArtifactRef(kind=self.task.kind, key=self.key)


@dataclass(frozen=True)
class Plan:
    """An experiment's steps and every trial's models.

    Each step occurs once, after the steps that it needs.
    """

    experiment: str
    trials: tuple[str, ...]
    steps: tuple[Step, ...]
    models: tuple[EvaluatedModel, ...]
    parallel: int
    specialists: int
    by_key: dict[str, Step] = field(repr=False)


def make_plan(loaded: Loaded, pins: Pins, stage: bool = False, versions: Versions | None = None) -> Plan:
    """Plan an experiment whose inputs are pinned.

    With ``stage``, inputs on the hub are copied into the store first. ``versions`` are those of an earlier plan and
    replace this code's versions.
    """
    tasks: dict[str, tuple[str, Task]] = {}
    trials_of: dict[str, list[str]] = defaultdict(list)
    keys_of_role: dict[str, dict[str, str]] = defaultdict(dict)
    models: list[EvaluatedModel] = []
    keys = Keys(versions or {})
    for trial in loaded.trials:
        planned = TrialPlan(trial.spec, pins, keys)
        for role, key, task in planned.steps:
            tasks.setdefault(key, (role, task))
            if not trials_of[key] or trials_of[key][-1] != trial.name:
                trials_of[key].append(trial.name)
            keys_of_role[role][trial.name] = key
        models += [
            EvaluatedModel(trial.name, trial.group, trial.spec.seed, name, key, ref=ref, role=role)
            for name, role, key, ref in planned.models
        ]
    names = _names(loaded.trials, keys_of_role)
    steps = [
        Step(key, task.kind, names[key], task, tuple(r.key for r in keys.needs(key, task)), tuple(trials_of[key]))
        for key, (_, task) in tasks.items()
    ]
    if stage:
        steps = _staged(steps)
    order = {kind: place for place, kind in enumerate(KIND_VERSIONS)}
    steps.sort(key=lambda s: order[s.kind])  # stable: steps of one kind keep the file's order
    spec = loaded.experiment.spec
    return Plan(
        experiment=loaded.name,
        trials=tuple(t.name for t in loaded.trials),
        steps=tuple(steps),
        models=tuple(models),
        parallel=spec.parallel,
        specialists=max(1, len(spec.specialists) + len(spec.baselines)),
        by_key={s.key: s for s in steps},
    )


def _staged(steps: list[Step]) -> list[Step]:
    """Return the steps, with a copy step before the readers of a hub input.

    The keys of the other steps do not change.
    """
    copies: dict[str, Step] = {}
    out = []
    for step in steps:
        needs = list(step.needs)
        for source in [i for i in step.task.inputs() if i.uri.startswith("hf://")]:
            task = StageTask(source=source)
            key = task.key()
            needs.append(key)
            name = f"stage {source.uri.removeprefix('hf://')}"
            before = copies[key].trials if key in copies else ()
            trials = tuple(dict.fromkeys([*before, *step.trials]))
            copies[key] = Step(key, task.kind, name, task, (), trials)
        out.append(replace(step, needs=tuple(needs)))
    return [*copies.values(), *out]


def with_report(plan: Plan, record: str, version: int = KIND_VERSIONS["report"]) -> Plan:
    """Return the plan with a step that gathers all evaluations.

    The step comes after all evaluations. ``record`` is the path of the experiment's record in the store. ``version``
    is the step's version in an earlier plan.
    """
    task = ReportTask(record=record, version=version)
    needs = tuple(s.key for s in plan.steps if s.kind == "evaluate")
    step = Step(task.key(), task.kind, "report", task, needs, plan.trials)
    return replace(plan, steps=(*plan.steps, step), by_key=plan.by_key | {step.key: step})


def _names(trials: list[Trial], keys_of_role: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return the names of steps by key.

    A name is the step's role and the swept values that the step's key depends on.
    """
    names: dict[str, str] = {}
    numbers = _numbered(trials)
    for role, keys in keys_of_role.items():
        depends = [p for p in numbers if _depends(p, numbers, trials, keys)]
        for trial in trials:
            key = keys.get(trial.name)
            if key is not None and key not in names:
                values = ",".join(f"{p}={plain(trial.values[p])}" for p in depends)
                names[key] = f"{role} {values}".strip()
    return names


def _numbered(trials: list[Trial]) -> dict[str, list[int]]:
    """Return every trial's value as a number, by swept path.

    Paths with a single value are left out. Comparing numbers costs nothing.
    """
    out: dict[str, list[int]] = {}
    for path in sorted(trials[0].values) if trials else []:
        known: dict[str, int] = {}
        numbers = [known.setdefault(repr(t.values[path]), len(known)) for t in trials]
        if len(known) > 1:
            out[path] = numbers
    return out


def _depends(path: str, numbers: dict[str, list[int]], trials: list[Trial], keys: dict[str, str]) -> bool:
    """Return whether a step's key depends on the value at a path.

    The key depends on the value if two trials that differ in this value alone have different keys.
    """
    seen: dict[tuple[int, ...], str] = {}
    others_of = [column for p, column in numbers.items() if p != path]
    for place, trial in enumerate(trials):
        others = tuple(column[place] for column in others_of)
        key = keys.get(trial.name, "")
        if seen.setdefault(others, key) != key:
            return True
    return False
