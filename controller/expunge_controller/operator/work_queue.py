"""Which Experiment is looked at next. Pure but for a clock."""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections import OrderedDict

NamespacedName = tuple[str, str]
"""An Experiment's namespace and name."""


class WorkQueue:
    """Keys to be looked at: each is in it once, and in one worker's hands at a time."""

    def __init__(self) -> None:
        self._ready: dict[bool, OrderedDict[NamespacedName, None]] = {True: OrderedDict(), False: OrderedDict()}
        """In order, the urgent ones apart."""
        self._known: dict[NamespacedName, bool] = {}
        """Asked for and not yet handed out, and whether that is urgent."""
        self._handed: set[NamespacedName] = set()
        self._later: list[tuple[float, NamespacedName]] = []
        self._due: dict[NamespacedName, float] = {}
        """The one entry of ``_later`` that counts."""
        self._changed = threading.Condition()

    def add(self, who: NamespacedName, urgent: bool = False) -> None:
        """Look at it as soon as somebody can, before all others if it is urgent; once more, if somebody is just looking."""
        with self._changed:
            self._add(who, urgent)

    def add_after(self, who: NamespacedName, seconds: float) -> None:
        """Look at it then, or sooner if that was asked for before."""
        then = time.monotonic() + seconds
        with self._changed:
            if then < self._due.get(who, math.inf):
                self._due[who] = then
                heapq.heappush(self._later, (then, who))
                self._changed.notify()

    def get(self, seconds: float) -> NamespacedName | None:
        """The next one, which ``done`` gives back; None if there is none within so many seconds."""
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
        """It was looked at."""
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
