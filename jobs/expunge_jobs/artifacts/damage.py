"""Artifacts whose bytes differ from their manifests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from expunge_jobs.artifacts.manifests import fetch, folder, manifest_path, now, read_manifest
from expunge_jobs.core.errors import DamagedInput
from expunge_jobs.core.schema import Schema
from expunge_jobs.store import SMALL, NotFound, Store
from expunge_jobs.tasks.references import ArtifactRef


class Damage(Schema):
    """The damage that a step found in an input artifact.

    ``attempt`` is the attempt that wrote the damaged files.
    """

    attempt: str
    reason: str
    found: str


def find_damaged(store: Store, refs: Iterable[ArtifactRef]) -> Iterator[DamagedInput]:
    """Yield an error for each artifact that differs from its manifest.

    Every artifact is read.
    """
    for ref in refs:
        with tempfile.TemporaryDirectory(prefix="expunge-") as scratch:
            try:
                fetch(store, ref, Path(scratch))
            except DamagedInput as error:
                yield error


def mark_damaged(store: Store, error: DamagedInput) -> None:
    """Mark an artifact in the store as damaged.

    A later run can then give up the artifact without reading its files.
    """
    if error.folder:
        damage = Damage(attempt=error.attempt, reason=str(error).partition(";")[0], found=now())
        store.put(f"{error.folder}/damaged.json", damage.model_dump_json().encode())


def give_up_damaged(store: Store, ref: ArtifactRef) -> str:
    """Delete the manifest of an artifact that is marked as damaged.

    The artifact is then produced again. Returns the reason, or an empty string if the artifact is not damaged.

    Not every server supports conditional deletes. Therefore another runner may have produced the artifact again between
    the read and the delete. In that case the artifact is produced once more.
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
