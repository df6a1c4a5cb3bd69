"""The export of a trial's merged adapter or model from the store."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from expunge_jobs.artifacts.manifests import fetch
from expunge_jobs.core.errors import StepError, suggestion
from expunge_jobs.results.summary import EvaluatedModel
from expunge_jobs.store import Store
from expunge_jobs.tasks.references import ArtifactRef

from expunge_controller.errors import ExperimentError
from expunge_controller.planning.plan import Plan


def pull(store: Store, plan: Plan, trial: str | None, to: Path, full: bool) -> list[str]:
    """Write the adapter or model into a new or empty directory.

    Returns messages for the user.

    Raises:
        ExperimentError: no such trial, no merge, not merged yet, or the directory holds something.
    """
    row = _merged(plan, trial)
    assert row.ref is not None, "a plan made it"
    adapter = row.ref.adapters[-1].ref
    assert isinstance(adapter, ArtifactRef), "a merge is a step of ours"
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ExperimentError([f"--to {to}: holds something already; give a new or empty directory"])
    with tempfile.TemporaryDirectory(prefix="expunge-pull-") as scratch:
        try:
            source = fetch(store, adapter, Path(scratch))
        except StepError as error:
            step = plan.by_key[adapter.key]
            raise ExperimentError([f"{step.name} is not there to be pulled: {error}"]) from None
        if not full:
            shutil.copytree(source, to, dirs_exist_ok=True)
            return [
                f"{to}: the merged adapter of trial {row.trial} (PEFT's format).",
                "An adapter alone does not forget: its base still knows everything. --full writes the merged model.",
            ]
    # Writing the model needs torch, which the controller never loads; therefore the jobs package writes it.
    words = [sys.executable, "-m", "expunge_jobs.steps.fold", store.uri, row.ref.model_dump_json(), str(to)]
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if done.returncode:
        raise ExperimentError(
            [
                *(x.removeprefix("error: ") for x in done.stderr.splitlines()[-20:]),
                f"--to {to}: the model could not be written",
            ]
        )
    return [f"{to}: the merged model of trial {row.trial}, adapter folded in (Hugging Face's format)."]


def _merged(plan: Plan, trial: str | None) -> EvaluatedModel:
    merged = {r.trial: r for r in plan.models if r.model == "merged"}
    if not merged:
        raise ExperimentError(["this experiment has no merge: there is no merged adapter to pull"])
    if trial is None and len(merged) == 1:
        return next(iter(merged.values()))
    names = list(merged)
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    if trial is None:
        raise ExperimentError([f"this experiment has {len(names)} trials; say which: --trial NAME; one of: {shown}"])
    if trial not in merged:
        raise ExperimentError([f"--trial {trial}: no such trial; one of: {shown}{suggestion(trial, names)}"])
    return merged[trial]
