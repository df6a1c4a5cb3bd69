"""Slots for unfinished Jobs, shared among the Experiments."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable

from expunge_controller.operator.work_queue import NamespacedName

MOST_PODLESS_JOBS = 8
"""Number of Jobs without a pod at which no further Experiment is admitted."""


STUCK_SECONDS = 5.0
"""Seconds after which a Job without a pod no longer counts as backlog.

Such a Job waits for a quota, or in a queue.
"""


class JobSlots:
    """Slots for the unfinished Jobs of all Experiments, ``most`` in total.

    A free slot goes to the Experiment with the fewest slots, then to the oldest Experiment.

    An Experiment is admitted only while the cluster keeps up with making pods of Jobs. If hundreds of Experiments
    began at once, their later steps would wait behind each other's first steps. At most ``most_beginning``
    Experiments begin at once, because the inputs of an Experiment may be in a place that does not answer.
    """

    def __init__(self, most: int, wake: Callable[[NamespacedName], None], most_beginning: int) -> None:
        self.most, self.wake, self.most_beginning = most, wake, most_beginning
        self._holders: dict[str, set[NamespacedName]] = {}
        """Experiments that wait for a Job, by ``namespace/job``."""
        self._count: dict[NamespacedName, int] = defaultdict(int)
        self._waiting: dict[NamespacedName, str] = {}
        """Creation time of each Experiment that waits for a slot."""
        self._outside: dict[NamespacedName, str] = {}
        """Creation time of each Experiment that waits for its admission."""
        self._beginning: set[NamespacedName] = set()
        self._podless: dict[str, float] = {}
        """Start of each new Job whose pod has not been seen yet, in seconds of the monotonic clock."""
        self._lock = threading.Lock()

    def withdraw_request(self, who: NamespacedName) -> None:
        """Withdraw an Experiment's request for a slot.

        An Experiment that still needs slots asks again.
        """
        with self._lock:
            self._waiting.pop(who, None)

    def try_admit(self, who: NamespacedName, since: str) -> bool:
        """Return whether an Experiment may begin now.

        An admitted Experiment counts as beginning until ``admitted``. A refused Experiment is woken when it may begin.
        ``since`` is the creation time of ``who``.
        """
        with self._lock:
            if self._is_behind():
                self._outside[who] = since
                return False
            self._outside.pop(who, None)
            self._beginning.add(who)
            return True

    def admitted(self, who: NamespacedName) -> None:
        """Record that an Experiment has begun, or has given up beginning."""
        with self._lock:
            self._beginning.discard(who)
        self.wake_next()

    def has_pod(self, job: str) -> None:
        """Record that the cluster has made a pod for this Job."""
        if job in self._podless:
            with self._lock:
                self._podless.pop(job, None)
            self.wake_next()

    def acquire(self, who: NamespacedName, since: str, job: str, there: bool) -> bool:
        """Return whether there is a slot for this Job.

        A Job that exists already (``there``) is never refused. ``since`` is the creation time of ``who``.
        """
        with self._lock:
            holders = self._holders.get(job)
            if holders is None and not there and not (len(self._holders) < self.most and self._is_next(who, since)):
                self._waiting[who] = since
                return False
            holders = self._holders.setdefault(job, set())
            if who not in holders:
                holders.add(who)
                self._count[who] += 1
            if not there:
                self._podless[job] = time.monotonic()
            return True

    def release(self, who: NamespacedName, job: str) -> None:
        """Release a Job that the Experiment no longer waits for.

        The slot is free when no other Experiment waits for the Job.
        """
        with self._lock:
            holders = self._holders.get(job, set())
            if who not in holders:
                return
            holders.discard(who)
            self._count[who] -= 1
            if not self._count[who]:
                del self._count[who]
            if not holders:
                del self._holders[job]
                self._podless.pop(job, None)
        self.wake_next()

    def wake_next(self) -> None:
        """Wake the next Experiment that waits for a slot or its admission."""
        with self._lock:
            free = len(self._holders) < self.most and bool(self._waiting)
            first = min(self._waiting, key=self._rank) if free else None
            if first is None and self._outside and not self._is_behind():
                first = min(self._outside, key=lambda who: (self._outside[who], who))
                del self._outside[first]  # The Experiment asks again; the others then follow in turn.
        if first is not None:
            self.wake(first)

    def held(self) -> int:
        """Return the number of unfinished Jobs that Experiments wait for."""
        return len(self._holders)

    def _is_behind(self) -> bool:
        stuck = time.monotonic() - STUCK_SECONDS
        self._podless = {job: made for job, made in self._podless.items() if made > stuck}
        return len(self._podless) >= MOST_PODLESS_JOBS or len(self._beginning) >= self.most_beginning

    def _is_next(self, who: NamespacedName, since: str) -> bool:
        others = [w for w in self._waiting if w != who]
        mine = (self._count.get(who, 0), since, who)
        return all(mine <= self._rank(w) for w in others)

    def _rank(self, who: NamespacedName) -> tuple[int, str, NamespacedName]:
        return self._count.get(who, 0), self._waiting[who], who


class ExperimentSlots:
    """The slots as one Experiment sees them.

    ``since`` is the creation time of the Experiment.
    """

    def __init__(self, places: JobSlots, who: NamespacedName, since: str) -> None:
        self.places, self.who, self.since = places, who, since

    @property
    def most(self) -> int:
        """Most unfinished Jobs of all Experiments together."""
        return self.places.most

    def acquire(self, job: str, there: bool = False) -> bool:
        """Return whether there is a slot for this Job, or the Job is there.

        A refused Experiment is woken when there may be a slot.
        """
        return self.places.acquire(self.who, self.since, f"{self.who[0]}/{job}", there)

    def has_pod(self, job: str) -> None:
        """Record that a pod of the Job was seen."""
        self.places.has_pod(f"{self.who[0]}/{job}")

    def release(self, job: str) -> None:
        """Release a Job that the Experiment no longer waits for."""
        self.places.release(self.who, f"{self.who[0]}/{job}")
