"""The experiment file as types: YAML -> ``Experiment``.

The module is pure. The words for errors are in messages.py.

    apiVersion: expunge.dev/v1alpha1
    kind: Experiment
    metadata: {name: semeval}
    spec: {model: ..., data: ..., specialists: ..., merge: ..., evaluate: ..., sweep: ...}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from expunge_jobs import plugins
from expunge_jobs.core.errors import suggestion
from expunge_jobs.core.schema import Count, Float, Int, Positive, Schema, Seed
from expunge_jobs.plugins import PluginCall
from expunge_jobs.tasks.references import Dtype, Template
from expunge_jobs.tasks.settings import (
    Architecture,
    EvaluateSettings,
    FinetuneSettings,
    MemorizeSettings,
    MethodParameters,
    NestedError,
    NestedErrors,
)
from pydantic import (
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from expunge_controller.experiment.presets import PRESETS
from expunge_controller.experiment.scheduling import Kubernetes, ResourcesByKind

API_VERSION = "expunge.dev/v1alpha1"
RESERVED = ("base", "merged")
REFERENCE = "reference"
"""Name of ``spec.reference`` in the table."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9_-]{0,38}[a-z0-9])?$")]
Address = Annotated[str, StringConstraints(min_length=1, max_length=2048, pattern=r"^[^\x00-\x1f\x7f]*$")]


class Remainder(Schema):
    """Documents of a file that ``data.documents`` leaves over."""

    source: Literal["forget", "retain"] = Field(alias="from", description="Whose file.")
    documents: Count = Field(description="So many a task.")


def _template_kind(value: Any) -> str:
    return "object" if isinstance(value, dict | Template) else "word"


TemplateField = Annotated[
    Annotated[Literal["none", "chat"], Tag("word")] | Annotated[Template, Tag("object")], Discriminator(_template_kind)
]


class Data(Schema):
    """Rows to forget, rows to keep, and rows to judge by.

    Addresses: builtin://, s3://, file:// or a path.
    """

    forget: Address = Field(description="Rows to forget.")
    retain: Address = Field(description="Rows to keep.")
    probe: Address | Remainder | None = Field(None, description="Rows that the model knows and no fine-tune sees.")
    members: Address | None = Field(None, description="Documents that were trained on; default: forget's completions.")
    nonmembers: Address | Remainder | None = Field(None, description="Documents that no training saw, for membership.")
    mmlu: Address | None = Field(
        None, description="Multiple-choice questions: subject, question, choices, answer, split."
    )
    documents: Count | None = Field(
        None, description="Of forget, retain and probe: so many a task, by a hash of the id."
    )
    seed: Seed = Field(0, description="Which documents, and what builtin:// data is made.")
    separator: str = Field(" ", description="Between input and output.")
    template: TemplateField = Field(
        "none", description="chat: prompts by the tokenizer's own template. An object: {kind, name, system, arguments}."
    )
    max_length: Annotated[Int, Field(ge=4)] = Field(256, description="Tokens of a row in training.")
    overlap: Literal["refuse", "drop_from_retain"] = Field("refuse", description="A row in forget and in retain.")

    @model_validator(mode="after")
    def _rest_needs_documents(self) -> Data:
        for name in ("probe", "nonmembers"):
            if isinstance(getattr(self, name), Remainder) and self.documents is None:
                raise ValueError(
                    f"{name} is the rest of a file, so data.documents must say how many the set itself takes"
                )
        return self


class Memorize(MemorizeSettings):
    """The training of the model that is to forget.

    It starts from an architecture, or from ``spec.model`` where that is given.
    """

    architecture: Architecture | None = None
    learning_rate: Positive | None = Field(  # type: ignore[assignment]
        None, description="Peak; cosine to 0 over all epochs. Default: 3e-3 from random weights, 1e-4 from spec.model."
    )
    dtype: Dtype = Field(
        "float32", description="Of the training, and of the model made. bfloat16 loses updates below half a unit."
    )


