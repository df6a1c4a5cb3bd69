"""A checked experiment file or resource, with the trials of its sweep."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge_jobs.core.hashing import canonical
from pydantic import ValidationError

from expunge_controller.errors import ExperimentError
from expunge_controller.experiment.document import Document, read_document, swept_fields
from expunge_controller.experiment.messages import problems_of
from expunge_controller.experiment.schema import Experiment, Spec
from expunge_controller.text import printable

MOST_TRIALS = 5000
"""Maximum number of trials of a sweep. Planning takes some 40 KiB per trial. An installation may set another bound."""


MOST_BYTES = 64 * 2**20
"""Maximum size of a spec as JSON times its number of trials, in bytes. Each trial has a spec of its own."""


LONGEST_VALUE = 200
"""Maximum characters of a swept value in a trial's name. A longer value is shortened to its beginning and a digest."""


MODELS_A_TRIAL = 20
"""Models to judge per allowed trial, at most, over all trials. Specialists and controls decide their number."""


@dataclass(frozen=True)
class Trial:
    """One point of the sweep.

    ``group`` is the trial's name without the seed. Means are taken over the trials of a group.
    """

    name: str
    values: dict[str, Any]
    spec: Spec

    @property
    def group(self) -> str:
        return _trial_name({k: v for k, v in self.values.items() if "seed" not in swept_fields(k)})


@dataclass(frozen=True)
class Loaded:
    """A checked experiment file or resource, with every trial."""

    experiment: Experiment
    trials: list[Trial]
    document: Document

    @property
    def name(self) -> str:
        return self.experiment.metadata.name


def load_experiment(path: Path, overrides: list[str] | None = None) -> Loaded:
    """Load the experiment in a file, with ``--set`` overrides.

    Raises:
        ExperimentError: every problem of the file, each with its line and path.
    """
    return check_document(read_document(path, overrides or []))


def load_resource(resource: dict[str, Any], most_trials: int = MOST_TRIALS) -> Loaded:
    """Load the experiment of a custom resource, as the API server has it.

    The sweep has at most ``most_trials`` trials.

    Raises:
        ExperimentError: every problem, each with its path.
    """
    meta = resource["metadata"]
    raw = {k: resource.get(k) for k in ("apiVersion", "kind", "spec")} | {
        "metadata": {"name": meta["name"], "namespace": meta["namespace"]}
    }
    return check_document(Document(f"experiment {meta['name']}", raw), most_trials)


def check_document(document: Document, most_trials: int = MOST_TRIALS) -> Loaded:
    """Check the experiment of a document.

    The sweep has at most ``most_trials`` trials.

    Raises:
        ExperimentError: every problem, each with its path.
    """
    try:
        experiment = Experiment.model_validate(document.raw)
    except ValidationError as error:
        raise ExperimentError(problems_of(error, document, Experiment)) from None
    trials = _trials(document, experiment, most_trials)
    models, most = sum(_models(t.spec) for t in trials), MODELS_A_TRIAL * most_trials
    if models > most:
        said = f"{models:,} models to judge, over all trials; allowed: at most {most:,} "
        said += f"({MODELS_A_TRIAL} for each of limits.trials)"
        raise ExperimentError([document.at(("spec",), said)])
    return Loaded(experiment, trials, document)


def _models(spec: Spec) -> int:
    """Return the number of models that a trial judges.

    The models are the base, the reference, the specialists, the baselines, the merge and the merge's controls.
    """
    controls = len(spec.specialists) * len(spec.evaluate.controls)
    return (
        1
        + (spec.reference is not None)
        + len(spec.specialists)
        + len(spec.baselines)
        + (1 + controls if spec.merge else 0)
    )


def _trials(document: Document, experiment: Experiment, most: int) -> list[Trial]:
    sweep = experiment.spec.sweep
    if not sweep:
        return [Trial("default", {}, experiment.spec)]
    sizes = [len(values) for values in sweep.values()]
    if math.prod(sizes) > most:  # count before building any trial
        of = f" ({' x '.join(map(str, sizes))})" if len(sizes) > 1 else ""
        said = f"{math.prod(sizes):,} trials{of}; allowed: at most {most:,} (limits.trials)"
        raise ExperimentError([document.at(("spec", "sweep"), said)])
    size = len(json.dumps(document.raw["spec"], default=str))
    if size * math.prod(sizes) > MOST_BYTES:
        said = f"{math.prod(sizes):,} trials of a spec of {size:,} bytes; allowed: at most {MOST_BYTES:,} bytes in all"
        raise ExperimentError([document.at(("spec", "sweep"), said)])
    problems: list[str] = []
    for path, values in sweep.items():
        fields = swept_fields(path)
        if said := _unsweepable(fields, [f for other in sweep if other != path for f in swept_fields(other)]):
            problems.append(document.at(("spec", "sweep", path), said))
            continue
        seen: set[str] = set()
        for number, value in enumerate(values):
            # Check each value by itself first; therefore an error names the value, and not one of many combinations.
            place = ("spec", "sweep", path, number)
            point = document.with_values({path: value})
            try:
                spec = Experiment.model_validate(point.raw).spec
            except ValidationError as error:
                problems += [document.at(place, text) for text in problems_of(error, point, Experiment, place=False)]
                continue
            understood = spec.model_dump_json()  # here 0.5 and '5e-1' are the same value
            if understood in seen:
                problems.append(document.at(place, "the same value twice"))
            seen.add(understood)
    if problems:
        raise ExperimentError(problems)
    paths = sorted(sweep)
    trials = []
    for combination in itertools.product(*(sweep[p] for p in paths)):
        chosen = dict(zip(paths, combination, strict=True))
        point = document.with_values(chosen)
        try:
            spec = Spec.model_validate(point.raw["spec"])
        except ValidationError as error:
            texts = problems_of(error, point, Experiment, place=False)
            raise ExperimentError([f"{document.file}: trial {_trial_name(chosen)}: {t}" for t in texts]) from None
        trials.append(Trial(_trial_name(chosen), chosen, spec))
    return trials


def _unsweepable(fields: list[str], others: list[str]) -> str:
    """Return why fields cannot be swept together; empty if they can."""
    for field in fields:
        if field.split(".")[0] in ("sweep", "parallel", "resources", "kubernetes", "suspend", "cancel"):
            return f"'{field}' changes no result, so it cannot be swept"
        if field in others or fields.count(field) > 1:
            return f"'{field}' is swept twice"
    return ""


def _trial_name(values: dict[str, Any]) -> str:
    return ",".join(f"{k}={plain(values[k])}" for k in sorted(values)) or "default"


def plain(value: Any) -> str:
    """Return a swept value as names show it."""
    text = canonical(value) if isinstance(value, dict | list) else str(value)
    if len(text) > LONGEST_VALUE:
        text = f"{text[: LONGEST_VALUE - 20]}...{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return printable(text)
