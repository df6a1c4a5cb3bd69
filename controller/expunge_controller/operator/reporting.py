"""What the operator says of an Experiment: its status and its Events, neither too often."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from expunge_controller.execution.kubernetes.diagnosis import cut
from expunge_controller.execution.step_log import Progress
from expunge_controller.experiment.resource import FINAL, Phase, resources_path
from expunge_controller.experiment.schema import API_VERSION
from expunge_controller.kube_client.client import ApiError, Cluster, Object, TooDeep
from expunge_controller.kube_client.informer import Mirror
from expunge_controller.operator.conditions import conditions
from expunge_controller.operator.work_queue import Who, WorkQueue
from expunge_controller.planning.plan import Step

STATUS_EVERY, STATUS_RATE = 5.0, 10.0
"""Seconds between two writes of a status whose phase is the same, and how many of those a second all experiments may have."""
USUAL = ("Finished", "Started")
"""What happens to every step."""
AGAIN = 0.5
"""Seconds until a status is written again that somebody else has changed."""


class Teller:
    """The runner's observer: logs what has happened, by reason, step and text, and keeps it until it is told."""

    def __init__(self, log: Callable[[str, str, str], None]) -> None:
        self.log = log
        self.news: list[tuple[str, str]] = []
        """Why an Event is made, and what it is to say; in order."""

    def started(self, step: Step) -> None:
        self._add("Started", step.name, step.name)

    def progress(self, running: dict[str, Progress]) -> None:
        pass

    def finished(self, step: Step, seconds: float) -> None:
        self._add("Finished", step.name, step.name)

    def failed(self, step: Step, reason: str, again: bool) -> None:
        self._add("StepFailed", step.name, f"{step.name}: {reason}" + (" (trying again)" if again else ""))

    def elsewhere(self, step: Step) -> None:
        pass

    def notice(self, text: str) -> None:
        self._add("Notice", text.partition(":")[0], text)

    def _add(self, reason: str, step: str, text: str) -> None:
        self.news.append((reason, text))
        self.log(reason, step, text)

    def take(self) -> dict[str, list[str]]:
        """What has happened, by reason; once."""
        news, self.news = self.news, []
        return {reason: [text for r, text in news if r == reason] for reason, _ in news}


class Speaker:
    """Writes to the API server. ``active``: how many experiments are at work."""

    def __init__(
        self, cluster: Cluster, mirrors: Mapping[str, Mirror], queue: WorkQueue, log: Callable[..., None],
        active: Callable[[], int],
    ) -> None:  # fmt: skip
        self.cluster, self.mirrors, self.queue, self.log, self.active = cluster, mirrors, queue, log, active
        self._written: dict[Who, float] = {}
        """When a status was last written here."""

    def forget(self, who: Who) -> None:
        """It is gone."""
        self._written.pop(who, None)

    def tell(self, who: Who, found: Object, news: dict[str, list[str]]) -> None:
        """Events for what has happened."""
        for kind, reason, message in as_events(news):
            self.say(who, found, kind, reason, message)

    def write(
        self, who: Who, found: Object, phase: Phase, message: str, figures: Callable[[], Object], *, reason: str = "",
        begun: bool = True,
    ) -> bool:  # fmt: skip
        """The status, if it has changed: a new phase at once, figures not too often. False: somebody else was faster. ``begun``:
        this generation is at work from here on, or over."""
        meta, now = found["metadata"], time.monotonic()
        mirror = self.mirrors[who[0]]
        current = mirror.get(who[1]) or found  # with what was written here since
        before, last = current["status"], self._written.get(who, 0.0)
        said = conditions(phase, message, meta["generation"], before.get("conditions", []), _now(), reason)
        rest = last + max(STATUS_EVERY, self.active() / STATUS_RATE) - now
        if rest > 0 and _head(said) == _head(before.get("conditions", [])):
            self.queue.add_after(who, rest)
            return True
        status = {
            **before, **figures(), "phase": phase, "conditions": said,
            **({"observedGeneration": meta["generation"], "retried": meta["retry"]} if begun else {}),
        }  # fmt: skip
        if status == before:
            return True
        body = {
            "metadata": {"uid": meta["uid"], "resourceVersion": current["metadata"]["resourceVersion"]}, "status": status,
        }  # fmt: skip
        try:
            mirror.put(self.cluster.request("PATCH", resources_path(*who, status=True), body))
        except TooDeep:  # it is written; what cannot be read is the answer, which holds the spec
            pass
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            self.queue.add_after(
                who, AGAIN
            )  # edited, deleted, or written by another operator: what is seen then decides
            return False
        self._written[who] = now
        self._say_change(who, found, before, phase, reason, message)
        self.log("info", who, f"{phase}: {message}" if message else phase, steps=status.get("steps", ""))
        return True

    def _say_change(self, who: Who, found: Object, before: Object, phase: Phase, reason: str, message: str) -> None:
        """An Event where it stops or goes on for a reason that is no step's; how it ends is said by whoever ends it."""
        earlier = next((c["reason"] for c in before.get("conditions", ()) if c["type"] == "Progressing"), "")
        if (reason or phase) == earlier or phase in FINAL:
            return
        if reason:
            self.say(who, found, "Warning", reason, message)
        elif phase == "Suspended":
            self.say(who, found, "Normal", "Suspended", "starts nothing until spec.suspend is false")
        elif earlier and earlier not in FINAL:
            self.say(who, found, "Normal", "Resumed", f"after {earlier}")

    def say(self, who: Who, found: Object, kind: str, reason: str, message: str) -> None:
        """An Event. Its name follows from what it says, so that saying it again after a restart makes no second one."""
        meta, text, now = found["metadata"], cut(message, 1000), _now()
        mark = hashlib.sha256(
            f"{meta['uid']} {meta['generation']} {meta['retry']} {reason} {text}".encode()
        ).hexdigest()[:16]
        body = {
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": f"{meta['name']}.{mark}", "namespace": who[0]},
            "involvedObject": {
                "apiVersion": API_VERSION, "kind": "Experiment", "name": meta["name"], "namespace": who[0], "uid": meta["uid"],
            },
            "type": kind, "reason": reason, "message": text, "firstTimestamp": now, "lastTimestamp": now, "count": 1,
            "source": {"component": "expunge"},
        }  # fmt: skip
        try:
            self.cluster.request("POST", f"/api/v1/namespaces/{who[0]}/events", body)
        except ApiError as error:
            if error.status != 409:  # said before
                self.log("warning", who, f"an Event could not be written: {error}")


def as_events(news: Mapping[str, list[str]]) -> Iterator[tuple[str, str, str]]:
    """Type, reason and message: one for what ends and begins in every run, by the name of what came first, since each Event is a
    write; and one for each other reason."""
    usual = {reason: ", ".join(texts) for reason, texts in news.items() if reason in USUAL}
    if usual:
        (first, message), *others = usual.items()
        yield "Normal", first, "; ".join([message, *(f"{reason.lower()} {text}" for reason, text in others)])
    for reason, texts in news.items():
        if reason not in USUAL:
            yield "Warning" if reason == "StepFailed" else "Normal", reason, ", ".join(texts)


def _head(said: Iterable[Object]) -> list[tuple[Any, ...]]:
    """What is told at once when it changes."""
    return [(c["type"], c["status"], c["reason"], c["observedGeneration"]) for c in said]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
