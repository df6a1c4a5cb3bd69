"""Artifacts, attempts and the manifest that is written last.

    artifacts/<kind>/<key>/attempts/<attempt>.json     the attempt's record, written first
    artifacts/<kind>/<key>/attempts/<attempt>/...      its files, log, checkpoints and end.json
    artifacts/<kind>/<key>/manifest.json               only if none is there: the artifact is whole
    artifacts/<kind>/<key>/damaged.json                a step that needed it found other bytes than the manifest's

A manifest exists if and only if the artifact is whole; two attempts never mix their files; the first to finish wins.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from expunge_jobs.artifacts.cache import ModelCache
from expunge_jobs.core.errors import DamagedInput, ExitCode
from expunge_jobs.core.schema import Model
from expunge_jobs.store import MEDIUM, SMALL, Conflict, NotFound, Store, sha256_of
from expunge_jobs.tasks.tasks import ArtifactRef, Task, canonical


class StoredFile(Model):
    """``path`` is the file's name in the artifact; it lies in the folder of the attempt that won."""

    path: str
    size: int
    sha256: str


class Manifest(Model):
    """A finished step's receipt: what was made, from what, by which versions, where and when (UTC)."""

    format: Literal[1] = 1
    kind: str
    key: str
    attempt: str
    task: dict[str, Any]
    files: tuple[StoredFile, ...]
    figures: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    device: str = "cpu"
    threads: int = 1
    processes: int = 1
    started: str
    ended: str


class Record(Model):
    """An attempt's first words; attempts are counted by these. ``job``: the uid of its Job, on a cluster."""

    attempt: str
    started: str
    job: str = ""
    host: str = ""
    pid: int = 0


class End(Model):
    """How an attempt ended that did not win: exit code or signal, and the reason in words."""

    exit_code: int | None = None
    signal: str | None = None
    reason: str
    ended: str


MOST_ATTEMPTS = 1000
LOG, LOG_PARTS = "log.jsonl", "log"
"""An attempt's log: a file, or a folder of parts in order."""


class Damage(Model):
    """What a step found of an artifact that it needed. ``attempt``: whose files these are."""

    attempt: str
    reason: str
    found: str


CHECKPOINTS = "checkpoints"
"""Folder below an attempt's of what a later attempt may go on from (see runtime/checkpoints.py)."""


def now() -> str:
    """UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def folder(ref: ArtifactRef) -> str:
    """The artifact's folder in the store."""
    return f"artifacts/{ref.kind}/{ref.key}"


def manifest_path(ref: ArtifactRef) -> str:
    """Where the manifest lies, if the artifact is whole."""
    return f"{folder(ref)}/manifest.json"


def read_manifest(store: Store, ref: ArtifactRef) -> Manifest | None:
    """The manifest, or None while the artifact is not whole.

    Raises:
        DamagedInput: something is there that is no manifest.
    """
    try:
        data, _ = store.get(manifest_path(ref), MEDIUM)
    except NotFound:
        return None
    try:
        return Manifest.model_validate_json(data)
    except ValueError:
        raise DamagedInput(
            f"{store.name}/{manifest_path(ref)} is not a manifest: delete it and run again", folder(ref)
        ) from None


def attempts(store: Store, ref: ArtifactRef) -> list[Record]:
    """The records of the attempts at this step, oldest first; of thousands, the newest."""
    prefix = f"{folder(ref)}/attempts"
    depth = prefix.count("/") + 1
    found = [e for e in store.list(prefix) if e.path.count("/") == depth and e.path.endswith(".json")]
    newest = sorted(found, key=lambda e: e.modified)[-MOST_ATTEMPTS:]
    records = [Record.model_validate_json(store.get(e.path, SMALL)[0]) for e in newest]
    return sorted(records, key=lambda r: (r.started, r.attempt))


def disturbed(store: Store, ref: ArtifactRef, job: str) -> int:
    """How many attempts of this Job, the latest in a row, ended without a checkpoint that they left."""
    left = {p.split("/attempts/")[1].split("/")[0] for p in checkpoints_of(store, ref)}
    count = 0
    for record in reversed([r for r in attempts(store, ref) if r.job == job]):
        if record.attempt in left:
            break
        count += 1
    return count


def read_log(store: Store, ref: ArtifactRef, attempt: str) -> bytes | None:
    """What an attempt has said so far, or None if nothing of it was kept."""
    place = f"{folder(ref)}/attempts/{attempt}"
    parts = [e.path for e in store.list(f"{place}/{LOG_PARTS}")]
    if parts:
        return b"".join(store.get(p)[0] for p in parts)
    try:
        return store.get(f"{place}/{LOG}")[0]
    except NotFound:
        return None


def checkpoints_of(store: Store, ref: ArtifactRef) -> list[str]:
    """Paths of every attempt's checkpoints at this step."""
    return [e.path for e in store.list(f"{folder(ref)}/attempts") if f"/{CHECKPOINTS}/" in e.path]


