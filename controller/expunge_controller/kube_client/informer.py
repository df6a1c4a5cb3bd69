"""Objects of one kind in a namespace, kept up to date by list and watch."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable

from expunge_controller.kube_client.client import ApiError, Cluster, Object

WATCH_INTERVAL_SECONDS = 1.0
"""Seconds between the beginnings of two watches, however soon a server ends them."""


class Informer:
    """Objects of one kind in a namespace as list and watch tell them, kept up to date by a thread of its own.

    A watch that the server ends goes on where it was. If it ends in any other way all is listed again: what was missed is found,
    and said to ``changed`` like any other change.
    ``group`` says under which word an object is found by ``of`` (its owner, say), without a look at all others. ``page``: so many
    at once, where each may be large.
    """

    def __init__(
        self,
        cluster: Cluster,
        path: str,
        selector: str,
        trim: Callable[[Object], Object],
        changed: Callable[[Object], None],
        group: Callable[[Object], str] = lambda _: "",
        page: int | None = None,
    ) -> None:
        self.group, self.page = group, page
        self.cluster, self.path, self.selector, self.trim, self.changed = cluster, path, selector, trim, changed
        self.problem = ""
        """Why nothing new is known, in words; empty while all is well."""
        self._objects: dict[str, Object] = {}
        self._groups: dict[str, dict[str, Object]] = defaultdict(dict)
        self._lock = threading.Lock()
        self._synced, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True, name=f"informer {path}")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def wait(self, seconds: float) -> bool:
        """Whether everything has been listed once, after at most so long."""
        return self._synced.wait(seconds)

    def by_index(self, group: str) -> list[Object]:
        """Those of a group, now."""
        with self._lock:
            return list(self._groups.get(group, {}).values())

    def all(self) -> list[Object]:
        """Every object, now."""
        with self._lock:
            return list(self._objects.values())

    def apply_response(self, found: Object) -> None:
        """A server's answer to a write, which the watch is yet to tell; nobody is told of it."""
        what = self.trim(found)
        name = what["metadata"]["name"]
        with self._lock:
            before = self._objects.get(name)
            if before is not None and before["metadata"]["uid"] == what["metadata"]["uid"]:
                self._leave(self.group(before), name)
                self._objects[name] = self._groups[self.group(what)][name] = what

    def get(self, name: str) -> Object | None:
        """The object of this name, if it is there."""
        with self._lock:
            return self._objects.get(name)

    def _loop(self) -> None:
        turn = 0
        while not self._stop.is_set():
            try:
                version = self._list()
                turn, self.problem = 0, ""
                self._synced.set()
                while not self._stop.is_set():
                    began = time.monotonic()
                    version = self._watch(version)
                    self._stop.wait(began + WATCH_INTERVAL_SECONDS - time.monotonic())
            except Exception as error:
                # Whatever it is, a thread that died in silence would leave a run waiting for ever.
                if not (isinstance(error, ApiError) and error.status == 410):
                    self.problem = str(error) if isinstance(error, ApiError) else f"{type(error).__name__}: {error}"
                turn = min(turn + 1, 6)
                after = (isinstance(error, ApiError) and error.after) or 0.0
                self._stop.wait(max(after, random.uniform(0.5, 1.0) * 0.1 * 2**turn))

    def _list(self) -> str:
        items, version = self.cluster.list(self.path, self.selector, trim=self.trim, limit=self.page)
        new = {o["metadata"]["name"]: o for o in items}
        groups: dict[str, dict[str, Object]] = defaultdict(dict)
        for name, what in new.items():
            groups[self.group(what)][name] = what
        with self._lock:
            old, self._objects, self._groups = self._objects, new, groups
        for name, what in old.items():
            if name not in new:
                self.changed(what)
        for name, what in new.items():
            if old.get(name) != what:
                self.changed(what)
        return version

    def _watch(self, version: str) -> str:
        """Until it ends; the version that was reached."""
        for kind, found in self.cluster.watch(self.path, self.selector, version):
            if self._stop.is_set():
                break
            version = found["metadata"]["resourceVersion"]
            if kind == "BOOKMARK":
                continue
            what = self.trim(found)
            name = what["metadata"]["name"]
            with self._lock:
                before = self._objects.pop(name, None)
                if before is not None:
                    self._leave(self.group(before), name)
                if kind != "DELETED":
                    self._objects[name] = self._groups[self.group(what)][name] = what
            if kind == "DELETED" or before != what:  # of what is read, nothing may have changed
                self.changed(what)
        return version

    def _leave(self, group: str, name: str) -> None:
        del self._groups[group][name]
        if not self._groups[group]:
            del self._groups[group]
