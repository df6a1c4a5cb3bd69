"""Checks for what a cluster lacks, made before an experiment runs."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from expunge_jobs.core.errors import StepError
from expunge_jobs.store import check_conditional_writes, is_shared, open_store

from expunge_controller.execution.kubernetes import diagnosis
from expunge_controller.execution.kubernetes.job_informer import jobs_path, pods_path
from expunge_controller.execution.kubernetes.jobspec import CONTAINER, trial_job
from expunge_controller.execution.kubernetes.pod_config import STORE_KEYS, PodConfig
from expunge_controller.experiment.resource import resources_path
from expunge_controller.kube_client.client import ApiError, Cluster, Object

RIGHTS = (
    ("batch", "jobs", "", ("create", "get", "list", "watch", "delete")),
    ("", "pods", "", ("list", "watch")),
    ("", "pods", "log", ("get",)),
    ("", "events", "", ("list",)),
)
TRIAL_POD_SECONDS = 120.0
"""Timeout of the trial pod, in seconds."""


@dataclass(frozen=True)
class Check:
    """One finding.

    A note is a fact that could not be seen, or a lack that only some experiments miss.
    """

    state: Literal["ok", "note", "FAIL"]
    what: str
    words: str


def examine(cluster: Cluster, site: PodConfig) -> Iterator[Check]:
    """Check each prerequisite of a run, in the order of use."""
    try:
        version = cluster.request("GET", "/version", tries=1)["gitVersion"]
    except ApiError as error:
        yield Check("FAIL", "API server", str(error))
        return
    yield Check("ok", "API server", f"{cluster.address}, {version}")
    yield from _rights(cluster, site.namespace)
    yield _gpus(cluster, site)
    yield _operator(cluster, site)
    yield _store(site)
    if site.secret:
        yield _secret(cluster, site)
    if site.image:
        yield _image(cluster, site)
    else:
        yield Check("FAIL", "image", "none: give --image, or set EXPUNGE_IMAGE")


def _rights(cluster: Cluster, namespace: str) -> Iterator[Check]:
    lacking = []
    for group, resource, sub, verbs in RIGHTS:
        for verb in verbs:
            asked = {"namespace": namespace, "group": group, "resource": resource, "subresource": sub, "verb": verb}
            body: Object = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": asked},
            }
            try:
                answer = cluster.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
            except ApiError as error:
                yield Check("note", "permissions", f"cannot be asked for: {error}")
                return
            if not answer["status"].get("allowed"):
                lacking.append(f"{verb} {resource}{'/' + sub if sub else ''}")
    words = f"may not {', '.join(lacking)} in namespace {namespace}" if lacking else f"in namespace {namespace}"
    # Only the words about a refused pod depend on events; therefore the missing permission is a note.
    yield Check("ok" if not lacking else "note" if lacking == ["list events"] else "FAIL", "permissions", words)


def _gpus(cluster: Cluster, site: PodConfig) -> Check:
    try:
        nodes, _ = cluster.list("/api/v1/nodes")
    except ApiError as error:
        return Check("note", "GPUs", f"cannot be seen: {error}")
    counts = [int(n["status"].get("allocatable", {}).get(site.gpu, 0)) for n in nodes]
    words = f"{sum(counts)} {site.gpu} on {sum(c > 0 for c in counts)} of {len(nodes)} nodes"
    return Check("ok" if sum(counts) else "note", "GPUs", words)


def _operator(cluster: Cluster, site: PodConfig) -> Check:
    try:
        cluster.request("GET", resources_path(site.namespace), query={"limit": 1})
    except ApiError as error:
        chart = "`kubectl apply` needs the chart (charts/expunge), `expunge run --executor kubernetes` does not"
        return Check("note", "operator", f"no Experiments here: {chart}" if error.status == 404 else str(error))
    return Check("ok", "operator", "the cluster knows Experiments")


def _store(site: PodConfig) -> Check:
    if not is_shared(site.store):
        return Check("FAIL", "store", "pods need one in a bucket: --store s3://bucket/prefix, or EXPUNGE_STORE")
    try:
        store = open_store(site.store)
        store.check()
        check_conditional_writes(store)
    except StepError as error:
        return Check("FAIL", "store", str(error))
    return Check("ok", "store", f"{store.name}: readable, writable, conditional writes hold{store.details()}")


def _secret(cluster: Cluster, site: PodConfig) -> Check:
    try:
        found = cluster.request("GET", f"/api/v1/namespaces/{site.namespace}/secrets/{site.secret}")
    except ApiError as error:
        return Check("FAIL" if error.status == 404 else "note", "Secret", str(error))
    there = set(found.get("data") or {})
    if lacking := [k for k, needed in STORE_KEYS.items() if needed and k not in there]:
        return Check("FAIL", "Secret", f"{site.secret} lacks {', '.join(lacking)}")
    unread = f"; not read: {', '.join(sorted(there - set(STORE_KEYS)))}" if there - set(STORE_KEYS) else ""
    return Check("ok", "Secret", f"{site.secret}: {', '.join(sorted(there & set(STORE_KEYS)))}{unread}")


def _image(cluster: Cluster, site: PodConfig) -> Check:
    """Run a pod of a step's own shape that only opens the store.

    The pod checks image, credentials, network and admission.
    """
    name = f"expunge-doctor-{uuid.uuid4().hex[:8]}"
    try:
        made = cluster.request("POST", jobs_path(site.namespace), trial_job(name, site))
    except ApiError as error:
        return Check("FAIL", "image", str(error))
    try:
        return _outcome(cluster, site, name)
    except ApiError as error:
        return Check("FAIL", "image", f"cannot be seen: {error}")
    finally:
        with contextlib.suppress(ApiError):  # without permission (reported above), the TTL deletes the Job
            cluster.delete(jobs_path(site.namespace, name), made["metadata"]["uid"])


def _outcome(cluster: Cluster, site: PodConfig, name: str) -> Check:
    until = time.monotonic() + TRIAL_POD_SECONDS
    words = "no pod yet"
    while time.monotonic() < until:
        job = diagnosis.trim_job(cluster.request("GET", jobs_path(site.namespace, name)))
        selector = f"batch.kubernetes.io/job-name={name}"
        pods = [diagnosis.trim_pod(p) for p in cluster.list(pods_path(site.namespace), selector)[0]]
        pod = diagnosis.newest(pods)
        if pod is not None and pod["status"]["phase"] == "Succeeded":
            return Check("ok", "image", f"{site.image}: a pod ran and reached the store")
        if pod is not None and diagnosis.has_ended(pod):
            lines = list(cluster.log(site.namespace, pod["metadata"]["name"], CONTAINER, tail=3))
            return Check("FAIL", "image", f"{site.image}: {lines[-1] if lines else 'the pod failed'}")
        words = diagnosis.waiting_words(job, pods)
        if pod is not None and diagnosis.start_trouble(pod):
            break
        time.sleep(1)
    return Check("FAIL", "image", f"{site.image}: {words or 'the pod did not end'}")
