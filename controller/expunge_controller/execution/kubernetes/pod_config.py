"""Pod settings that the installation decides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from expunge_jobs.store import is_shared, open_store

from expunge_controller.errors import ExperimentError

STORE_KEYS = {
    "AWS_ACCESS_KEY_ID": True,
    "AWS_SECRET_ACCESS_KEY": True,
    "AWS_SESSION_TOKEN": False,
    "AWS_ENDPOINT_URL_S3": False,
    "AWS_REGION": False,
    "AWS_DEFAULT_REGION": False,
}
"""Keys of the store's Secret that become environment variables -> whether a pod needs the key to start.

The list is closed: PYTHONPATH or LD_PRELOAD in a Secret would run code in every step.
"""


HUB_KEYS = {"HF_TOKEN": True}
"""Keys of the hub's Secret, in the form of ``STORE_KEYS``."""


@dataclass(frozen=True, kw_only=True)
class PodConfig:
    """Pod settings that the installation decides and no experiment changes.

    They are the namespace, the service account, the images and the credentials, among others.
    """

    namespace: str
    image: str
    store: str
    secret: str | None = None
    """Name of a Secret with the keys of ``STORE_KEYS``. No other key of the Secret reaches a pod."""
    hub_secret: str | None = None
    """Name of a Secret with HF_TOKEN. Only the steps that copy from the hub get the token."""
    hub_endpoint: str | None = None
    """The URL of a hub mirror. The steps that copy from the hub get the URL as HF_ENDPOINT."""
    service_account: str | None = None
    proxies: tuple[tuple[str, str], ...] = ()
    """Proxy variables such as ``HTTPS_PROXY``, with their values."""
    ca_bundle: str | None = None
    """Name of a ConfigMap in the pods' namespace with a ca.crt.

    This CA has signed the store's certificate.
    """
    gpu: str = "nvidia.com/gpu"
    """The GPU's resource name, which may denote a MIG slice or another vendor's GPU."""
    pull_policy: str = "IfNotPresent"
    command: tuple[str, ...] = ("python", "-m", "expunge_jobs")


def check_reachable(site: PodConfig, inputs: Iterable[str]) -> None:
    """Refuse a store or inputs that pods cannot reach, before creating a Job.

    Raises:
        ExperimentError: no image, or a store or inputs of this machine alone; all problems at once.
    """
    problems = []
    if not site.image:
        problems.append("no image for the pods: give --image, or set EXPUNGE_IMAGE")
    if not is_shared(site.store):
        found = f"the store '{site.store}' is of this machine" if site.store else "no store"
        problems.append(f"{found}, which pods cannot reach: give --store s3://bucket/prefix, or set EXPUNGE_STORE")
    for uri in inputs:
        if uri.startswith("file://"):
            problems.append(
                f"{uri.removeprefix('file://')}: of this machine, which pods cannot read; put it into the store: expunge upload"
            )
    if problems:
        raise ExperimentError(problems)
    open_store(site.store)