class Finetune(FinetuneSettings):
    """A LoRA fine-tune; fields of ``preset`` where none is given."""

    preset: str | None = Field(None, description="Fields by name; see `expunge list presets`.")

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        name = value.get("preset") if isinstance(value, dict) else None
        if not isinstance(name, str):
            return value
        if name not in PRESETS:
            text = f"unknown preset '{name}'; one of: {', '.join(PRESETS)}{suggestion(name, list(PRESETS))}"
            raise NestedErrors([NestedError(("preset",), ValueError(text))])
        return {**PRESETS[name].fields, **value}


class ExternalAdapter(Schema):
    """A LoRA adapter that exists, in PEFT's format."""

    adapter: Address = Field(description="s3:// (see `expunge upload`) or a path.")


class RetainOnly(Schema):
    """A model that never saw forget: memorize again, without it.

    Fields left out are those of ``spec.memorize``.
    """

    memorize: dict[str, Any] = Field(description="Fields that differ from spec.memorize's.")

    @model_validator(mode="after")
    def _known_fields(self) -> RetainOnly:
        try:
            Memorize.model_validate(self.memorize)
        except ValidationError as error:
            raise NestedErrors([NestedError(("memorize",), error, Memorize)]) from None
        return self


class ExternalModel(Schema):
    """A model that exists and never saw forget."""

    model: Address = Field(description="hf://org/name@revision, s3:// (see `expunge upload`), or a path.")


def _reference_kind(value: Any) -> str:
    given = isinstance(value, ExternalModel) or (isinstance(value, dict) and "model" in value)
    return "existing" if given else "retain_only"


Reference = Annotated[
    Annotated[RetainOnly, Tag("retain_only")] | Annotated[ExternalModel, Tag("existing")],
    Discriminator(_reference_kind),
]


def _specialist_kind(value: Any) -> str:
    if isinstance(value, ExternalAdapter) or (isinstance(value, dict) and "adapter" in value):
        return "existing"
    return "finetune"


def _baseline_kind(value: Any) -> str:
    if isinstance(value, RetainOnly) or (isinstance(value, dict) and "memorize" in value):
        return "retain_only"
    return _specialist_kind(value)


Specialist = Annotated[
    Annotated[Finetune, Tag("finetune")] | Annotated[ExternalAdapter, Tag("existing")], Discriminator(_specialist_kind)
]
Baseline = Annotated[
    Annotated[Finetune, Tag("finetune")]
    | Annotated[ExternalAdapter, Tag("existing")]
    | Annotated[RetainOnly, Tag("retain_only")],
    Discriminator(_baseline_kind),
]


