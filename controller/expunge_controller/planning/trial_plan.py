"""One trial's steps, models and input addresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from expunge_jobs import plugins
from expunge_jobs.results.summary import Role
from expunge_jobs.tasks.references import (
    AdapterRef,
    ArtifactRef,
    Input,
    ModelRef,
    RowsRef,
    SetName,
    TaskData,
    Template,
)
from expunge_jobs.tasks.settings import EvaluateSettings, MemorizeSettings
from expunge_jobs.tasks.tasks import (
    KIND_VERSIONS,
    EvaluateTask,
    FinetuneTask,
    MemorizeTask,
    MergeTask,
    Task,
    WeightedAdapter,
)
from pydantic import BaseModel

from expunge_controller.experiment.document import KeyPath
from expunge_controller.experiment.schema import (
    REFERENCE,
    Data,
    ExternalAdapter,
    ExternalModel,
    Finetune,
    Memorize,
    Remainder,
    RetainOnly,
    Spec,
)

MEMORIZED: tuple[SetName, ...] = ("forget", "retain", "probe")
"""Sets of the model that is to forget."""
PRETRAINED_RATE = 1e-4
"""Learning rate of ``memorize`` from a pretrained model, if the file gives none."""
Pins = Mapping[str, str]
"""Digests by address, made by ``resolve``."""


Versions = Mapping[str, int]
"""Versions of kinds (``finetune``) and plugins (``objectives/npo``)."""


class Inputs(NamedTuple):
    """The addresses that a trial reads, by the field that names them."""

    files: dict[KeyPath, str]
    models: dict[KeyPath, str]
    adapters: dict[KeyPath, str]


def inputs_of(spec: Spec) -> Inputs:
    """Return the addresses of a trial's inputs from outside."""
    files: dict[KeyPath, str] = {("data", n): ref.input.uri for n, ref in _sets(spec.data, lambda _: "").items()}
    adapters: dict[KeyPath, str] = {
        (group, name, "adapter"): model.adapter
        for group, models in (("specialists", spec.specialists), ("baselines", spec.baselines))
        for name, model in models.items()
        if isinstance(model, ExternalAdapter)
    }
    models: dict[KeyPath, str] = {("model",): spec.model} if spec.model else {}
    if isinstance(spec.reference, ExternalModel):
        models["reference", "model"] = spec.reference.model
    return Inputs(files, models, adapters)


class Keys:
    """A cache of tasks and keys, shared by all trials.

    Equal tasks are made and hashed once. A sweep of 1,000 trials has few distinct tasks.
    """

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._made: dict[Any, tuple[str, Task]] = {}
        self._needs: dict[str, list[ArtifactRef]] = {}

    def make(self, kind: type[Task], **fields: Any) -> tuple[str, Task]:
        """Return the key and the task of these fields.

        Equal fields make one task.
        """
        identity = (kind, *((name, _identity(value)) for name, value in fields.items()))
        if identity not in self._made:
            task = self._of_its_time(kind(**fields))
            self._made[identity] = (task.key(), task)
        return self._made[identity]

    def version(self, kind: type[Task]) -> int:
        """Return the version of a kind of task in this plan."""
        name = kind.model_fields["kind"].default
        return self._versions.get(name, KIND_VERSIONS[name])

    def _of_its_time(self, task: Task) -> Task:
        plugins = {name: self._versions.get(name, version) for name, version in task.plugins.items()}
        return task.model_copy(update={"version": self._versions.get(task.kind, task.version), "plugins": plugins})

    def needs(self, key: str, task: Task) -> list[ArtifactRef]:
        if key not in self._needs:
            self._needs[key] = task.needs()
        return self._needs[key]


