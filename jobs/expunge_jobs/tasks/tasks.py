"""A step as data: what exactly is to be done, on which inputs. Pure; loads no torch.

A task travels as JSON (in one environment variable) and round-trips exactly. Its **key** is the SHA-256 of its
canonical JSON without the addresses of its inputs: an input is what its digest says, wherever it lies.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    Field,
    StringConstraints,
    TypeAdapter,
    model_validator,
)

from expunge_jobs import plugins
from expunge_jobs.core.errors import BadTask
from expunge_jobs.core.hashing import canonical, identity
from expunge_jobs.core.schema import Float, Schema, Seed
from expunge_jobs.plugins import PluginCall
from expunge_jobs.tasks.references import ArtifactRef, Dtype, Input, ModelRef, TaskData
from expunge_jobs.tasks.settings import (
    Architecture,
    EvaluateSettings,
    FinetuneSettings,
    MemorizeSettings,
    MethodParameters,
    exactly,
)

TASK_FORMAT = 1
"""The version of this file's JSON; a task with a newer one is refused by name."""

KIND_VERSIONS = {"stage": 1, "memorize": 1, "finetune": 1, "merge": 1, "evaluate": 2, "report": 1}
"""Raised by hand when the results of a kind change; part of every key."""


class _Task(Schema):
    format: Literal[1] = 1
    version: int = 0
    plugins: dict[str, int] = Field(default_factory=dict)
    kind: Any

    @model_validator(mode="before")
    @classmethod
    def _fill_versions(cls, value: Any) -> Any:
        if isinstance(value, dict) and "version" not in value:
            kind = cls.model_fields["kind"].default
            value = {"version": KIND_VERSIONS[kind], **value}
        return value

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no blanks; ``parse_task`` gives back an equal task."""
        return canonical(self.model_dump(mode="json"))

    def key(self) -> str:
        """64 hex digits: the same work has the same key, whoever asks and by whatever road."""
        return identity(self.model_dump(mode="json"))

    def needs(self) -> list[ArtifactRef]:
        """The artifacts that this task reads, each once."""
        found: dict[tuple[str, str], ArtifactRef] = {}
        for ref in _collect(self, ArtifactRef):
            found.setdefault((ref.kind, ref.key), ref)
        return list(found.values())

    def inputs(self) -> list[Input]:
        """What this task reads from outside the store, each once."""
        return list(dict.fromkeys(_collect(self, Input)))


class StageTask(_Task):
    """Copies a model or adapter of the hub into the store -> ``model/``."""

    kind: Literal["stage"] = "stage"
    source: Input

    @model_validator(mode="after")
    def _of_the_hub(self) -> StageTask:
        if not self.source.uri.startswith("hf://"):
            raise ValueError(f"stage copies from hf://, found {self.source.uri}")
        return self


STAGED = "model"
"""The folder of a stage's artifact."""


def staged(source: Input) -> ArtifactRef:
    """Return where the copy of this input lies, if it has been made."""
    return ArtifactRef(kind="stage", key=StageTask(source=source).key(), folder=STAGED)


class MemorizeTask(_Task):
    """Builds the model that is to forget: trains on every row of its sets, from scratch or from a model."""

    kind: Literal["memorize"] = "memorize"
    data: TaskData
    settings: Annotated[MemorizeSettings, exactly(MemorizeSettings)]
    architecture: Architecture | None = None
    model: ModelRef | None = None
    dtype: Dtype = "checkpoint"

    @model_validator(mode="after")
    def _one_start(self) -> MemorizeTask:
        if (self.architecture is None) == (self.model is None):
            raise ValueError("memorize starts either from an architecture or from a model")
        return self


class FinetuneTask(_Task):
    """One specialised LoRA fine-tune -> ``adapter/`` and ``snapshots/epoch-<n>/``."""

    kind: Literal["finetune"] = "finetune"
    model: ModelRef
    data: TaskData
    settings: Annotated[FinetuneSettings, exactly(FinetuneSettings)]
    seed: Seed
    dtype: Dtype = "checkpoint"


