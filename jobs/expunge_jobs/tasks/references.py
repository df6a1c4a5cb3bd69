"""Inputs, artifacts, models and rows that a task reads.

A digest identifies an input. A key identifies an artifact.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, SerializerFunctionWrapHandler, model_serializer, model_validator

from expunge_jobs.core.schema import Count, Float, Int, Schema, Seed

Kind = Literal["stage", "memorize", "finetune", "merge", "evaluate", "report"]


Dtype = Literal["checkpoint", "float32", "bfloat16", "float16"]


class Input(Schema):
    """Bytes from outside the store.

    ``digest`` is ``sha256:<hex>``, or ``commit:<hex>`` for ``hf://``.
    """

    uri: str
    digest: str


class ArtifactRef(Schema):
    """The artifact of a finished step, or one folder of the artifact."""

    kind: Kind
    key: str
    folder: str = ""


class AdapterRef(Schema):
    """A LoRA adapter in PEFT's format."""

    ref: ArtifactRef | Input
    scale: Float | ArtifactRef = 1.0
    """Factor of the adapter's update BA; or an adapter to whose norm the update is scaled."""


class ModelRef(Schema):
    """A base model with adapters.

    Every step that reads a model receives a ``ModelRef``.
    """

    base: ArtifactRef | Input
    adapters: tuple[AdapterRef, ...] = ()


class RowsRef(Schema):
    """Some documents of a data file.

    Of each task, these are the documents at ``skip <= place < skip + take``. A document's place follows from
    ``hash(seed, id)``. ``take`` None selects the whole file.

    If a task has fewer than ``of`` documents, places are scaled by (number of documents) / ``of``. Therefore sets from
    one file keep their shares and never overlap.
    """

    input: Input
    seed: Seed = 0
    skip: Annotated[Int, Field(ge=0)] = 0
    take: Count | None = None
    of: Count | None = None


SetName = Literal["forget", "retain", "probe", "members", "nonmembers", "mmlu"]


def _whole_numbers(value: Any) -> Any:
    """Turn 1.0 into 1, as an API server writes it."""
    if isinstance(value, dict):
        return {k: _whole_numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Template(Schema):
    """How a row's texts become a prompt and an answer.

    Kind ``none`` is the text alone, as in the SemEval task. Kind ``chat`` is the tokenizer's own chat template.
    """

    kind: Literal["none", "chat"] = Field("chat", description="chat: prompts by the tokenizer's own template.")
    name: str | None = Field(None, description="Of one of several templates.")
    system: str | None = Field(None, description="The system's message.")
    arguments: Annotated[dict[str, JsonValue], AfterValidator(_whole_numbers)] = Field(
        default_factory=dict, description="What the template reads, as enable_thinking or date_string."
    )

    @model_validator(mode="before")
    @classmethod
    def _parse_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _chat_alone(self) -> Template:
        if self.kind == "none" and (self.name is not None or self.system is not None or self.arguments):
            raise ValueError("name, system and arguments are read by a chat template alone: kind has to be chat")
        return self

    @model_serializer(mode="wrap")
    def _shorten(self, write: SerializerFunctionWrapHandler) -> Any:
        """Write a template without other settings as its kind, as files have it."""
        plain = self.name is None and self.system is None and not self.arguments
        return self.kind if plain else write(self)


class TaskData(Schema):
    """The sets of a step, and the encoding of rows as tokens.

    The encoding is in modeling/encoding.py.
    """

    sets: dict[SetName, RowsRef]
    separator: str = " "
    template: Template = Template(kind="none")
    max_length: Annotated[Int, Field(ge=4)] = 256
    overlap: Literal["refuse", "drop_from_retain"] = "refuse"
