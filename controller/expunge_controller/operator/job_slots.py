"""Room for unfinished Jobs, shared out among Experiments."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable

from expunge_controller.operator.work_queue import NamespacedName

BACKLOG = 8
"""Jobs without a pod, beyond which no further experiment begins."""


STUCK_SECONDS = 5.0
"""Seconds after which a Job without a pod is no backlog: it waits for a quota, or in a queue."""


class JobSlots:
    """Room for so many unfinished Jobs of all experiments. A free place goes to whoever has the fewest, then to the oldest.

    An experiment begins only while the cluster keeps up with making pods of Jobs: hundreds that all began at once would have
    their steps' successors wait behind each other's first steps. ``most_beginning`` at once, too: what one reads first may be
    in a place that does not answer.
    """

    def __init__(self, most: int, wake: Callable[[NamespacedName], None], most_beginning: int) -> None:
        self.most, self.wake, self.most_beginning = most, wake, most_beginning
        self._holders: dict[str, set[NamespacedName]] = {}
        """By Job, with its namespace."""
        self._count: dict[NamespacedName, int] = defaultdict(int)
        self._waiting: dict[NamespacedName, str] = {}
        """When each was created."""
        self._outside: dict[NamespacedName, str] = {}
        """The same of those that have not begun."""
        self._beginning: set[NamespacedName] = set()
        self._podless: dict[str, float] = {}
        """Jobs that were just made, and when."""
        self._lock = threading.Lock()

    def withdraw_request(self, who: NamespacedName) -> None:
        """It is about to ask anew for what it needs."""
        with self._lock:
            self._waiting.pop(who, None)

    def try_admit(self, who: NamespacedName, since: str) -> bool:
        """Whether it is a good time, until ``begun``; whoever is refused is woken when it is. ``since``: when ``who`` was
        created."""
        with self._lock:
            if self._is_behind():
                self._outside[who] = since
                return False
            self._outside.pop(who, None)
            self._beginning.add(who)
            return True

    def admitted(self, who: NamespacedName) -> None:
        """It has begun, or given up to."""
        with self._lock:
            self._beginning.discard(who)
        self.wake_next()

    def has_pod(self, job: str) -> None:
        """The cluster has come round to this Job."""
        if job in self._podless:
            with self._lock:
                self._podless.pop(job, None)
            self.wake_next()

    def acquire(self, who: NamespacedName, since: str, job: str, there: bool) -> bool:
        """Whether there is room for this Job; one that is there already has its place. ``since``: when ``who`` was created."""
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
        """It waits for this Job no longer."""
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
        """Wake whoever is next, if there is a place."""
        with self._lock:
            free = len(self._holders) < self.most and bool(self._waiting)
            first = min(self._waiting, key=self._rank) if free else None
            if first is None and self._outside and not self._is_behind():
                first = min(self._outside, key=lambda who: (self._outside[who], who))
                del self._outside[first]  # it asks again, and then others are asked in turn
        if first is not None:
            self.wake(first)

    def held(self) -> int:
        """Unfinished Jobs that somebody waits for."""
        return len(self._holders)

    def _is_behind(self) -> bool:
        stuck = time.monotonic() - STUCK_SECONDS
        self._podless = {job: made for job, made in self._podless.items() if made > stuck}
        return len(self._podless) >= BACKLOG or len(self._beginning) >= self.most_beginning

    def _is_next(self, who: NamespacedName, since: str) -> bool:
        others = [w for w in self._waiting if w != who]
        mine = (self._count.get(who, 0), since, who)
        return all(mine <= self._rank(w) for w in others)

    def _rank(self, who: NamespacedName) -> tuple[int, str, NamespacedName]:
        return self._count.get(who, 0), self._waiting[who], who


class ExperimentSlots:
    """The places as one experiment sees them. ``since``: when it was created."""

    def __init__(self, places: JobSlots, who: NamespacedName, since: str) -> None:
        self.places, self.who, self.since = places, who, since

    @property
    def most(self) -> int:
        """Jobs of all experiments together."""
        return self.places.most

    def acquire(self, job: str, there: bool = False) -> bool:
        """Whether there is room for this Job, or it is there already; whoever was refused is woken when there may be."""
        return self.places.acquire(self.who, self.since, f"{self.who[0]}/{job}", there)

    def has_pod(self, job: str) -> None:
        """A pod of the Job was seen."""
        self.places.has_pod(f"{self.who[0]}/{job}")

    def release(self, job: str) -> None:
        """It is no longer waited for."""
        self.places.release(self.who, f"{self.who[0]}/{job}")
