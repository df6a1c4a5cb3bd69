"""A step as data: what exactly is to be done, on which inputs. Pure; loads no torch.

A task travels as JSON (in one environment variable) and round-trips exactly. Its **key** is the SHA-256 of its
canonical JSON without the addresses of its inputs: an input is what its digest says, wherever it lies.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from expunge_jobs import plugins
from expunge_jobs.core.errors import BadTask
from expunge_jobs.core.schema import Count, Float, Int, Model, Positive, Seed

TASK_FORMAT = 1
"""The version of this file's JSON; a task with a newer one is refused by name."""

KIND_VERSIONS = {"stage": 1, "memorize": 1, "finetune": 1, "merge": 1, "evaluate": 2, "report": 1}
"""Raised by hand when the results of a kind change; part of every key."""

Kind = Literal["stage", "memorize", "finetune", "merge", "evaluate", "report"]
Dtype = Literal["checkpoint", "float32", "bfloat16", "float16"]


class Input(Model):
    """Bytes from outside the store. ``digest`` is ``sha256:<hex>``, or ``commit:<hex>`` for ``hf://``."""

    uri: str
    digest: str


class ArtifactRef(Model):
    """A finished step's artifact, or one folder of it."""

    kind: Kind
    key: str
    folder: str = ""


class AdapterRef(Model):
    """A LoRA adapter in PEFT's format; its update BA counts ``scale`` times."""

    ref: ArtifactRef | Input
    scale: Float = 1.0


class ModelRef(Model):
    """A base model with adapters on it: what every step that reads a model is given."""

    base: ArtifactRef | Input
    adapters: tuple[AdapterRef, ...] = ()


class RowsRef(Model):
    """Some documents of a data file: of each task, those at ``skip <= place < skip + take``.

    A document's place follows from ``hash(seed, id)``. Where a task has fewer than ``of`` documents, places are
    scaled by (documents there are) / ``of``, so that sets drawn from one file keep their shares and never meet.
    ``take`` None is the whole file.
    """

    input: Input
    seed: Seed = 0
    skip: Annotated[Int, Field(ge=0)] = 0
    take: Count | None = None
    of: Count | None = None


SetName = Literal["forget", "retain", "probe", "members", "nonmembers", "mmlu"]


class TaskData(Model):
    """The sets a step reads, and how a row becomes tokens (see modeling/encoding.py)."""

    sets: dict[SetName, RowsRef]
    separator: str = " "
    template: Literal["none", "chat"] = "none"
    max_length: Annotated[Int, Field(ge=4)] = 256
    overlap: Literal["refuse", "drop_from_retain"] = "refuse"


class NestedError(NamedTuple):
    """One of ``NestedErrors``: its path below the field, and for pydantic's own the model that was broken."""

    path: tuple[str, ...]
    error: ValueError
    model: type[BaseModel] | None = None


class NestedErrors(ValueError):
    """Validation errors of parts that another model (a plugin's, say) describes."""

    def __init__(self, parts: list[NestedError]) -> None:
        self.parts = parts
        super().__init__("; ".join(f"{'.'.join(p.path)}: {p.error}" for p in parts))


def _parse_objective(value: Any) -> Any:
    """``npo`` | ``{npo: 0.4}`` | ``{npo: {weight: 0.4, beta: 0.1}}`` -> every parameter written out."""
    if isinstance(value, str):
        value = {value: 1.0}
    if not isinstance(value, dict) or not value:
        raise ValueError("an objective is one or more terms, as {npo: 0.4, nll: 0.4}")
    out: dict[str, Any] = {}
    errors: list[NestedError] = []
    for name, given in value.items():
        try:
            plugin = plugins.load("objectives", str(name))
        except ValueError as error:
            errors.append(NestedError((), error))
            continue
        fields = given if isinstance(given, dict) else {"weight": given}
        try:
            out[str(name)] = plugin.Parameters.model_validate(fields).model_dump(mode="json")
        except ValidationError as error:
            errors.append(NestedError((str(name),), error, plugin.Parameters))
    if errors:
        raise NestedErrors(errors)
    return dict(sorted(out.items()))


