"""Settings of each kind of step.

The settings are typed, have ranges, and are part of the key.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    InstanceOf,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from expunge_jobs import plugins
from expunge_jobs.core.schema import Count, Float, Int, Positive, Schema, Seed
from expunge_jobs.plugins import PluginCall


def exactly(kind: type[BaseModel]) -> BeforeValidator:
    """Return a validator that converts a subclass's instance to ``kind``.

    An experiment's types have fields that no task carries.
    """

    def convert(value: Any) -> Any:
        if not isinstance(value, kind) or type(value) is kind:
            return value
        return kind.model_construct(**{name: getattr(value, name) for name in kind.model_fields})

    return BeforeValidator(convert)


class NestedError(NamedTuple):
    """An error of ``NestedErrors``.

    ``path`` is the path below the field. ``model`` is the model that rejected the value, for pydantic's own errors.
    """

    path: tuple[str, ...]
    error: ValueError
    model: type[BaseModel] | None = None


class NestedErrors(ValueError):
    """Validation errors of parts that another model describes.

    Such a model may be a plugin's.
    """

    def __init__(self, parts: list[NestedError]) -> None:
        self.parts = parts
        super().__init__("; ".join(f"{'.'.join(p.path)}: {p.error}" for p in parts))


def _parse_objective(value: Any) -> Any:
    """Parse an objective into calls, sorted by name.

    The forms are ``npo``, ``{npo: 0.4}`` and ``{npo: {weight: 0.4, beta: 0.1}}``.
    """
    if isinstance(value, tuple) and all(isinstance(v, PluginCall) for v in value):
        return value
    if isinstance(value, str):
        value = {value: 1.0}
    if not isinstance(value, dict) or not value:
        raise ValueError("an objective is one or more terms, as {npo: 0.4, nll: 0.4}")
    calls: list[PluginCall] = []
    errors: list[NestedError] = []
    for name, given in value.items():
        fields = given if isinstance(given, dict) else {"weight": given}
        try:
            calls.append(PluginCall.of("objectives", str(name), fields))
        except ValidationError as error:
            kind = plugins.load("objectives", str(name)).Parameters
            errors.append(NestedError((str(name),), error, kind))
        except ValueError as error:
            errors.append(NestedError((), error))
    if errors:
        raise NestedErrors(errors)
    return tuple(sorted(calls, key=lambda call: call.name))


def _any_weight(calls: tuple[PluginCall, ...]) -> tuple[PluginCall, ...]:
    if not any(call.fields()["weight"] > 0 for call in calls):
        raise ValueError("every term of this objective has weight 0: nothing would be learnt")
    return calls


def _objective_fields(calls: tuple[PluginCall, ...]) -> dict[str, Any]:
    return {call.name: call.fields() for call in calls}


Objective = Annotated[
    tuple[InstanceOf[PluginCall], ...],
    BeforeValidator(_parse_objective),
    AfterValidator(_any_weight),
    PlainSerializer(_objective_fields, return_type=dict[str, Any]),
    WithJsonSchema({"type": "object"}),
]
"""The terms of an objective. In JSON: every parameter by term name. In memory: one ``PluginCall`` for each term."""


def _parse_targets(value: Any) -> Any:
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("targets is empty; allowed: all-linear, or the names of linear layers")
        return tuple(sorted({str(v) for v in value}))
    return value


class FinetuneSettings(Schema):
    """One LoRA fine-tune.

    Defaults are those of the source system (arXiv 2503.21088, section 4.1).
    """

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


MethodParameters = Annotated[
    InstanceOf[BaseModel],
    PlainSerializer(lambda given: given.model_dump(mode="json"), return_type=dict[str, Any]),
    WithJsonSchema({"type": "object"}),
]
"""The parameters of a merge method. In JSON: an object. In memory: an instance of the method's own model."""


class Architecture(Schema):
    """A small model to be built from scratch.

    Its byte-level BPE tokenizer is trained on its own rows.
    """

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


class MemorizeSettings(Schema):
    """Full training on every row, until the model knows them all."""

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


class EvaluateSettings(Schema):
    """How a model is asked.

    Batch size and dtype change bits, so they are in the key.
    """

    batch_size: Count = Field(32, description="Prompts generated side by side.")
    max_new_tokens: Count = Field(256, description="The SemEval task's limit.")
