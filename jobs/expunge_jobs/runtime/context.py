"""The context that a job program receives besides its task.

The context gives inputs as local paths, an output folder and a way to report progress.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from expunge_jobs.artifacts.attempts import Attempt
from expunge_jobs.artifacts.cache import ModelCache
from expunge_jobs.artifacts.manifests import Manifest, fetch, read_manifest
from expunge_jobs.core.errors import DamagedInput
from expunge_jobs.inputs import addresses, pinning
from expunge_jobs.runtime import shutdown
from expunge_jobs.runtime.distributed import WorkerGroup
from expunge_jobs.runtime.events import emit
from expunge_jobs.store import Store
from expunge_jobs.tasks.references import ArtifactRef, Input
from expunge_jobs.tasks.tasks import staged

if TYPE_CHECKING:
    from expunge_jobs.runtime.checkpoints import Checkpoints

CHECKPOINT_SECONDS = 300.0
"""Default of the training time that a kill may cost, in seconds."""


class StepContext:
    """The inputs, folders and reports of one step.

    Everything below ``out`` becomes the artifact. ``scratch`` is deleted when the step ends.
    Without an ``attempt``, no checkpoint is written or read. ``cache`` is a folder that outlives the step
    (see cache.py).
    """

    def __init__(
        self,
        store: Store,
        out: Path,
        scratch: Path,
        threads: int = 1,
        attempt: Attempt | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        cache: ModelCache | None = None,
    ) -> None:
        self.store, self.out, self.scratch, self.threads = store, out, scratch, threads
        self.attempt, self.checkpoint_seconds, self.cache = attempt, checkpoint_seconds, cache
        self.group = WorkerGroup()
        self._clock, self._phase = _Clock(), ""

    def path(self, ref: ArtifactRef | Input) -> Path:
        """Return the local folder of an artifact or input, its bytes checked.

        An input is a model outside the store. A hub input is read from its staged copy if the store has that copy.

        Raises:
            DamagedInput: the artifact is not whole.
            BadTask: the input has changed since it was pinned.
        """
        if isinstance(ref, ArtifactRef):
            return fetch(self.store, ref, self.scratch, self.cache)
        if addresses.scheme(ref.uri) == "hf" and read_manifest(self.store, copy := staged(ref)) is not None:
            return fetch(self.store, copy, self.scratch, self.cache)
        return pinning.local_folder(ref, self.scratch, self.cache, shutdown.requested)

    def read(self, ref: Input) -> bytes:
        """Return the bytes of a data file, checked against its digest."""
        return pinning.read_checked(ref, shutdown.requested)

    def manifest(self, ref: ArtifactRef) -> Manifest:
        """Return the manifest of a needed artifact.

        Raises:
            DamagedInput: the artifact is not whole.
        """
        manifest = read_manifest(self.store, ref)
        if manifest is None:
            raise DamagedInput(f"the {ref.kind} artifact {ref.key[:16]} is not there: run the experiment again")
        return manifest

    def checkpoints(self) -> Checkpoints:
        """Return the checkpoints that save and restore a training loop's state."""
        from expunge_jobs.runtime.checkpoints import Checkpoints  # loads torch

        return Checkpoints(
            self.attempt,
            self.out,
            self.scratch,
            self.checkpoint_seconds,
            self.notice,
            lambda step: emit("resumed", step=step),
            self.group,
        )

    def progress(self, step: int, steps: int, tokens: int = 0, phase: str = "", **figures: float) -> None:
        """Report that ``step`` of ``steps`` is done.

        ``tokens`` is the number of tokens since the last call. ``phase`` names the work that comes before the main
        work, and has steps of its own.
        The report is sent at most twice a second, and at the end.
        """
        if phase != self._phase:
            self._clock, self._phase = _Clock(), phase
        line = self._clock.tick(step, steps, tokens)
        if line:
            emit("progress", step=step, steps=steps, **({"phase": phase} if phase else {}), **line, **figures)

    def notice(self, text: str) -> None:
        """Report a fact that the user should know and that is no error."""
        emit("notice", text=text)


class _Clock:
    def __init__(self) -> None:
        self.start = self.said = time.monotonic()
        self.tokens = 0
        self.first: int | None = None

    def tick(self, step: int, steps: int, tokens: int) -> dict[str, float] | None:
        now = time.monotonic()
        self.tokens += tokens
        if self.first is None:
            self.first, self.start = step - 1, now
        if now - self.said < 0.5 and step != steps:
            return None
        self.said = now
        spent = now - self.start
        done = step - self.first
        line = {"seconds_left": round(spent / done * (steps - step), 1)} if spent > 0 and done > 1 else {}
        if self.tokens and spent > 0:
            line["tokens_per_second"] = round(self.tokens / spent)
        return line