def fetch(store: Store, ref: ArtifactRef, into: Path, cache: ModelCache | None = None) -> Path:
    """The artifact's files (of ``ref.folder`` alone, if it names one) as a local folder, each checked; by way of ``cache``,
    a folder that outlives the step, if there is one.

    Raises:
        DamagedInput: no manifest, a file missing, or bytes that are not the manifest's; says which, and what to do.
    """
    manifest = read_manifest(store, ref)
    if manifest is None:
        raise DamagedInput(f"the {ref.kind} artifact {ref.key[:16]} is not there: run the experiment again")
    prefix = f"{ref.folder}/" if ref.folder else ""
    files = [f for f in manifest.files if f.path.startswith(prefix)]
    attempt = f"{folder(ref)}/attempts/{manifest.attempt}"

    def one(file: StoredFile) -> None:
        path = f"{attempt}/{file.path}"
        local = store.local_path(path)
        for _ in range(1 if local else 2):  # what was spoilt on its way is right the second time
            try:
                place = local or into / ref.key / file.path
                if local is None:
                    get = partial(store.get_file, path)
                    if cache is None:
                        get(place)
                    elif cache.fetch(file.sha256, place, get, lambda p: sha256_of(p) == file.sha256):
                        return
                found = sha256_of(place)
            except (NotFound, FileNotFoundError):
                found = "missing"
            if found == file.sha256:
                return
        what = "is missing" if found == "missing" else "is not what was written (SHA-256 differs)"
        raise DamagedInput(
            f"damaged artifact: {store.name}/{path} {what}; `expunge retry` makes it anew, "
            f"or delete {store.name}/{manifest_path(ref)} and run again",
            folder(ref), manifest.attempt,
        )  # fmt: skip

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, files))
    local = store.local_path(f"{attempt}/{ref.folder}" if ref.folder else attempt)
    return local if local is not None else into / ref.key / ref.folder


def find_damaged(store: Store, refs: Iterable[ArtifactRef]) -> Iterator[DamagedInput]:
    """Those artifacts whose bytes are not what their manifests say; each is read."""
    for ref in refs:
        with tempfile.TemporaryDirectory(prefix="expunge-") as scratch:
            try:
                fetch(store, ref, Path(scratch))
            except DamagedInput as error:
                yield error


def mark_damaged(store: Store, error: DamagedInput) -> None:
    """Say beside an artifact that it is not whole: whoever runs again can give it up without reading it."""
    if error.folder:
        damage = Damage(attempt=error.attempt, reason=str(error).partition(";")[0], found=now())
        store.put(f"{error.folder}/damaged.json", damage.model_dump_json().encode())


def give_up_damaged(store: Store, ref: ArtifactRef) -> str:
    """Delete the manifest of an artifact that a step found damaged, so that it is made anew; why, or nothing where all is well.

    Not every server can delete on a condition: between the two looks another runner may have made it anew, and then it is made
    once more.
    """
    mark = f"{folder(ref)}/damaged.json"
    try:
        damage = Damage.model_validate_json(store.get(mark, SMALL)[0])
    except NotFound:
        return ""
    try:
        manifest = read_manifest(store, ref)
        same = manifest is not None and manifest.attempt == damage.attempt
    except DamagedInput:
        same = True
    store.delete([manifest_path(ref), mark] if same else [mark])
    return damage.reason if same else ""


class Attempt:
    """One try at a step. Use: ``begin``, write files into a local folder, ``publish``; else ``end``."""

    def __init__(self, store: Store, ref: ArtifactRef, attempt: str) -> None:
        self.store, self.ref, self.id = store, ref, attempt
        self.folder = f"{folder(ref)}/attempts/{attempt}"
        self.started = now()
        self._unsure = False
        """The manifest was sent, and whether it is there is not known."""

    def begin(self, host: str, pid: int, job: str = "") -> None:
        """Write the record: from here on this attempt counts."""
        record = Record(attempt=self.id, started=self.started, job=job, host=host, pid=pid)
        self.store.put(f"{self.folder}.json", record.model_dump_json().encode())

    def publish(
        self, task: Task, source: Path, figures: dict[str, Any], versions: dict[str, str], device: str, threads: int,
        processes: int = 1,
    ) -> bool:  # fmt: skip
        """Upload every file below ``source``, then the manifest, if none is there. True: this attempt won."""
        files = []
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            name = file.relative_to(source).as_posix()
            self.store.put_file(f"{self.folder}/{name}", file)
            files.append(StoredFile(path=name, size=file.stat().st_size, sha256=sha256_of(file)))
        manifest = Manifest(
            kind=self.ref.kind, key=self.ref.key, attempt=self.id, task=task.model_dump(mode="json"), files=tuple(files),
            figures=figures, versions=versions, device=device, threads=threads, processes=processes,
            started=self.started, ended=now(),
        )  # fmt: skip
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
        """The attempt that the manifest names."""
        try:
            manifest = read_manifest(self.store, self.ref)
        except DamagedInput:
            return None
        return manifest.attempt if manifest else None

    def own_files(self) -> list[str]:
        """What this attempt has written so far, but its log."""
        kept = (f"{self.folder}/{LOG}", f"{self.folder}/{LOG_PARTS}/", f"{self.folder}/end.json")
        return [e.path for e in self.store.list(self.folder) if not e.path.startswith(kept)]

    def end(self, reason: str, exit_code: int | None = None, signal: str | None = None) -> None:
        """Say how the attempt ended, and drop the files that it leaves half done, but not its checkpoints: the next attempt
        goes on from them, unless this one showed that no attempt can succeed. What was published, or may have been, stays."""
        winner = self._winner()
        if winner == self.id or (winner is None and self._unsure):
            return
        hopeless = exit_code == ExitCode.BAD_TASK
        checkpoints = f"{self.folder}/{CHECKPOINTS}/"
        self.store.delete([p for p in self.own_files() if hopeless or not p.startswith(checkpoints)])
        self.say_end(reason, exit_code, signal)

    def say_end(self, reason: str, exit_code: int | None = None, signal: str | None = None) -> None:
        """The record of an end alone; files stay."""
        end = End(exit_code=exit_code, signal=signal, reason=reason, ended=now())
        with contextlib.suppress(Conflict):  # of a team, whoever failed first says why: the others lost it
            self.store.put(f"{self.folder}/end.json", end.model_dump_json().encode(), if_absent=True)
