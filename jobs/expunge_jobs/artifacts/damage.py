"""Artifacts whose bytes are not what their manifests say."""

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
    """What a step found of an artifact that it needed. ``attempt``: whose files these are."""

    attempt: str
    reason: str
    found: str


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
