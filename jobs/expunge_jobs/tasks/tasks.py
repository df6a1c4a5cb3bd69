"""A step as data: the work and its inputs.

The module is pure and loads no torch.

A task travels as JSON in one environment variable and round-trips exactly. A task's **key** is the SHA-256 of its
canonical JSON without the addresses of its inputs. The digest identifies an input, wherever the input lies.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    TypeAdapter,
    model_serializer,
    model_validator,
)

from expunge_jobs import plugins
from expunge_jobs.core.errors import BadTask
from expunge_jobs.core.hashing import canonical, identity
from expunge_jobs.core.schema import Float, Schema, Seed
from expunge_jobs.plugins import PluginCall
from expunge_jobs.tasks.references import ArtifactRef, Dtype, Input, ModelRef, SetName, TaskData
from expunge_jobs.tasks.settings import (
    Architecture,
    EvaluateSettings,
    FinetuneSettings,
    MemorizeSettings,
    MethodParameters,
    exactly,
)

TASK_FORMAT = 1
"""Version of this file's JSON. The program refuses a task with another version by name."""

KIND_VERSIONS = {"stage": 1, "memorize": 2, "finetune": 2, "merge": 1, "evaluate": 3, "report": 2}
"""Versions by kind, part of every key. A version is raised by hand when the results of the kind change."""


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
        """Return canonical JSON: sorted keys, no whitespace.

        ``parse_task`` restores an equal task.
        """
        return canonical(self.model_dump(mode="json"))

    def key(self) -> str:
        """Return the key, 64 hex digits.

        The same work has the same key for every user and every way to request the work.
        """
        return identity(self.model_dump(mode="json"))

    def needs(self) -> list[ArtifactRef]:
        """Return the artifacts that this task reads, without duplicates."""
        found: dict[tuple[str, str], ArtifactRef] = {}
        for ref in _collect(self, ArtifactRef):
            found.setdefault((ref.kind, ref.key), ref)
        return list(found.values())

    def inputs(self) -> list[Input]:
        """Return the inputs from outside the store, without duplicates."""
        return list(dict.fromkeys(_collect(self, Input)))


class StageTask(_Task):
    """A copy of a hub model or adapter into the store -> ``model/``."""

    kind: Literal["stage"] = "stage"
    source: Input

    @model_validator(mode="after")
    def _of_the_hub(self) -> StageTask:
        if not self.source.uri.startswith("hf://"):
            raise ValueError(f"stage copies from hf://, found {self.source.uri}")
        return self


STAGED = "model"
"""Folder in a stage's artifact."""


def staged(source: Input) -> ArtifactRef:
    """Return the reference of this input's copy in the store.

    The copy may not exist yet.
    """
    return ArtifactRef(kind="stage", key=StageTask(source=source).key(), folder=STAGED)


class MemorizeTask(_Task):
    """The training of the model that is to forget.

    The step trains on every row of its sets, from scratch or from a model.
    """

    kind: Literal["memorize"] = "memorize"
    data: TaskData
    settings: Annotated[MemorizeSettings, exactly(MemorizeSettings)]
    architecture: Architecture | None = None
    only: tuple[SetName, ...] | None = None
    """The sets that are trained on, if not all.

    A model that never saw forget has the tokenizer, and so the start, of the model that it is compared with. It sees no
    row of forget that is in retain too.
    """
    model: ModelRef | None = None
    dtype: Dtype = "checkpoint"

    @model_validator(mode="after")
    def _one_start(self) -> MemorizeTask:
        if (self.architecture is None) == (self.model is None):
            raise ValueError("memorize starts either from an architecture or from a model")
        return self

    @model_serializer(mode="wrap")
    def _leave_out(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write no restriction where there is none.

        Keys of version 1 therefore stay.
        """
        return {k: v for k, v in write(self).items() if k != "only" or v is not None}


class FinetuneTask(_Task):
    """A specialised LoRA fine-tune.

    The results are ``adapter/`` and ``snapshots/epoch-<n>/``.
    """

    kind: Literal["finetune"] = "finetune"
    model: ModelRef
    data: TaskData
    settings: Annotated[FinetuneSettings, exactly(FinetuneSettings)]
    seed: Seed
    dtype: Dtype = "checkpoint"


class WeightedAdapter(Schema):
    """An adapter of a merge, with its weight."""

    ref: ArtifactRef | Input
    weight: Float = 1.0


class MergeTask(_Task):
    """A merge of two or more adapters -> ``adapter/``.

    ``seed`` is None unless the method draws at random.
    """

    kind: Literal["merge"] = "merge"
    base: ArtifactRef | Input
    adapters: Annotated[tuple[WeightedAdapter, ...], Field(min_length=2)]
    method: str
    parameters: MethodParameters
    """Instance of the method's own ``Parameters``."""
    seed: Seed | None = None

    @model_validator(mode="before")
    @classmethod
    def _write_out(cls, value: Any) -> Any:
        """Convert the parameters to the method's type.

        The seed of a method without random draws becomes None.
        """
        if isinstance(value, dict) and isinstance(value.get("method"), str) and "parameters" in value:
            call = PluginCall.of("merge_methods", value["method"], value["parameters"])
            value = {**value, "parameters": call.parameters, **({} if call.plugin.RANDOM else {"seed": None})}
        return value

    @property
    def call(self) -> PluginCall:
        """The method with its parameters."""
        return PluginCall("merge_methods", self.method, self.parameters)


class EvaluateTask(_Task):
    """An evaluation of a model on every row -> ``rows.jsonl``.

    The manifest holds the figures from these rows.
    """

    kind: Literal["evaluate"] = "evaluate"
    model: ModelRef
    data: TaskData
    settings: EvaluateSettings
    dtype: Dtype = "checkpoint"


class ReportTask(_Task):
    """A report of evaluations -> ``results.json``, ``comparisons.json``.

    The experiment's record in the store lists the evaluations. A sweep has more of them than an environment variable
    can hold.
    """

    kind: Literal["report"] = "report"
    record: Annotated[str, StringConstraints(pattern=r"^experiments/.+/[0-9a-f]{64}\.json$")]


Task = StageTask | MemorizeTask | FinetuneTask | MergeTask | EvaluateTask | ReportTask
_TASK: TypeAdapter[Task] = TypeAdapter(Annotated[Task, Field(discriminator="kind")])


def parse_task(text: str) -> Task:
    """Return the task in this JSON.

    Raises:
        BadTask: not a task; or a format, kind version or plugin version other than this code's, by name.
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
