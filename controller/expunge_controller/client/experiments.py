"""Experiments that a cluster runs, as the command sees them.

The command submits, lists, reads, cancels and retries Experiments.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from expunge_jobs.core.errors import BadTask, suggestion
from expunge_jobs.data import rows as rows_of
from expunge_jobs.inputs import pinning
from expunge_jobs.store import Store

from expunge_controller.client.upload import upload
from expunge_controller.errors import ExperimentError
from expunge_controller.experiment.document import KeyPath
from expunge_controller.experiment.loading import Loaded
from expunge_controller.experiment.resource import FINAL, RETRY, resources_path
from expunge_controller.experiment.schema import API_VERSION
from expunge_controller.kube_client.client import ApiError, Cluster, Object
from expunge_controller.planning.allowed import is_allowed
from expunge_controller.planning.trial_plan import inputs_of

BACKEND = "kubernetes"
"""The backend on which the operator runs steps."""
POLL_SECONDS, UNSEEN_SECONDS = 2.0, 30.0
"""Seconds between two reads of an Experiment, and seconds before reporting that no operator has begun it."""


def read(cluster: Cluster, name: str) -> Object:
    """Read the Experiment of this name.

    Raises:
        ExperimentError: no such Experiment; with the nearest name that exists.
        ApiError: the cluster refuses, or does not answer.
    """
    try:
        return cluster.request("GET", resources_path(cluster.namespace, name))
    except ApiError as error:
        if error.status != 404:
            raise
        names = [e["metadata"]["name"] for e in _list(cluster)]
        said = f"no experiment '{name}' in namespace {cluster.namespace}{suggestion(name, names)}"
        raise ExperimentError([said]) from None


def store_of(resource: Object) -> str:
    """Return the address of an Experiment's artifacts, by its status.

    The operator writes the address.

    Raises:
        ExperimentError: no operator has seen it.
    """
    uri = (resource.get("status") or {}).get("store")
    if not uri:
        name, namespace = resource["metadata"]["name"], resource["metadata"]["namespace"]
        raise ExperimentError([f"no operator has begun experiment '{name}': does one watch namespace {namespace}?"])
    return str(uri)


def check_inputs(loaded: Loaded, store: str) -> None:
    """Refuse inputs that this command must not read for an Experiment.

    Another user may have written the Experiment, and the command reads with this user's permissions. Therefore only
    builtin data, the Experiment's own store and the hub are allowed.

    Raises:
        ExperimentError: a file of this machine, or another server.
    """
    place, mark, options = store.partition("?")
    problems = []
    for trial in loaded.trials:
        asked = inputs_of(trial.spec)
        for path, uri in {**asked.files, **asked.models, **asked.adapters}.items():
            if not uri.startswith("builtin://") and not is_allowed(uri, [place, "hf://"], mark + options):
                said = (
                    f"'{uri}' is not read by this command: no operator has begun this experiment, or its record is gone"
                )
                problems.append(loaded.document.at(("spec", *path), said))
    if problems:
        raise ExperimentError(list(dict.fromkeys(problems)))


def rows(cluster: Cluster) -> list[list[str]]:
    """Return name, phase, trials, steps, best and age of each Experiment.

    Raises:
        ApiError: the cluster refuses, or does not answer.
    """
    out = []
    for each in _list(cluster):
        meta, status = each["metadata"], each.get("status") or {}
        age = datetime.now(UTC) - datetime.fromisoformat(meta["creationTimestamp"])
        shown = [status.get(k) or "-" for k in ("phase", "trials", "steps", "best")]
        out.append([meta["name"], *shown, _age(age.total_seconds())])
    return out


def submit(cluster: Cluster, loaded: Loaded, store: Store | None) -> tuple[Object, bool]:
    """Create or change the Experiment.

    Returns the Experiment as the API server has it, and whether it existed before. With ``store``, local inputs are
    first put into the store.

    Raises:
        ExperimentError: inputs of this machine, and no store to put them into; what the API server refuses.
        ApiError: the cluster does not answer.
    """
    spec = _reachable(loaded, store)
    path = resources_path(cluster.namespace)
    meta: Object = {"name": loaded.name, "namespace": cluster.namespace}
    for field in ("labels", "annotations"):
        if given := getattr(loaded.experiment.metadata, field):
            meta[field] = given
    body = {"apiVersion": API_VERSION, "kind": "Experiment", "metadata": meta, "spec": spec}
    strict = {"fieldValidation": "Strict", "fieldManager": "expunge"}
    try:
        try:
            return cluster.request("POST", path, body, strict), False
        except ApiError as error:
            if error.status != 409:
                raise
        before = cluster.request("GET", f"{path}/{loaded.name}")
        body["metadata"] = before["metadata"] | {k: v for k, v in meta.items() if k in ("labels", "annotations")}
        return cluster.request("PUT", f"{path}/{loaded.name}", body, strict), True
    except ApiError as error:
        if error.status == 404:
            said = "this cluster knows no Experiments: install the chart, or use --executor kubernetes"
            raise ExperimentError([said]) from None
        if error.status in (400, 422):
            raise ExperimentError([f"the cluster refuses it: {error}"]) from None
        raise


def follow(cluster: Cluster, name: str) -> Iterator[tuple[str, str]]:
    """Yield an Experiment's phase and steps whenever they change.

    The iteration ends when the Experiment's present generation is in a final phase.

    Raises:
        ExperimentError: it is gone.
        ApiError: the cluster refuses, or does not answer.
    """
    told = ("", "")
    late = time.monotonic() + UNSEEN_SECONDS
    while True:
        found = read(cluster, name)
        status = found.get("status") or {}
        seen = status.get("observedGeneration") == found["metadata"]["generation"]
        now = (str(status.get("phase", "Pending")) if seen else "Pending", str(status.get("steps", "")))
        if not status and time.monotonic() > late:
            now = (f"Pending: no operator has begun it; does one watch namespace {cluster.namespace}?", "")
        if now != told:
            yield now
            told = now
        if now[0] in FINAL:
            return
        time.sleep(POLL_SECONDS)


def cancel(cluster: Cluster, name: str) -> None:
    """Ask the operator to end an Experiment's Jobs.

    Finished steps are kept.
    """
    read(cluster, name)
    cluster.request("PATCH", resources_path(cluster.namespace, name), {"spec": {"cancel": True}})


def retry(cluster: Cluster, name: str) -> None:
    """Ask the operator to retry failed steps, or to resume a cancelled run."""
    read(cluster, name)
    asked = {"metadata": {"annotations": {RETRY: datetime.now(UTC).isoformat()}}, "spec": {"cancel": False}}
    cluster.request("PATCH", resources_path(cluster.namespace, name), asked)


def _list(cluster: Cluster) -> list[Object]:
    return cluster.list(resources_path(cluster.namespace))[0]


def _reachable(loaded: Loaded, store: Store | None) -> Any:
    """Return the file's spec, with local inputs as addresses in the store.

    The local inputs are uploaded.
    """
    local: dict[str, list[tuple[str | int, ...]]] = {}
    for trial in loaded.trials:
        asked = inputs_of(trial.spec)
        for path, uri in {**asked.files, **asked.models, **asked.adapters}.items():
            if uri.startswith("file://") and path[0] == "data" and store is not None:
                _check_rows(loaded, path, uri)
            if uri.startswith("file://") and path not in local.setdefault(uri, []):
                local[uri].append(path)
    if local and store is None:
        said = "of this machine, which the cluster cannot read: give --upload and --store, or put it there by `expunge upload`"
        raise ExperimentError(
            [loaded.document.at(("spec", *p[0]), f"{u.removeprefix('file://')}: {said}") for u, p in local.items()]
        )
    spec: Any = loaded.document.raw["spec"]
    if store is not None:
        there = {uri: upload(store, Path(uri.removeprefix("file://"))) for uri in local}
        spec = _replaced(spec, there)
    return spec


def _check_rows(loaded: Loaded, path: KeyPath, uri: str) -> None:
    """Refuse to upload a file that holds no rows.

    The experiment may be a stranger's, and may name any file of this user's.
    """
    try:
        rows_of.parse(pinning.read(uri), rows_of.address(uri), str(path[1]))
    except rows_of.DataError as error:
        raise ExperimentError(error.problems) from None
    except BadTask as error:
        raise ExperimentError([loaded.document.at(("spec", *path), str(error))]) from None


def _replaced(value: Any, words: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {k: _replaced(v, words) for k, v in value.items()}
    if isinstance(value, list):
        return [_replaced(v, words) for v in value]
    return words.get(value, value) if isinstance(value, str) else value


def _age(seconds: float) -> str:
    for size, letter in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{letter}"
    return f"{int(seconds)}s"