class WeightedAdapter(Schema):
    """One adapter of a merge."""

    ref: ArtifactRef | Input
    weight: Float = 1.0


class MergeTask(_Task):
    """Two or more adapters -> ``adapter/``. ``seed`` is None unless the method draws at random."""

    kind: Literal["merge"] = "merge"
    base: ArtifactRef | Input
    adapters: Annotated[tuple[WeightedAdapter, ...], Field(min_length=2)]
    method: str
    parameters: MethodParameters
    """Of the method's own ``Parameters``."""
    seed: Seed | None = None

    @model_validator(mode="before")
    @classmethod
    def _write_out(cls, value: Any) -> Any:
        """Every parameter typed; no seed where nothing is drawn."""
        if isinstance(value, dict) and isinstance(value.get("method"), str) and "parameters" in value:
            call = PluginCall.of("merge_methods", value["method"], value["parameters"])
            value = {**value, "parameters": call.parameters, **({} if call.plugin.RANDOM else {"seed": None})}
        return value

    @property
    def call(self) -> PluginCall:
        """The method with its parameters."""
        return PluginCall("merge_methods", self.method, self.parameters)


class EvaluateTask(_Task):
    """Asks a model every row -> ``rows.jsonl``, and in the manifest the figures made from it."""

    kind: Literal["evaluate"] = "evaluate"
    model: ModelRef
    data: TaskData
    settings: EvaluateSettings
    dtype: Dtype = "checkpoint"


class ReportTask(_Task):
    """Gathers an experiment's evaluations -> ``results.json``. Which they are, the experiment's record in the store says: a
    sweep has more of them than an environment variable can hold."""

    kind: Literal["report"] = "report"
    record: Annotated[str, StringConstraints(pattern=r"^experiments/.+/[0-9a-f]{64}\.json$")]


Task = StageTask | MemorizeTask | FinetuneTask | MergeTask | EvaluateTask | ReportTask
_TASK: TypeAdapter[Task] = TypeAdapter(Annotated[Task, Field(discriminator="kind")])


def parse_task(text: str) -> Task:
    """The task in this JSON.

    Raises:
        BadTask: not a task; or from a newer format, kind version or plugin version than this code's, by name.
    """
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise BadTask(f"the task is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise BadTask("the task is not a JSON object")
    if raw.get("format") != TASK_FORMAT:
        raise BadTask(
            f"the task has format {raw.get('format')!r}, this code reads format {TASK_FORMAT}: use its own image"
        )
    kind = raw.get("kind")
    if isinstance(kind, str) and kind in KIND_VERSIONS and raw.get("version") != KIND_VERSIONS[kind]:
        raise BadTask(f"the task needs {kind} version {raw.get('version')}, this code has {KIND_VERSIONS[kind]}")
    needed = raw.get("plugins")
    for name, wanted in needed.items() if isinstance(needed, dict) else ():
        try:
            found = plugins.by_identity(str(name))
            have = plugins.version(found.family, found.name)
        except ValueError as error:
            raise BadTask(f"the task needs the plugin {name}: {error}") from None
        if have != wanted:
            raise BadTask(f"the task needs {name} version {wanted}, this code has {have}")
    try:
        return _TASK.validate_python(raw)
    except ValueError as error:
        raise BadTask(f"the task is not valid: {error}") from None


_Ref = TypeVar("_Ref", ArtifactRef, Input)


def _collect(value: Any, kind: type[_Ref]) -> list[_Ref]:
    if isinstance(value, kind):
        return [value]
    if isinstance(value, BaseModel):
        value = [getattr(value, name) for name in type(value).model_fields]
    elif isinstance(value, dict):
        value = list(value.values())
    return [found for item in value for found in _collect(item, kind)] if isinstance(value, tuple | list) else []
