"""An experiment's settings for the machines that run its steps.

The settings are resources by kind of step, and the pods' place in a cluster.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from expunge_jobs.core.schema import Count, Int, Schema
from pydantic import Field, StringConstraints, model_validator

Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti)$")]
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def bytes_of(quantity: str) -> int:
    """Convert a quantity (``16Gi``) to bytes."""
    return int(float(quantity[:-2]) * _UNITS[quantity[-2:]])


class Resources(Schema):
    """Resources of a step of one kind.

    On one machine, memory decides how many steps run side by side. The rest is for a cluster.
    """

    gpu: Annotated[Int, Field(ge=0)] | None = Field(None, description="GPUs; several share the step's work.")
    cpu: Count | None = Field(None, description="Whole cores; the step uses as many threads.")
    memory: Quantity | None = Field(None, description="Asked for and most that it may use: 16Gi.")
    disk: Quantity | None = Field(
        None, description="Scratch: inputs, checkpoints and what is made, before it is uploaded."
    )
    deadline: Count | None = Field(None, description="Seconds that one attempt may take.")


class ResourcesByKind(Schema):
    """By kind of step."""

    stage: Resources = Resources()
    memorize: Resources = Resources()
    finetune: Resources = Resources()
    merge: Resources = Resources()
    evaluate: Resources = Resources()
    report: Resources = Resources()


LabelName = Annotated[str, StringConstraints(pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")]
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]


class Toleration(Schema):
    """Kubernetes' own."""

    key: str | None = Field(None, description="The taint's.")
    operator: Literal["Exists", "Equal"] | None = Field(None, description="How key and value are compared; Equal.")
    value: str | None = Field(None, description="The taint's.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(None, description="All, if none.")
    tolerationSeconds: Int | None = Field(None, description="How long a NoExecute taint is borne.")


class Affinity(Schema):
    """Kubernetes' own; what is below these fields the API server checks."""

    nodeAffinity: dict[str, Any] | None = Field(None, description="Which nodes.")
    podAffinity: dict[str, Any] | None = Field(None, description="Beside which pods.")
    podAntiAffinity: dict[str, Any] | None = Field(None, description="Away from which pods.")


class Volume(Schema):
    """A claim, or a volume made for the pod alone, mounted below /mnt."""

    mount: Annotated[str, StringConstraints(pattern=r"^/mnt/[A-Za-z0-9._-]+$")] = Field(
        description="Where, below /mnt."
    )
    claim: ObjectName | None = Field(None, description="A PersistentVolumeClaim of the namespace.")
    size: Quantity | None = Field(
        None, description="In place of a claim: a volume of this size that goes with the pod."
    )
    storage_class: ObjectName | None = Field(None, description="Of a volume with a size; the cluster's default.")
    read_only: bool = Field(False, description="The step cannot write to it.")
    cache: bool = Field(False, description="Models are kept here between pods; several may share it.")

    @model_validator(mode="after")
    def _one(self) -> Volume:
        if (self.claim is None) == (self.size is None):
            raise ValueError("a volume is a claim, or has a size: give one of the two")
        if self.cache and (self.claim is None or self.read_only):
            raise ValueError("a cache is to outlive its pod, and to be written: give a claim that is not read_only")
        return self


class Kubernetes(Schema):
    """All that an experiment may say about its pods.

    Environment, images, service accounts and Secrets come from the installation.
    """

    queue: ObjectName | None = Field(None, description="Kueue's local queue.")
    priority: ObjectName | None = Field(None, description="Kueue's workload priority class.")
    priorityClassName: ObjectName | None = Field(None, description="The pods' priority class.")
    runtimeClassName: ObjectName | None = Field(None, description="The pods' container runtime.")
    nodeSelector: dict[LabelName, str] = Field(default_factory=dict, description="Labels that a node must have.")
    tolerations: tuple[Toleration, ...] = Field((), description="Taints that the pods bear.")
    affinity: Affinity | None = None
    volumes: tuple[Volume, ...] = Field((), description="Mounted into every step's pod.")

    @model_validator(mode="after")
    def _apart(self) -> Kubernetes:
        mounts = [v.mount for v in self.volumes]
        if twice := next((m for m in mounts if mounts.count(m) > 1), None):
            raise ValueError(f"two volumes are mounted at {twice}")
        if sum(v.cache for v in self.volumes) > 1:
            raise ValueError("two volumes are the cache: one at most")
        return self
