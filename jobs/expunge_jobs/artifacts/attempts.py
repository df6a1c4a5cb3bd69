"""Artifacts, attempts and the manifest that is written last.

    artifacts/<kind>/<key>/attempts/<attempt>.json     the attempt's record, written first
    artifacts/<kind>/<key>/attempts/<attempt>/...      the attempt's files, log, checkpoints and end.json
    artifacts/<kind>/<key>/manifest.json               written only if absent; the artifact is then complete
    artifacts/<kind>/<key>/damaged.json                a step found bytes other than the manifest's

A manifest exists if and only if the artifact is complete. Two attempts never mix their files. The first attempt to
finish wins.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from expunge_jobs.artifacts.manifests import Manifest, StoredFile, folder, manifest_path, now, read_manifest
from expunge_jobs.core.errors import DamagedInput, ExitCode
from expunge_jobs.core.hashing import canonical
from expunge_jobs.core.schema import Schema
from expunge_jobs.store import SMALL, Conflict, NotFound, Store, sha256_of
from expunge_jobs.tasks.references import ArtifactRef
from expunge_jobs.tasks.tasks import Task


class Record(Schema):
    """The record that an attempt writes first.

    Attempts are counted by their records. ``job`` is the uid of the attempt's Job on a cluster.
    """

    attempt: str
    started: str
    job: str = ""
    host: str = ""
    pid: int = 0


class End(Schema):
    """The end of an attempt that did not win.

    The fields hold the exit code or the signal, and the reason in words.
    """

    exit_code: int | None = None
    signal: str | None = None
    reason: str
    ended: str


MOST_ATTEMPTS = 1000
LOG, LOG_PARTS = "log.jsonl", "log"
"""Names of an attempt's log: a file, or a folder of parts in order."""


CHECKPOINTS = "checkpoints"
"""Folder of checkpoints in an attempt's folder. A later attempt may resume from them (see runtime/checkpoints.py)."""


def attempts(store: Store, ref: ArtifactRef) -> list[Record]:
    """Return the records of the attempts at a step, oldest first.

    The result holds the newest ``MOST_ATTEMPTS`` records at most.
    """
    prefix = f"{folder(ref)}/attempts"
    depth = prefix.count("/") + 1
    found = [e for e in store.list(prefix) if e.path.count("/") == depth and e.path.endswith(".json")]
    newest = sorted(found, key=lambda e: e.modified)[-MOST_ATTEMPTS:]
    records = [Record.model_validate_json(store.get(e.path, SMALL)[0]) for e in newest]
    return sorted(records, key=lambda r: (r.started, r.attempt))


def count_disruptions(store: Store, ref: ArtifactRef, job: str) -> int:
    """Count the Job's latest consecutive attempts without a checkpoint."""
    left = {p.split("/attempts/")[1].split("/")[0] for p in checkpoints_of(store, ref)}
    count = 0
    for record in reversed([r for r in attempts(store, ref) if r.job == job]):
        if record.attempt in left:
            break
        count += 1
    return count


def read_log(store: Store, ref: ArtifactRef, attempt: str) -> bytes | None:
    """Return an attempt's log so far, or None if no log was kept."""
    place = f"{folder(ref)}/attempts/{attempt}"
    parts = [e.path for e in store.list(f"{place}/{LOG_PARTS}")]
    if parts:
        return b"".join(store.get(p)[0] for p in parts)
    try:
        return store.get(f"{place}/{LOG}")[0]
    except NotFound:
        return None


def checkpoints_of(store: Store, ref: ArtifactRef) -> list[str]:
    """Return the paths of the checkpoints of all attempts at a step."""
    return [e.path for e in store.list(f"{folder(ref)}/attempts") if f"/{CHECKPOINTS}/" in e.path]


class Attempt:
    """An attempt at a step.

    Call ``begin``, write files into a local folder, then call ``publish``. If the attempt fails, call ``end``.
    """

    def __init__(self, store: Store, ref: ArtifactRef, attempt: str) -> None:
        self.store, self.ref, self.id = store, ref, attempt
        self.folder = f"{folder(ref)}/attempts/{attempt}"
        self.started = now()
        self._unsure = False
        """Whether the manifest was sent, so that its presence in the store is uncertain."""

    def begin(self, host: str, pid: int, job: str = "") -> None:
        """Write the record; from then on this attempt counts."""
        record = Record(attempt=self.id, started=self.started, job=job, host=host, pid=pid)
        self.store.put(f"{self.folder}.json", record.model_dump_json().encode())

    def publish(
        self,
        task: Task,
        source: Path,
        figures: dict[str, Any],
        versions: dict[str, str],
        device: str,
        threads: int,
        processes: int = 1,
    ) -> bool:
        """Upload every file below ``source``, then the manifest if absent.

        Returns whether this attempt won.
        """
        files = []
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            name = file.relative_to(source).as_posix()
            self.store.put_file(f"{self.folder}/{name}", file)
            files.append(StoredFile(path=name, size=file.stat().st_size, sha256=sha256_of(file)))
        manifest = Manifest(
            kind=self.ref.kind,
            key=self.ref.key,
            attempt=self.id,
            task=task.model_dump(mode="json"),
            files=tuple(files),
            figures=figures,
            versions=versions,
            device=device,
            threads=threads,
            processes=processes,
            started=self.started,
            ended=now(),
        )
        self._unsure = True
        try:
            self.store.put(
                manifest_path(self.ref), canonical(manifest.model_dump(mode="json")).encode(), if_absent=True
            )
        except Conflict:
            winner = read_manifest(self.store, self.ref)
            if winner is None or winner.attempt == self.id:
                return winner is not None
            self.store.delete(self.own_files())
            return False
        self.store.delete(checkpoints_of(self.store, self.ref))
        return True

    def _winner(self) -> str | None:
        """Return the attempt that the manifest names."""
        try:
            manifest = read_manifest(self.store, self.ref)
        except DamagedInput:
            return None
        return manifest.attempt if manifest else None

    def own_files(self) -> list[str]:
        """Return the paths of this attempt's files except its log and end."""
        kept = (f"{self.folder}/{LOG}", f"{self.folder}/{LOG_PARTS}/", f"{self.folder}/end.json")
        return [e.path for e in self.store.list(self.folder) if not e.path.startswith(kept)]

    def end(self, reason: str, exit_code: int | None = None, signal: str | None = None) -> None:
        """Record the end of the attempt and delete its unfinished files.

        Checkpoints stay, because the next attempt resumes from them. Exit code ``BAD_TASK`` shows that no attempt can
        succeed; then the checkpoints are deleted as well. A published attempt stays unchanged, as does an attempt that
        may have been published.
        """
        winner = self._winner()
        if winner == self.id or (winner is None and self._unsure):
            return
        hopeless = exit_code == ExitCode.BAD_TASK
        checkpoints = f"{self.folder}/{CHECKPOINTS}/"
        self.store.delete([p for p in self.own_files() if hopeless or not p.startswith(checkpoints)])
        self.say_end(reason, exit_code, signal)

    def say_end(self, reason: str, exit_code: int | None = None, signal: str | None = None) -> None:
        """Write only the record of the end, and leave the files."""
        end = End(exit_code=exit_code, signal=signal, reason=reason, ended=now())
        # Of several ranks, the first to fail knows the reason; therefore the first record stays.
        with contextlib.suppress(Conflict):
            self.store.put(f"{self.folder}/end.json", end.model_dump_json().encode(), if_absent=True)
