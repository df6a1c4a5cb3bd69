"""The manifest: the description of a complete artifact.

The manifest is written last. A manifest exists if and only if the artifact is complete.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from expunge_jobs.artifacts.cache import ModelCache
from expunge_jobs.core.errors import DamagedInput
from expunge_jobs.core.schema import Schema
from expunge_jobs.store import MEDIUM, NotFound, Store, sha256_of
from expunge_jobs.tasks.references import ArtifactRef


class StoredFile(Schema):
    """A file of an artifact.

    ``path`` is the file's name in the artifact. The file lies in the folder of the attempt that won.
    """

    path: str
    size: int
    sha256: str


class Manifest(Schema):
    """The receipt of a finished step.

    The fields state the files, the task, the versions, the device and the times (UTC).
    """

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


def now() -> str:
    """Return the current UTC time to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def folder(ref: ArtifactRef) -> str:
    """Return the artifact's folder in the store."""
    return f"artifacts/{ref.kind}/{ref.key}"


def manifest_path(ref: ArtifactRef) -> str:
    """Return the path of the artifact's manifest.

    The manifest exists only if the artifact is complete.
    """
    return f"{folder(ref)}/manifest.json"


def read_manifest(store: Store, ref: ArtifactRef) -> Manifest | None:
    """Return the manifest, or None while the artifact is incomplete.

    Raises:
        DamagedInput: the object at the manifest's path is not a manifest.
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


def fetch(store: Store, ref: ArtifactRef, into: Path, cache: ModelCache | None = None) -> Path:
    """Return a local folder with the artifact's files, each verified.

    ``ref.folder``, if set, selects one folder of the artifact. ``cache``, if given, is a folder that outlives the step.
    Remote files then pass through the cache.

    Raises:
        DamagedInput: no manifest, a missing file, or bytes other than the manifest's. Names the file and the remedy.
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
        for _ in range(1 if local else 2):  # a transfer may corrupt a file; therefore fetch a second time
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
            folder(ref),
            manifest.attempt,
        )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, files))
    local = store.local_path(f"{attempt}/{ref.folder}" if ref.folder else attempt)
    return local if local is not None else into / ref.key / ref.folder
