"""The checkpoints of a training step.

An attempt that is killed loses only the steps since the last checkpoint.

    attempts/<attempt>/checkpoints/<step>.pt       the trainer's state after <step> optimizer steps
    attempts/<attempt>/checkpoints/files/...       the artifact's files so far, each file once
    attempts/<attempt>/checkpoints/<step>.json     written last: names and SHA-256 of both

A new attempt resumes from the newest whole checkpoint of any attempt and writes only to its own folder.
Random numbers are drawn from hashes of the seed and the step; therefore a state holds none.
The weights of a resumed run equal those of an undisturbed run to the bit (same machine, versions and threads).
The checkpoints are deleted when the step is done.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from pydantic import ValidationError

from expunge_jobs.artifacts.attempts import CHECKPOINTS, Attempt, checkpoints_of
from expunge_jobs.core.errors import StepError
from expunge_jobs.core.schema import Schema
from expunge_jobs.runtime import shutdown
from expunge_jobs.runtime.distributed import WorkerGroup
from expunge_jobs.store import StoreError, sha256_of

State = dict[str, Any]
KEPT = 2
"""Number of its own checkpoints that an attempt keeps, since the newest may be damaged."""


class SavedFile(Schema):
    """A file of a checkpoint.

    ``name`` is the path below the artifact, or the state's file name. ``path`` is the path in the store.
    """

    name: str
    path: str
    sha256: str


class Checkpoint(Schema):
    """The contents of a checkpoint."""

    step: int
    state: SavedFile
    files: tuple[SavedFile, ...]


class Checkpoints:
    """The checkpoints of a step.

    Inside ``with``, the trainer calls ``restore`` once, then ``after`` at the end of each optimizer step.
    """

    def __init__(
        self,
        attempt: Attempt | None,
        out: Path,
        scratch: Path,
        seconds: float,
        notice: Callable[[str], None],
        resumed: Callable[[int], None],
        group: WorkerGroup | None = None,
    ) -> None:
        self.attempt, self.out, self.scratch, self.seconds = attempt, out, scratch, seconds
        self.notice, self.resumed, self.group = notice, resumed, group or WorkerGroup()
        self._saved: dict[str, SavedFile] = {}
        self._mine: list[str] = []
        self._last = time.monotonic()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._hold = shutdown.deferred()

    def __enter__(self) -> Checkpoints:
        self._hold.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hold.__exit__(kind, raised, traceback)
        self._writer.shutdown(wait=True)

    def restore(self) -> tuple[int, State] | None:
        """Return the step and the state of the newest whole checkpoint.

        The checkpoint's files are put below ``out`` again. The method returns None if no whole checkpoint exists.

        Raises:
            StepError: the ranks of a group found different checkpoints, since a rank could not read the newest.
        """
        found = self._newest()
        if not self.group.agrees(found[0] if found else 0):
            raise StepError("not every process could read the newest checkpoint: trying again")
        return found

    def _newest(self) -> tuple[int, State] | None:
        if self.attempt is None:
            return None
        store = self.attempt.store
        found = [p for p in checkpoints_of(store, self.attempt.ref) if re.search(r"/\d+\.json$", p)]
        for path in sorted(found, key=lambda p: int(Path(p).stem), reverse=True):
            try:
                checkpoint = Checkpoint.model_validate_json(store.get(path)[0])
                for file in checkpoint.files:
                    self._fetch(file, self.out / file.name)
                place = self.scratch / checkpoint.state.name
                self._fetch(checkpoint.state, place)
            except (StoreError, ValidationError, _Damaged) as error:
                self.notice(f"a checkpoint cannot be used ({error}); going on from an older one, or from the start")
                continue
            self._saved = {f.name: f for f in checkpoint.files}
            state: State = torch.load(place, map_location="cpu", weights_only=True)
            place.unlink()
            self.resumed(checkpoint.step)
            return checkpoint.step, state
        return None

    def after(self, step: int, state: Callable[[], State]) -> None:
        """Write a checkpoint in the background if the interval has passed.

        After SIGTERM, the checkpoint is written at once and the step ends.
        In a worker group, all ranks end after the same step and rank 0 writes.

        Raises:
            Terminated: SIGTERM has come, or a limit of the step's own is reached.
        """
        terminated = self.group.any(shutdown.requested())
        if self.attempt is None or not self.group.main:
            if terminated:
                raise shutdown.Terminated
            return
        if not terminated and (time.monotonic() - self._last < self.seconds or not self._idle()):
            return
        self._last = time.monotonic()
        copy = _copied(state())
        files = sorted(p.relative_to(self.out).as_posix() for p in self.out.rglob("*") if p.is_file())
        self._writing = self._writer.submit(self._write, step, copy, files)
        if terminated:
            self._wait()
            raise shutdown.Terminated

    def _idle(self) -> bool:
        """Return whether no checkpoint is being written.

        A failed write is reported as a notice, and training goes on.
        """
        if self._writing is not None:
            if not self._writing.done():
                return False
            self._wait()
        return True

    def _wait(self) -> None:
        assert self._writing is not None
        try:
            self._writing.result()
        except StoreError as error:
            self.notice(f"a checkpoint could not be written: {error}")
        self._writing = None

    def _write(self, step: int, state: State, files: list[str]) -> None:
        assert self.attempt is not None
        store, folder = self.attempt.store, f"{self.attempt.folder}/{CHECKPOINTS}"
        for name in files:
            if name not in self._saved:
                self._saved[name] = self._upload(name, f"{folder}/files/{name}", self.out / name)
        name = f"{step:08}.pt"
        place = self.scratch / f"new-{name}"
        torch.save(state, place)
        saved = self._upload(name, f"{folder}/{name}", place)
        place.unlink()
        checkpoint = Checkpoint(step=step, state=saved, files=tuple(self._saved[n] for n in files))
        store.put(f"{folder}/{step:08}.json", checkpoint.model_dump_json().encode())
        self._mine.append(f"{folder}/{step:08}")
        while len(self._mine) > KEPT:
            old = self._mine.pop(0)
            store.delete([f"{old}.json", f"{old}.pt"])

    def _upload(self, name: str, path: str, source: Path) -> SavedFile:
        assert self.attempt is not None
        saved = SavedFile(name=name, path=path, sha256=sha256_of(source))
        self.attempt.store.put_file(path, source)
        return saved

    def _fetch(self, file: SavedFile, to: Path) -> None:
        assert self.attempt is not None
        self.attempt.store.get_file(file.path, to)
        if sha256_of(to) != file.sha256:
            raise _Damaged(f"{file.path} is not what was written")


class _Damaged(Exception):
    pass


def _copied(value: Any) -> Any:
    """Return the value with every tensor copied into main memory.

    Training changes its own tensors in place; therefore the writer needs a copy.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(v) for v in value)
    return value
