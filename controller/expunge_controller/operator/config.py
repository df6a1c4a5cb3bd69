"""The settings of an installation for all its Experiments.

The settings say where artifacts are stored, which inputs may be read, and how much may run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from expunge_controller.errors import ExperimentError
from expunge_controller.execution.kubernetes.pod_config import PodConfig
from expunge_controller.experiment.loading import MOST_TRIALS, Loaded
from expunge_controller.planning.allowed import is_allowed
from expunge_controller.planning.trial_plan import inputs_of


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one Experiment in the process that serves all Experiments."""

    trials: int = MOST_TRIALS
    """Most trials of a sweep."""
    input_bytes: int = 64 * 2**20
    """Most bytes of all data files of an Experiment together, because this process checks their rows."""
    object_bytes: int = 32 * 2**20
    """Most bytes of any other object that is read whole: a record, a manifest or a failure."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of an installation.

    ``site`` holds for every namespace, except for the namespace's name and its part of the store.
    """

    namespaces: tuple[str, ...]
    store: str
    """URI of the store. The artifacts of a namespace are in the folder of the namespace's name."""
    site: PodConfig
    inputs: tuple[str, ...] = ("{store}", "hf://")
    """Prefixes of the inputs that an Experiment may read.

    ``{store}`` stands for the namespace's own part of the store.
    """
    limits: Limits = Limits()
    max_jobs: int = 5000
    workers: int = 8
    state: Path | None = None
    """A folder that survives a crash of the operator, and records the Experiments that were being begun."""

    def check_inputs(self, loaded: Loaded, namespace: str) -> None:
        """Check that an experiment of this namespace may read its inputs.

        Raises:
            ExperimentError: it may not; all of it at once.
        """
        own, query = own_part(self.store, namespace)
        allowed = [p.replace("{store}", own) for p in self.inputs]
        problems = []
        for trial in loaded.trials:
            asked = inputs_of(trial.spec)
            for path, uri in {**asked.files, **asked.models, **asked.adapters}.items():
                if not uri.startswith("builtin://") and not is_allowed(uri, allowed, query):
                    may = f"allowed: builtin://, {', '.join(allowed)} (see `expunge upload`)"
                    problems.append(loaded.document.at(("spec", *path), f"'{uri}' is not to be read from here; {may}"))
        if problems:
            raise ExperimentError(list(dict.fromkeys(problems)))


def own_part(store: str, namespace: str) -> tuple[str, str]:
    """Return a namespace's part of the store, and the store's options.

    The options include their question mark.
    """
    place, mark, options = store.partition("?")
    return f"{place.rstrip('/')}/{namespace}", mark + options
