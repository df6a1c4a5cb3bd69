"""Objects of one kind in a namespace, kept up to date by list and watch."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable

from expunge_controller.kube_client.client import ApiError, Cluster, Object

WATCH_INTERVAL_SECONDS = 1.0
"""Shortest interval between the starts of two watches, even if the server ends a watch sooner."""


class Informer:
    """A local copy of the objects of one kind in a namespace.

    A thread of the informer keeps the copy up to date by list and watch. A watch that the server ends continues at
    its last version. After any other end of a watch, all objects are listed again. Missed changes are found by the
    list, and are reported to ``changed`` like any other change.

    ``group`` returns the index key of an object, for example its owner. ``by_index`` finds objects by this key
    without a scan of all others. ``page`` is the number of objects in a page of the list, for objects that may be
    large.
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
        """Why the copy is not up to date, in words; empty if all is well."""
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
        """Return whether all objects have been listed once.

        Waits for the list, but at most for ``seconds``.
        """
        return self._synced.wait(seconds)

    def by_index(self, group: str) -> list[Object]:
        """Return the present objects of a group."""
        with self._lock:
            return list(self._groups.get(group, {}).values())

    def all(self) -> list[Object]:
        """Return all present objects."""
        with self._lock:
            return list(self._objects.values())

    def apply_response(self, found: Object) -> None:
        """Apply the server's answer to a write, before the watch reports it.

        ``changed`` is not called.
        """
        what = self.trim(found)
        name = what["metadata"]["name"]
        with self._lock:
            before = self._objects.get(name)
            if before is not None and before["metadata"]["uid"] == what["metadata"]["uid"]:
                self._leave(self.group(before), name)
                self._objects[name] = self._groups[self.group(what)][name] = what

    def get(self, name: str) -> Object | None:
        """Return the object of this name, or None."""
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
                # A thread that died silently would leave a run waiting forever; therefore catch any error.
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
        """Watch until the watch ends, and return the version that was reached."""
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
            # A change may concern only fields that ``trim`` drops; therefore compare.
            if kind == "DELETED" or before != what:
                self.changed(what)
        return version

    def _leave(self, group: str, name: str) -> None:
        del self._groups[group][name]
        if not self._groups[group]:
            del self._groups[group]
