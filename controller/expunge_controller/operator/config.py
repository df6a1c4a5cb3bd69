"""What an installation decides for every Experiment of it: where artifacts lie, what may be read, how much runs."""

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
    """What one Experiment may ask of the process that serves all of them."""

    trials: int = MOST_TRIALS
    """Trials of a sweep."""
    input_bytes: int = 64 * 2**20
    """Bytes of an Experiment's data files, all together: their rows are checked here."""
    object_bytes: int = 32 * 2**20
    """Bytes of any other object that is read whole: records, manifests, failures."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an installation decides. ``site`` is every namespace's but for its name and its part of the store."""

    namespaces: tuple[str, ...]
    store: str
    """A namespace's artifacts lie below it, in a folder of the namespace's name."""
    site: PodConfig
    inputs: tuple[str, ...] = ("{store}", "hf://")
    """Prefixes of what an experiment may read; ``{store}``: the namespace's own part of the store."""
    limits: Limits = Limits()
    max_jobs: int = 5000
    workers: int = 8
    state: Path | None = None
    """A folder that outlives this program: it remembers which Experiments it was beginning."""

    def check_inputs(self, loaded: Loaded, namespace: str) -> None:
        """Whether an experiment of this namespace may read what it names.

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
    """Where a namespace's artifacts lie, and the address's options with their question mark."""
    place, mark, options = store.partition("?")
    return f"{place.rstrip('/')}/{namespace}", mark + options
