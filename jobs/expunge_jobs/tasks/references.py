"""What a task reads: inputs by digest, artifacts by key, models, rows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
)

from expunge_jobs.core.schema import Count, Float, Int, Schema, Seed

Kind = Literal["stage", "memorize", "finetune", "merge", "evaluate", "report"]


Dtype = Literal["checkpoint", "float32", "bfloat16", "float16"]


class Input(Schema):
    """Bytes from outside the store. ``digest`` is ``sha256:<hex>``, or ``commit:<hex>`` for ``hf://``."""

    uri: str
    digest: str


class ArtifactRef(Schema):
    """A finished step's artifact, or one folder of it."""

    kind: Kind
    key: str
    folder: str = ""


class AdapterRef(Schema):
    """A LoRA adapter in PEFT's format; its update BA counts ``scale`` times."""

    ref: ArtifactRef | Input
    scale: Float = 1.0


class ModelRef(Schema):
    """A base model with adapters on it: what every step that reads a model is given."""

    base: ArtifactRef | Input
    adapters: tuple[AdapterRef, ...] = ()


class RowsRef(Schema):
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


class TaskData(Schema):
    """The sets a step reads, and how a row becomes tokens (see modeling/encoding.py)."""

    sets: dict[SetName, RowsRef]
    separator: str = " "
    template: Literal["none", "chat"] = "none"
    max_length: Annotated[Int, Field(ge=4)] = 256
    overlap: Literal["refuse", "drop_from_retain"] = "refuse"
