"""Who is next: experiments that have something to do, and those that wait for room for one more Job. Pure but for a clock."""

from __future__ import annotations

import heapq
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable

Who = tuple[str, str]
"""An Experiment's namespace and name."""


class WorkQueue:
    """Keys to be looked at: each is in it once, and in one worker's hands at a time."""

    def __init__(self) -> None:
        self._ready: deque[Who] = deque()
        self._known: set[Who] = set()
        """Asked for and not yet handed out."""
        self._handed: set[Who] = set()
        self._later: list[tuple[float, Who]] = []
        self._changed = threading.Condition()

    def add(self, who: Who) -> None:
        """Look at it as soon as somebody can; once more, if somebody is just looking."""
        with self._changed:
            self._add(who)

    def add_after(self, who: Who, seconds: float) -> None:
        """Look at it then."""
        with self._changed:
            heapq.heappush(self._later, (time.monotonic() + seconds, who))
            self._changed.notify()

    def get(self, seconds: float) -> Who | None:
        """The next one, which ``done`` gives back; None if there is none within so many seconds."""
        end = time.monotonic() + seconds
        with self._changed:
            while True:
                now = time.monotonic()
                while self._later and self._later[0][0] <= now:
                    self._add(heapq.heappop(self._later)[1])
                if self._ready:
                    who = self._ready.popleft()
                    self._known.discard(who)
                    self._handed.add(who)
                    return who
                if now >= end:
                    return None
                due = self._later[0][0] if self._later else end
                self._changed.wait(min(due, end) - now)

    def done(self, who: Who) -> None:
        """It was looked at."""
        with self._changed:
            self._handed.discard(who)
            if who in self._known:
                self._ready.append(who)
                self._changed.notify()

    def __len__(self) -> int:
        return len(self._ready)

    def _add(self, who: Who) -> None:
        if who not in self._known:
            self._known.add(who)
            if who not in self._handed:
                self._ready.append(who)
                self._changed.notify()


class Places:
    """Room for so many unfinished Jobs of all experiments. A free place goes to whoever has the fewest, then to the oldest."""

    def __init__(self, most: int, wake: Callable[[Who], None]) -> None:
        self.most, self.wake = most, wake
        self._holders: dict[str, set[Who]] = {}
        """By Job, with its namespace."""
        self._count: dict[Who, int] = defaultdict(int)
        self._waiting: dict[Who, str] = {}
        """When each was created."""
        self._lock = threading.Lock()

    def turn(self, who: Who) -> None:
        """It is about to ask anew for what it needs."""
        with self._lock:
            self._waiting.pop(who, None)

    def take(self, who: Who, since: str, job: str, there: bool) -> bool:
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
            return True

    def leave(self, who: Who, job: str) -> None:
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
        self.offer()

    def offer(self) -> None:
        """Wake whoever is next, if there is a place."""
        with self._lock:
            free = len(self._holders) < self.most and bool(self._waiting)
            first = min(self._waiting, key=self._rank) if free else None
        if first is not None:
            self.wake(first)

    def held(self) -> int:
        """Unfinished Jobs that somebody waits for."""
        return len(self._holders)

    def _is_next(self, who: Who, since: str) -> bool:
        others = [w for w in self._waiting if w != who]
        mine = (self._count.get(who, 0), since, who)
        return all(mine <= self._rank(w) for w in others)

    def _rank(self, who: Who) -> tuple[int, str, Who]:
        return self._count.get(who, 0), self._waiting[who], who


class Room:
    """The places as one experiment sees them. ``since``: when it was created."""

    def __init__(self, places: Places, who: Who, since: str) -> None:
        self.places, self.who, self.since = places, who, since

    def take(self, job: str, there: bool = False) -> bool:
        """Whether there is room for this Job, or it is there already; whoever was refused is woken when there may be."""
        return self.places.take(self.who, self.since, f"{self.who[0]}/{job}", there)

    def leave(self, job: str) -> None:
        """It is no longer waited for."""
        self.places.leave(self.who, f"{self.who[0]}/{job}")
