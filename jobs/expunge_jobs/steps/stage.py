"""Copies a model or adapter of the hub into the store once, so that pods need neither the hub nor its token.

Steps that read it keep its address and commit as their input (so keys do not depend on where a step runs) and find the
copy by the key that follows from them. Artifact: ``model/``, safetensors only.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from expunge_jobs.inputs import model_folder, pinning
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.tasks.tasks import STAGED, StageTask


def run(task: StageTask, context: StepContext) -> dict[str, Any]:
    """Download and check; returns the receipt's figures."""
    folder = pinning.local_folder(task.source, context.scratch)
    model_folder.check_folder(folder)
    out = context.out / STAGED
    out.mkdir()
    files = model_folder.model_files(folder)
    for number, file in enumerate(files, 1):
        _link_or_copy(file.resolve(), out / file.name)
        context.progress(number, len(files))
    return {"files": len(files), "bytes": sum(f.stat().st_size for f in files)}


def _link_or_copy(file: Path, to: Path) -> None:
    try:
        os.link(file, to)
    except OSError:  # the hub's cache is on another filesystem
        shutil.copyfile(file, to)
