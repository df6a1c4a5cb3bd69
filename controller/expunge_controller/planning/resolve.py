"""The pinning of an experiment's inputs.

Only this module looks at the outside before a run. A file or directory is pinned by its digest, a hub model by its
commit. Rows are read and checked here too; therefore a bad row is found before a step runs.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from expunge_jobs.core.errors import BadTask
from expunge_jobs.core.hashing import canonical
from expunge_jobs.data import rows, selection
from expunge_jobs.inputs import adapter_folder, addresses, model_folder, pinning
from expunge_jobs.inputs.hub import Hub, own_hub
from expunge_jobs.store import NotFound, Store, TooLarge, is_shared
from expunge_jobs.tasks.references import Input, TaskData
from expunge_jobs.tasks.tasks import EvaluateTask, FinetuneTask

from expunge_controller.errors import ExperimentError
from expunge_controller.experiment.document import Document, KeyPath
from expunge_controller.experiment.loading import Loaded
from expunge_controller.planning.cut_rows import cut_notice, tokenizer_file
from expunge_controller.planning.plan import Plan, Step, make_plan, with_report
from expunge_controller.planning.trial_plan import inputs_of


@dataclass(frozen=True)
class Resolved:
    """A plan whose inputs are pinned.

    ``digest`` names this generation of the experiment. ``namespace`` is the experiment's namespace.
    """

    plan: Plan
    pins: dict[str, str]
    notices: list[str]
    digest: str
    record: dict[str, Any]
    namespace: str = "local"

    @property
    def folder(self) -> str:
        """The folder of this generation's own objects in the store."""
        return f"experiments/{self.namespace}/{self.plan.experiment}/{self.digest}"

    @property
    def run(self) -> str:
        """The label of the run's Jobs if no Experiment owns the Jobs."""
        return self.digest[:16]


def resolve(
    loaded: Loaded,
    stage: bool = False,
    namespace: str = "local",
    hub: Hub | None = None,
    input_bytes: int | None = None,
) -> Resolved:
    """Pin and check every input, and plan the experiment.

    ``stage`` is as in ``make_plan``. ``hub`` resolves a model's name to a commit. The default ``hub`` is this user's,
    with token and cache. ``input_bytes`` bounds the bytes of all data files together.

    Raises:
        ExperimentError: inputs that are missing, unreadable or hold bad rows; all of them at once.
        Unavailable: a store or hub did not answer.
    """
    resolver = _Resolver(loaded.document, hub or own_hub(), input_bytes)
    for trial in loaded.trials:
        asked = inputs_of(trial.spec)
        for path, uri in asked.files.items():
            resolver.file(path, uri)
        for path, uri in asked.models.items():
            resolver.folder(path, uri, model_folder.check_model_folder)
        for path, uri in asked.adapters.items():
            resolver.folder(path, uri, adapter_folder.check_adapter_folder)
    resolver.check()
    plan = make_plan(loaded, resolver.pins, stage)
    seen: dict[str, TaskData] = {}
    for step in plan.steps:
        if isinstance(step.task, EvaluateTask):
            chosen = step.task.data.model_dump(mode="json", include={"sets", "overlap"})  # no other field changes a row
            seen.setdefault(canonical(chosen), step.task.data)
    resolver.bound(len(seen))
    with _PARSING:
        for data in seen.values():
            resolver.sets(data)
    resolver.check()
    for task in {s.key: s.task for s in plan.steps if isinstance(s.task, FinetuneTask)}.values():
        resolver.say_cut_rows(task)
    # A copy follows from its input; therefore the digest ignores copies and is the same everywhere.
    asked_for = [s for s in plan.steps if s.kind != "stage"]
    record = {
        "experiment": {
            "name": loaded.name,
            # `suspend` and `cancel` do not make another experiment; therefore the digest ignores them.
            "spec": loaded.experiment.spec.model_dump(
                mode="json", by_alias=True, exclude_defaults=True, exclude={"suspend", "cancel"}
            ),
        },
        "inputs": resolver.pins,
        "steps": sorted(s.key for s in asked_for),
        "versions": _versions(asked_for),
    }
    digest = _digest(record)
    resolved = Resolved(plan, resolver.pins, resolver.notices, digest, record, namespace)
    return replace(resolved, plan=with_report(plan, f"{resolved.folder}.json"))


def load_recorded(store: Store, loaded: Loaded, digest: str, namespace: str, stage: bool = True) -> Resolved | None:
    """Return the generation of this digest as it was resolved.

    The store's record gives the inputs and versions, even if today's would differ. Returns None without an intact
    record, or if this code would plan other steps from the record.
    """
    try:
        data, _ = store.get(f"experiments/{namespace}/{loaded.name}/{digest}.json")
    except NotFound:
        return None
    try:
        record = dict(json.loads(data))
    except (ValueError, TypeError, RecursionError):  # no record of ours
        return None
    record.pop("models", None)
    report = record.pop("report", 1)  # records of 0.1 do not say it
    if _digest(record) != digest:  # the record was changed in the store
        return None
    pins = record["inputs"]
    if any(uri not in pins for trial in loaded.trials for asked in inputs_of(trial.spec) for uri in asked.values()):
        return None
    plan = make_plan(loaded, pins, stage, versions=record["versions"])
    if sorted(s.key for s in plan.steps if s.kind != "stage") != record["steps"]:
        return None
    resolved = Resolved(plan, pins, [], digest, record, namespace)
    return replace(resolved, plan=with_report(plan, f"{resolved.folder}.json", report))


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(record).encode()).hexdigest()