class TrialPlan:
    """One trial's steps and models.

    A step is (role, key, task). A model is (name, role, key of its evaluation, reference to the model).
    """

    def __init__(self, spec: Spec, pins: Pins, keys: Keys) -> None:
        self.spec, self.pins, self.keys = spec, pins, keys
        self.steps: list[tuple[str, str, Task]] = []
        self.models: list[tuple[str, Role, str, ModelRef]] = []
        self.sets = _sets(spec.data, pins.__getitem__)
        self._made: dict[tuple[SetName, ...], TaskData] = {}
        self.evaluation = EvaluateSettings(
            batch_size=spec.evaluate.batch_size, max_new_tokens=spec.evaluate.max_new_tokens
        )
        self.base = self._base()
        self._evaluate("base", "base", self.base)
        adapters = {name: self._specialist(name, "specialist", s) for name, s in spec.specialists.items()}
        for name, baseline in spec.baselines.items():
            if isinstance(baseline, RetainOnly):
                self._evaluate(name, "reference", self._retain_only(name, baseline))  # the files of 0.1
            else:
                self._specialist(name, "baseline", baseline)
        if isinstance(spec.reference, RetainOnly):
            self._evaluate(REFERENCE, "reference", self._retain_only(REFERENCE, spec.reference))
        elif spec.reference is not None:
            self._evaluate(REFERENCE, "reference", ModelRef(base=self._input(spec.reference.model)))
        if spec.merge is not None:
            merged = self._merge(adapters)
            for scale in spec.evaluate.controls:
                for name, adapter in adapters.items():
                    factor = merged if scale == "norm" else scale
                    self._evaluate(f"control:{name}@{scale}", "control", self._on_base(adapter, factor))

    def _data(self, *names: SetName) -> TaskData:
        data = self.spec.data
        if names not in self._made:  # hundreds of plans are kept at once; therefore share equal data
            self._made[names] = TaskData(
                sets={n: self.sets[n] for n in names if n in self.sets},
                separator=data.separator,
                template=Template.model_validate(data.template),
                max_length=data.max_length,
                overlap=data.overlap,
            )
        return self._made[names]

    def _base(self) -> ModelRef:
        start = ModelRef(base=self._input(self.spec.model)) if self.spec.model else None
        if self.spec.memorize is None:
            assert start is not None, "the experiment has a model or memorize"
            return start
        return self._memorize("memorize", self.spec.memorize, MEMORIZED)

    def _memorize(self, role: str, given: Memorize, sets: tuple[SetName, ...]) -> ModelRef:
        start = ModelRef(base=self._input(self.spec.model)) if self.spec.model else None
        dtype, rate, only = self.spec.dtype, MemorizeSettings.model_fields["learning_rate"].default, None
        if self.keys.version(MemorizeTask) > 1:  # records of version 1 keep its plan
            dtype = given.dtype
            rate = rate if start is None else PRETRAINED_RATE
            if sets != MEMORIZED:
                sets, only = MEMORIZED, sets
        key = self._add(
            role,
            MemorizeTask,
            data=self._data(*sets),
            settings=given if given.learning_rate else given.model_copy(update={"learning_rate": rate}),
            architecture=given.architecture,
            only=only,
            model=start,
            dtype=dtype,
        )
        return ModelRef(base=ArtifactRef(kind="memorize", key=key, folder="model"))

    def _retain_only(self, name: str, given: RetainOnly) -> ModelRef:
        return self._memorize(f"memorize {name}", self.spec.retain_only(given), ("retain", "probe"))

    def _specialist(self, name: str, role: Role, given: Finetune | ExternalAdapter) -> ArtifactRef | Input:
        adapter: ArtifactRef | Input
        if isinstance(given, ExternalAdapter):
            adapter = self._input(given.adapter)
        else:
            key = self._add(
                f"finetune {name}",
                FinetuneTask,
                model=self.base,
                data=self._data("forget", "retain"),
                settings=given,
                seed=self.spec.seed,
                dtype=self.spec.dtype,
                plugins=plugins.versions([call.name for call in given.objective], "objectives"),
            )
            adapter = ArtifactRef(kind="finetune", key=key, folder="adapter")
        self._evaluate(name, role, self._on_base(adapter))
        return adapter

    def _merge(self, adapters: dict[str, ArtifactRef | Input]) -> ArtifactRef:
        merge = self.spec.merge
        assert merge is not None, "only called with one"
        # Sort by name; therefore the order in the file does not change the key.
        weighted = tuple(WeightedAdapter(ref=adapters[n], weight=merge.weights.get(n, 1.0)) for n in sorted(adapters))
        key = self._add(
            "merge",
            MergeTask,
            base=self.base.base,
            adapters=weighted,
            method=merge.method,
            parameters=merge.parameters,
            seed=self.spec.seed if merge.call.plugin.RANDOM else None,
            plugins=plugins.versions([merge.method], "merge_methods"),
        )
        merged = ArtifactRef(kind="merge", key=key, folder="adapter")
        self._evaluate("merged", "merged", self._on_base(merged))
        return merged

    def _evaluate(self, name: str, role: Role, model: ModelRef) -> None:
        data = self._data("forget", "retain", "probe", "members", "nonmembers", "mmlu")
        key = self._add(
            f"evaluate {name}", EvaluateTask, model=model, data=data, settings=self.evaluation, dtype=self.spec.dtype
        )
        self.models.append((name, role, key, model))

    def _add(self, role: str, kind: type[Task], **fields: Any) -> str:
        key, task = self.keys.make(kind, **fields)
        self.steps.append((role, key, task))
        return key

    def _on_base(self, adapter: ArtifactRef | Input, scale: float | ArtifactRef = 1.0) -> ModelRef:
        return ModelRef(base=self.base.base, adapters=(*self.base.adapters, AdapterRef(ref=adapter, scale=scale)))

    def _input(self, uri: str) -> Input:
        return Input(uri=uri, digest=self.pins[uri])


