"""Row scores of an evaluation, summed by document.

A comparison resamples documents. The rows hold generations, which a comparison does not need.
"""

from __future__ import annotations

import hashlib
import json

from expunge_jobs.artifacts.manifests import Manifest, folder, read_manifest
from expunge_jobs.core.hashing import canonical
from expunge_jobs.metrics import EvaluatedRow, Rows
from expunge_jobs.store import Store
from expunge_jobs.tasks.references import ArtifactRef

DocumentScores = dict[str, dict[str, dict[str, dict[str, list[float]]]]]
"""By set, task, document and kind: the sum of the row scores, and the number of rows.

A document is named by ``document_name``, since no manifest holds a row's own words.
"""
LARGEST = 1 << 20
"""Bytes of document scores in a manifest. Above this size, the rows are read instead."""


def document_name(document: str) -> str:
    """Return the first 16 digits of the SHA-256 of a document's id."""
    return hashlib.sha256(document.encode()).hexdigest()[:16]


def document_scores(rows: Rows) -> DocumentScores:
    """Return the sums of the rows that the task aggregate counts."""
    out: DocumentScores = {}
    for row in rows:
        if row.set in ("forget", "retain") and row.kind in ("sc", "qa") and row.score is not None:
            document = out.setdefault(row.set, {}).setdefault(row.task, {}).setdefault(document_name(row.document), {})
            total = document.setdefault(row.kind, [0.0, 0])
            total[0] += row.score
            total[1] += 1
    return out


def storable(scores: DocumentScores) -> DocumentScores | None:
    """Return the scores for a manifest, or None if they are too large for one."""
    return scores if len(canonical(scores)) <= LARGEST else None


def read_document_scores(store: Store, key: str) -> DocumentScores:
    """Return the document scores of an evaluation; empty while it is not done.

    Evaluations of earlier versions have them in their rows alone.

    Raises:
        StepError: a damaged evaluation.
    """
    ref = ArtifactRef(kind="evaluate", key=key)
    manifest = read_manifest(store, ref)
    if manifest is None:
        return {}
    stored: DocumentScores | None = manifest.figures.get("documents")
    return stored if stored is not None else document_scores(stored_rows(store, manifest))


def stored_rows(store: Store, manifest: Manifest) -> list[EvaluatedRow]:
    """Return the rows of a finished evaluation."""
    ref = ArtifactRef(kind=manifest.kind, key=manifest.key)
    data, _ = store.get(f"{folder(ref)}/attempts/{manifest.attempt}/rows.jsonl")
    return [EvaluatedRow(**json.loads(line)) for line in data.decode().splitlines()]