class Merge(Schema):
    """The merge of the specialists into one adapter.

    A method's own parameters stand beside ``method``: {method: ties, density: 0.8}.
    """

    method: str = Field("ties", description="See `expunge list methods`.")
    weights: dict[str, Float] = Field(default_factory=dict, description="By specialist; 1 where none is given.")
    parameters: MethodParameters = Field(cast("Any", None), description="The method's own.")

    @model_validator(mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        method = value.get("method", "ties")
        if not isinstance(method, str):
            return value
        try:
            plugin = plugins.load("merge_methods", method)
        except ValueError as error:
            raise NestedErrors([NestedError(("method",), error)]) from None
        own = {k: v for k, v in value.items() if k not in ("method", "weights", "parameters")}
        given = value.get("parameters") or {}
        if not isinstance(given, dict):
            said = f"found {given}; allowed: a mapping of the method's parameters"
            raise NestedErrors([NestedError(("parameters",), ValueError(said))])
        # Either place is right: beside the method, or below ``parameters``.
        place = ("parameters",) if given and not own else ()
        own = given | own
        unknown = [k for k in own if k not in plugin.Parameters.model_fields]
        if unknown:
            allowed = ["method", "weights", *plugin.Parameters.model_fields]
            said = f"unknown field of method {method}; allowed: {', '.join(allowed)}"
            raise NestedErrors(
                [NestedError((*place, str(k)), ValueError(said + suggestion(str(k), allowed))) for k in unknown]
            )
        try:
            parameters = PluginCall.of("merge_methods", method, own).parameters
        except ValidationError as error:
            raise NestedErrors([NestedError(place, error, plugin.Parameters)]) from None
        return {k: v for k, v in value.items() if k in ("method", "weights")} | {"parameters": parameters}

    @property
    def call(self) -> PluginCall:
        """The method with its parameters."""
        return PluginCall("merge_methods", self.method, self.parameters)


def _control_kind(value: Any) -> str:
    try:
        float(value)
    except (TypeError, ValueError):
        return "word" if isinstance(value, str) else "number"
    return "number"


Control = Annotated[
    Annotated[Float, Field(gt=0), Tag("number")] | Annotated[Literal["norm"], Tag("word")], Discriminator(_control_kind)
]
"""Factor of a specialist's update; or the factor that gives it the norm of the merge's update."""


class Evaluate(EvaluateSettings):
    """How every model is judged."""

    controls: tuple[Control, ...] = Field(
        (0.5,),
        description="Each specialist is also judged with its update times these; norm: as large as the merge's update.",
    )

    @field_validator("controls")
    @classmethod
    def _distinct(cls, value: tuple[Control, ...]) -> tuple[Control, ...]:
        if 1 in value:
            raise ValueError("1 is the specialist itself, which is judged anyway")
        if twice := [v for n, v in enumerate(value) if v in value[:n]]:
            raise ValueError(f"{twice[0]} is there twice")
        return value


class Spec(Schema):
    """One experiment, or with ``sweep`` a grid of them."""

    model: Address | None = Field(
        None, description="hf://org/name@revision, s3:// (see `expunge upload`), or a path to a model directory."
    )
    memorize: Memorize | None = None
    data: Data
    seed: Seed = Field(42, description="The unlearning's: A's start, order of the data, dropout, random merges.")
    dtype: Dtype = Field("checkpoint", description="Of the base's weights; adapters are float32.")
    presets: dict[Name, dict[str, Any]] = Field(
        default_factory=dict, description="Fields of fine-tunes by a name of your own; `preset` may name another."
    )
    specialists: dict[Name, Specialist] = Field(
        default_factory=dict, description="Fine-tunes to be merged, by name: one forgets too much, one too little."
    )
    baselines: dict[Name, Baseline] = Field(default_factory=dict, description="Judged beside the merge, never merged.")
    reference: Reference | None = Field(
        None, description="A model that never saw forget: what the others should become. No rival of the merge."
    )
    merge: Merge | None = None
    evaluate: Evaluate = Field(default_factory=lambda: Evaluate.model_validate({}))
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default_factory=dict, description="Values by path below spec; every combination is a trial."
    )
    parallel: Count = Field(8, description="Steps at once.")
    resources: ResourcesByKind = Field(default_factory=ResourcesByKind)
    kubernetes: Kubernetes = Field(default_factory=Kubernetes, description="Ignored where there is no cluster.")
    suspend: bool = Field(False, description="For the operator: start nothing new; what runs, goes on.")
    cancel: bool = Field(False, description="For the operator: end what runs, and start nothing.")

    @model_validator(mode="before")
    @classmethod
    def _expand_presets(cls, value: Any) -> Any:
        """Expand the file's own presets where fine-tunes name them."""
        own = value.get("presets") if isinstance(value, dict) else None
        if not isinstance(own, dict) or not own:
            return value
        errors: list[NestedError] = []
        for name, fields in own.items():
            if name in PRESETS:
                said = f"'{name}' is a preset that there is already; choose another name"
                errors.append(NestedError(("presets", str(name)), ValueError(said)))
                continue
            try:
                Finetune.model_validate(fields)
            except ValidationError as error:
                errors.append(NestedError(("presets", str(name)), error, Finetune))
        out = dict(value)
        known = [*PRESETS, *map(str, own)]
        for group in ("specialists", "baselines"):
            models = value.get(group)
            for name, given in models.items() if isinstance(models, dict) else ():
                preset = given.get("preset") if isinstance(given, dict) else None
                if not isinstance(preset, str) or preset in PRESETS:
                    continue
                if preset not in own:
                    said = f"unknown preset '{preset}'; one of: {', '.join(known)}{suggestion(preset, known)}"
                    errors.append(NestedError((group, str(name), "preset"), ValueError(said)))
                elif isinstance(fields := own[preset], dict):
                    out[group] = out[group] | {name: fields | {k: v for k, v in given.items() if k != "preset"}}
        if errors:
            raise NestedErrors(errors)
        return out

    @model_validator(mode="after")
    def _whole(self) -> Spec:
        if self.model is None and self.memorize is None:
            raise ValueError("neither model nor memorize: say which model is to forget")
        if self.memorize is not None:
            self._check_start("memorize", self.memorize)
        if self.merge is not None and len(self.specialists) < 2:
            raise ValueError(f"a merge needs two or more specialists, found {len(self.specialists)}")
        if self.specialists and self.merge is None:
            raise ValueError("specialists are there to be merged: give merge, or make them baselines")
        if not self.specialists and not self.baselines:
            raise ValueError("nothing to do: give specialists and merge, or baselines")
        self._check_names()
        self._check_mergeable()
        return self

    def retain_only(self, given: RetainOnly) -> Memorize:
        """Return the complete settings of a retain-only model.

        The spec must have ``memorize``.
        """
        assert self.memorize is not None, "checked with the experiment"
        return Memorize.model_validate(self.memorize.model_dump(mode="json", exclude_unset=True) | given.memorize)

    def _check_start(self, name: str, memorize: Memorize) -> None:
        if (memorize.architecture is None) == (self.model is None):
            raise ValueError(f"{name} starts from spec.model or from {name}.architecture: give one of the two")

    def _check_names(self) -> None:
        for name in (*self.specialists, *self.baselines):
            if name in RESERVED:
                raise ValueError(f"'{name}' names another model of the table; choose another name")
        both = sorted(set(self.specialists) & set(self.baselines))
        if both:
            raise ValueError(f"'{both[0]}' is a specialist and a baseline: each model has a name of its own")
        if self.reference is not None and REFERENCE in {*self.specialists, *self.baselines}:
            raise ValueError(f"'{REFERENCE}' names spec.reference in the table; choose another name")
        named = {f"baselines.{name}": baseline for name, baseline in self.baselines.items()}
        for place, model in (named | {REFERENCE: self.reference}).items():
            if isinstance(model, RetainOnly):
                if self.memorize is None:
                    raise ValueError(f"{place}: memorize needs spec.memorize, whose fields it takes over")
                self._check_start(f"{place}.memorize", self.retain_only(model))

    def _check_mergeable(self) -> None:
        if self.merge is None:
            return
        for name in self.merge.weights:
            if name not in self.specialists:
                known = list(self.specialists)
                raise ValueError(
                    f"merge.weights: no specialist '{name}'; one of: {', '.join(known)}{suggestion(name, known)}"
                )
        tunes = {n: s for n, s in self.specialists.items() if isinstance(s, Finetune)}
        on_factors = self.merge.call.plugin.ACTS_ON == "factors"
        for field in ("rank", "targets") if on_factors else ("targets",):
            found = {n: getattr(s, field) for n, s in tunes.items()}
            if len(set(found.values())) > 1:
                said = ", ".join(f"{n} {v}" for n, v in found.items())
                how = " on A and B" if field == "rank" else ""
                raise ValueError(f"specialists of different {field} cannot be merged{how}: {said}")


class Metadata(Schema):
    """The experiment's name; results lie under it."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$")]
    namespace: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class Experiment(Schema):
    """An experiment file."""

    apiVersion: Literal["expunge.dev/v1alpha1"]
    kind: Literal["Experiment"]
    metadata: Metadata
    spec: Spec