def _identity(value: Any) -> Any:
    """Return a key that equal values share, and unequal values do not."""
    if isinstance(value, BaseModel):
        return type(value), value.model_dump_json()
    if isinstance(value, tuple):
        return tuple(map(_identity, value))
    return repr(value)


_FILES: tuple[SetName, ...] = ("forget", "retain")


_OTHERS: tuple[SetName, ...] = ("probe", "members", "nonmembers", "mmlu")


def _sets(data: Data, digest: Callable[[str], str]) -> dict[SetName, RowsRef]:
    """Return the rows of every set: the file and its documents."""

    def source(address: str) -> Input:
        uri = _builtin_uri(address, data)
        return Input(uri=uri, digest=digest(uri))

    choices: tuple[tuple[SetName, object], ...] = (("probe", data.probe), ("nonmembers", data.nonmembers))
    rests = {n: r for n, r in choices if isinstance(r, Remainder)}
    out: dict[SetName, RowsRef] = {}
    for name in _FILES:
        mine = {n: r for n, r in rests.items() if r.source == name}
        address = getattr(data, name)
        take = None if data.documents is None or address.startswith("builtin://") else data.documents
        whole = (data.documents or 0) + sum(r.documents for r in mine.values())
        out[name] = RowsRef(input=source(address), seed=data.seed, take=take, of=whole if take else None)
        skip = data.documents or 0
        for other, rest in mine.items():
            out[other] = RowsRef(input=source(address), seed=data.seed, skip=skip, take=rest.documents, of=whole)
            skip += rest.documents
    for name in _OTHERS:
        address = getattr(data, name)
        if isinstance(address, str):
            take = data.documents if name == "probe" and not address.startswith("builtin://") else None
            out[name] = RowsRef(input=source(address), seed=data.seed if take else 0, take=take, of=take)
    return out


def _builtin_uri(address: str, data: Data) -> str:
    """Write ``data.documents`` and ``data.seed`` out in a builtin:// address.

    An option in the address wins. Other addresses are unchanged.
    """
    if not address.startswith("builtin://"):
        return address
    parts = urlsplit(address)
    query = {"seed": str(data.seed), **({"documents": str(data.documents)} if data.documents else {})}
    query |= dict(parse_qsl(parts.query, keep_blank_values=True))
    return f"builtin://{parts.netloc}{parts.path}?{urlencode(sorted(query.items()))}"
