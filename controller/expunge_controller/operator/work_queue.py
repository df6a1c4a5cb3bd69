"""The queue of the Experiments to reconcile.

The module is pure, except for a clock.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections import OrderedDict

NamespacedName = tuple[str, str]
"""Namespace and name of an Experiment."""


class WorkQueue:
    """The keys to reconcile.

    Each key is queued at most once, and held by one worker at a time.
    """

    def __init__(self) -> None:
        self._ready: dict[bool, OrderedDict[NamespacedName, None]] = {True: OrderedDict(), False: OrderedDict()}
        """Keys for the next free workers in order, by urgency."""
        self._known: dict[NamespacedName, bool] = {}
        """Requested keys that no worker has received yet, and whether each is urgent."""
        self._handed: set[NamespacedName] = set()
        self._later: list[tuple[float, NamespacedName]] = []
        self._due: dict[NamespacedName, float] = {}
        """Due time of each delayed key. Entries of ``_later`` with another time do not count."""
        self._changed = threading.Condition()

    def add(self, who: NamespacedName, urgent: bool = False) -> None:
        """Queue a key for the next free worker.

        Urgent keys come before all others. A key that a worker holds is queued again after ``done``.
        """
        with self._changed:
            self._add(who, urgent)

    def add_after(self, who: NamespacedName, seconds: float) -> None:
        """Queue ``who`` after ``seconds``, unless it is already due earlier."""
        then = time.monotonic() + seconds
        with self._changed:
            if then < self._due.get(who, math.inf):
                self._due[who] = then
                heapq.heappush(self._later, (then, who))
                self._changed.notify()

    def get(self, seconds: float) -> NamespacedName | None:
        """Return the next key, or None if there is none within ``seconds``.

        The worker gives the key back with ``done``.
        """
        end = time.monotonic() + seconds
        with self._changed:
            while True:
                now = time.monotonic()
                while self._later and self._later[0][0] <= now:
                    then, who = heapq.heappop(self._later)
                    if self._due.get(who) == then:
                        del self._due[who]
                        self._add(who, False)
                ready = self._ready[True] or self._ready[False]
                if ready:
                    who, _ = ready.popitem(last=False)
                    del self._known[who]
                    self._handed.add(who)
                    return who
                if now >= end:
                    return None
                due = self._later[0][0] if self._later else end
                self._changed.wait(min(due, end) - now)

    def done(self, who: NamespacedName) -> None:
        """Give back a key after its reconcile."""
        with self._changed:
            self._handed.discard(who)
            if who in self._known:
                self._make_ready(who)

    def _add(self, who: NamespacedName, urgent: bool) -> None:
        if who not in self._known or (urgent and not self._known[who]):
            self._known[who] = urgent
            if who not in self._handed:
                self._make_ready(who)

    def _make_ready(self, who: NamespacedName) -> None:
        urgent = self._known[who]
        self._ready[not urgent].pop(who, None)
        self._ready[urgent][who] = None
        self._changed.notify()
