"""What an installation decides of every pod."""

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
"""Keys of the store's Secret that become environment variables, and whether a pod needs them to start. The list is closed:
PYTHONPATH or LD_PRELOAD in a Secret would be code in every step."""


HUB_KEYS = {"HF_TOKEN": True}
"""The same for the hub's Secret."""


@dataclass(frozen=True, kw_only=True)
class PodConfig:
    """What an installation decides, and no experiment: where pods run, as whom, with which image and credentials."""

    namespace: str
    image: str
    store: str
    controller_image: str = ""
    """For steps without torch; the jobs image where there is none."""
    secret: str | None = None
    """Name of a Secret with the keys of ``STORE_KEYS``. No other key of it reaches a pod."""
    hub_secret: str | None = None
    """Name of a Secret with HF_TOKEN, for the steps that copy from the hub alone."""
    hub_endpoint: str | None = None
    """The hub's URL, where it is a mirror. Those steps get it as HF_ENDPOINT."""
    service_account: str | None = None
    proxies: tuple[tuple[str, str], ...] = ()
    """``HTTPS_PROXY`` and its like, with their values."""
    ca_bundle: str | None = None
    """Name of a ConfigMap of the pods' namespace with ca.crt, which has signed the store's certificate."""
    gpu: str = "nvidia.com/gpu"
    """The GPU's resource name: a MIG slice or another maker's."""
    pull_policy: str = "IfNotPresent"
    command: tuple[str, ...] = ("python", "-m", "expunge_jobs")


def check_reachable(site: PodConfig, inputs: Iterable[str]) -> None:
    """What a pod cannot reach is refused before a Job is made.

    Raises:
        ExperimentError: no image, a store or inputs of this machine alone; all of them at once.
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