BYTES_A_ROW = 256
"""Bytes of ``input_bytes`` for each row held during checks. Shorter rows take more memory than their bytes."""
SELECTED = 16
"""Maximum bytes to check over all document selections of a sweep, as a multiple of ``input_bytes``."""
_PARSING = threading.Lock()
"""Lock for checking rows.

The rows take several times their file's bytes, and threads cannot share the work. Therefore one thread checks at
a time.
"""


class _Resolver:
    def __init__(self, document: Document, hub: Hub, input_bytes: int | None) -> None:
        self.document, self.hub, self.input_bytes = document, hub, input_bytes
        self.pins: dict[str, str] = {}
        self.notices: list[str] = []
        self.problems: list[str] = []
        self._content: dict[str, bytes] = {}
        self._rows: dict[tuple[str, str], list[rows.Item]] = {}
        self._asked: set[str] = set()
        self._counted: set[tuple[Path, str]] = set()

    def file(self, path: KeyPath, uri: str) -> None:
        if uri in self._asked:
            return
        self._asked.add(uri)
        try:
            self._content[uri] = pinning.read(uri, largest=self._left())
        except (BadTask, TooLarge) as error:
            said = str(error)
            if isinstance(error, TooLarge):
                said = f"{uri}: {said}, of an experiment's {self.input_bytes:,} in all (limits.inputSize)"
            self.problems.append(self.document.at(("spec", *path), said))
            return
        self.pins[uri] = f"sha256:{hashlib.sha256(self._content[uri]).hexdigest()}"

    def _left(self) -> int | None:
        """Return how many bytes the next data file may have."""
        if self.input_bytes is None:
            return None
        return max(0, self.input_bytes - sum(map(len, self._content.values())))

    def folder(self, path: KeyPath, uri: str, check: Callable[[Path], None]) -> None:
        if uri in self._asked:
            return
        self._asked.add(uri)
        try:
            if addresses.scheme(uri) == "hf":
                self.pins[uri] = f"commit:{self.hub.commit(uri)}"
            elif is_shared(uri):
                self.pins[uri] = pinning.stored_digest(uri)
            else:
                folder = Path(uri.removeprefix("file://"))
                self.pins[uri] = model_folder.folder_digest(folder)
                check(folder)
        except BadTask as error:
            text = str(error) if rows.address(uri) in str(error) else f"{rows.address(uri)}: {error}"
            self.problems.append(self.document.at(("spec", *path), text))

    def sets(self, data: TaskData) -> None:
        """Read the rows of a trial as the trial's steps will."""
        try:
            selection.load(data, self._read, parse=self._parse)
        except rows.DataError as error:
            self.problems += error.problems
        except BadTask as error:
            self.problems.append(str(error))
        else:
            self._say_shortfalls(data)

    def say_cut_rows(self, task: FinetuneTask) -> None:
        """Add a notice on rows to forget that are too long."""
        file = tokenizer_file(task)
        if file is None or (identity := (file, canonical(task.data.model_dump(mode="json")))) in self._counted:
            return
        self._counted.add(identity)
        items = selection.load(task.data, self._read, parse=self._parse)["forget"]
        if notice := cut_notice(items, file, task.data):
            self.notices.append(notice)

    def bound(self, selections: int) -> None:
        """Refuse a sweep that takes a shared process too long to check.

        The process checks one Experiment at a time.
        """
        if self.input_bytes is None:
            return
        size = sum(map(len, self._content.values()))
        if selections * size > SELECTED * self.input_bytes:
            said = f"{selections:,} selections from {size:,} bytes of rows are too much to check; sweep fewer of data's fields"
            self.problems.append(self.document.at(("spec", "sweep"), said))
        self.check()

    def _parse(self, content: bytes, name: str, role: str) -> list[rows.Item]:
        """Return the rows of a file, parsed once for each role."""
        if (name, role) not in self._rows:
            most = None if self.input_bytes is None else self.input_bytes // BYTES_A_ROW
            self._rows[name, role] = rows.parse(content, name, role, most)
        return self._rows[name, role]

    def check(self) -> None:
        if self.problems:
            raise ExperimentError(list(dict.fromkeys(self.problems)))

    def _read(self, ref: Input) -> bytes:
        return self._content[ref.uri]

    def _say_shortfalls(self, data: TaskData) -> None:
        for name, ref in data.sets.items():
            if ref.take is None:
                continue
            of = ref.of or ref.take
            items = self._parse(self._content[ref.input.uri], rows.address(ref.input.uri), name)
            for task, count in selection.shortfalls(items, of).items():
                text = (
                    f"{rows.address(ref.input.uri)} has {count} documents of {task}, fewer than the {of} asked for: "
                    "all are used, split in the same shares"
                )
                if text not in self.notices:
                    self.notices.append(text)


def _versions(steps: Iterable[Step]) -> dict[str, int]:
    out: dict[str, int] = {}
    for step in steps:
        out[step.task.kind] = step.task.version
        out |= step.task.plugins
    return dict(sorted(out.items()))
