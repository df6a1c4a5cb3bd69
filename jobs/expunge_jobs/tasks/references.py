"""Inputs, artifacts, models and rows that a task reads.

A digest identifies an input. A key identifies an artifact.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
)

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


class TaskData(Schema):
    """The sets of a step, and the encoding of rows as tokens.

    The encoding is in modeling/encoding.py.
    """

    sets: dict[SetName, RowsRef]
    separator: str = " "
    template: Literal["none", "chat"] = "none"
    max_length: Annotated[Int, Field(ge=4)] = 256
    overlap: Literal["refuse", "drop_from_retain"] = "refuse"
