"""The step that copies a hub model or adapter into the store once.

Pods then need neither the hub nor its token.
Steps that read the model keep its hub address and commit as their input.
Keys therefore do not depend on where a step runs. The copy's own key follows from that address and commit.
The artifact is ``model/``, safetensors only.
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
    """Download and check the source; return the receipt's figures."""
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