def _any_weight(value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    if not any(term["weight"] > 0 for term in value.values()):
        raise ValueError("every term of this objective has weight 0: nothing would be learnt")
    return value


Objective = Annotated[dict[str, dict[str, Any]], BeforeValidator(_parse_objective), AfterValidator(_any_weight)]


def _parse_targets(value: Any) -> Any:
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("targets is empty; allowed: all-linear, or the names of linear layers")
        return tuple(sorted({str(v) for v in value}))
    return value


class FinetuneSettings(Model):
    """One LoRA fine-tune. Defaults are those of the source system (arXiv 2503.21088, section 4.1)."""

    objective: Objective = Field(description="Loss terms by name, each with a weight: {npo: 0.4, nll: 0.4, kl: 0.2}.")
    batch_size: Count = Field(1, description="Forget rows (and as many retain rows) in a micro-batch.")
    accumulation: Count = Field(4, description="Micro-batches in an optimizer step.")
    epochs: Count = Field(5, description="Passes over the forget set.")
    learning_rate: Positive = Field(1e-4, description="Peak of the warm-up (one epoch), then linear to 0.")
    weight_decay: Annotated[Float, Field(ge=0)] = Field(0.01, description="AdamW's.")
    clip: Positive = Field(1.0, description="Largest norm of the gradient.")
    rank: Count = Field(32, description="LoRA's r.")
    alpha: Positive = Field(32.0, description="LoRA's alpha; the update is scaled by alpha / r.")
    dropout: Annotated[Float, Field(ge=0, lt=1)] = Field(0.05, description="On LoRA's input alone.")
    targets: Annotated[Literal["all-linear"] | tuple[str, ...], BeforeValidator(_parse_targets)] = Field(
        "all-linear", description="Modules that get an adapter: every linear layer but the head, or their names."
    )
    gradient_checkpointing: bool = Field(False, description="Less memory for about a third more time.")


class Architecture(Model):
    """A small model to be built from scratch, with a byte-level BPE tokenizer trained on its own rows."""

    type: Literal["olmo", "llama"] = Field("olmo", description="Whose architecture, as transformers has it.")
    vocab_size: Annotated[Int, Field(ge=257)] = Field(
        2048, description="Tokens, at most: 256 bytes, an end, and merges."
    )
    hidden_size: Count = Field(256, description="Width; an even multiple of heads.")
    layers: Count = Field(4, description="Decoder layers.")
    heads: Count = Field(4, description="Attention heads of a layer.")
    intermediate_size: Count = Field(672, description="Width of the layers' feed-forward part.")

    @model_validator(mode="after")
    def _heads_divide(self) -> Architecture:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} is not an even multiple of heads {self.heads}")
        return self


class MemorizeSettings(Model):
    """Full training on every row that the model is to know, until it knows them."""

    epochs: Count = Field(70, description="At most so many passes.")
    batch_size: Count = Field(8, description="Rows in an optimizer step.")
    learning_rate: Positive = Field(3e-3, description="Peak; cosine to 0 over all epochs.")
    weight_decay: Annotated[Float, Field(ge=0)] = Field(0.0, description="AdamW's.")
    warmup: Annotated[Float, Field(ge=0, lt=1)] = Field(0.05, description="Share of the steps.")
    stop_at: Annotated[Float, Field(gt=0, le=1)] | None = Field(
        1.0,
        description="Stop when this share of rows is known: every output token the greedy one. null: train every epoch, "
        "so that the learning rate comes down to 0.",
    )
    seed: Seed = Field(0, description="Of the weights' start and of the rows' order.")


class EvaluateSettings(Model):
    """How a model is asked. Batch size and dtype change bits, so they are in the key."""

    batch_size: Count = Field(32, description="Prompts generated side by side.")
    max_new_tokens: Count = Field(256, description="The SemEval task's limit.")


class _Task(Model):
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
    settings: MemorizeSettings
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
    settings: FinetuneSettings
    seed: Seed
    dtype: Dtype = "checkpoint"


class WeightedAdapter(Model):
    """One adapter of a merge."""

    ref: ArtifactRef | Input
    weight: Float = 1.0


class MergeTask(_Task):
    """Two or more adapters -> ``adapter/``. ``seed`` is None unless the method draws at random."""

    kind: Literal["merge"] = "merge"
    base: ArtifactRef | Input
    adapters: Annotated[tuple[WeightedAdapter, ...], Field(min_length=2)]
    method: str
    parameters: dict[str, Any]
    seed: Seed | None = None

    @model_validator(mode="before")
    @classmethod
    def _write_out(cls, value: Any) -> Any:
        """Every parameter typed and written out, as an objective's; no seed where nothing is drawn."""
        if (
            isinstance(value, dict)
            and isinstance(value.get("method"), str)
            and isinstance(value.get("parameters"), dict)
        ):
            plugin = plugins.load("merge_methods", value["method"])
            given = plugin.Parameters.model_validate(value["parameters"]).model_dump(mode="json")
            value = {**value, "parameters": given, **({} if plugin.RANDOM else {"seed": None})}
        return value


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
        family, _, plugin = str(name).partition("/")
        try:
            have = plugins.version(family, plugin)
        except (ValueError, ImportError) as error:
            raise BadTask(f"the task needs the plugin {name}: {error}") from None
        if have != wanted:
            raise BadTask(f"the task needs {name} version {wanted}, this code has {have}")
    try:
        return _TASK.validate_python(raw)
    except ValueError as error:
        raise BadTask(f"the task is not valid: {error}") from None


def canonical(value: Any) -> str:
    """JSON with sorted keys and no blanks: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def identity(value: Any) -> str:
    """SHA-256 in hex of a JSON value without addresses: they say where bytes are, digests say which."""
    return hashlib.sha256(canonical(_without(value, _ADDRESSES)).encode()).hexdigest()


def stable_hash(*parts: object) -> int:
    """63 bits of SHA-256 over the parts: seeds and places that no Python version changes."""
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


_Ref = TypeVar("_Ref", ArtifactRef, Input)
_ADDRESSES = frozenset({"uri"})


def _without(value: Any, drop: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, drop) for k, v in value.items() if k not in drop}
    if isinstance(value, list):
        return [_without(v, drop) for v in value]
    return value


def _collect(value: Any, kind: type[_Ref]) -> list[_Ref]:
    if isinstance(value, kind):
        return [value]
    if isinstance(value, BaseModel):
        value = [getattr(value, name) for name in type(value).model_fields]
    elif isinstance(value, dict):
        value = list(value.values())
    return [found for item in value for found in _collect(item, kind)] if isinstance(value, tuple | list) else []
