"""A store in a directory.

Folders are readable by their owner alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from expunge_jobs.core.errors import BadTask
from expunge_jobs.store.protocol import Conflict, Entry, NotFound, StoreError, checked_path, smaller, too_large
from expunge_jobs.store.schemes import Opening

SHARED = False
_TEMPORARY = ".tmp-"


def open_at(address: str, opening: Opening) -> FileStore:
    """Return the store in a directory: ``file:///path`` or a path.

    Raises:
        BadTask: the address names no directory.
    """
    if not address.removeprefix("file://"):
        raise BadTask(f"store '{address}' names no directory; allowed: file:///path, or a path")
    return FileStore(Path(address.removeprefix("file://")), opening.largest)


class FileStore:
    """A store of files below ``root``.

    Each file is written beside its place, synced, and then renamed or linked.
    """

    def __init__(self, root: Path, largest: int | None = None) -> None:
        self.largest = largest
        self.root = Path(os.path.abspath(root.expanduser()))
        self.uri = self.name = f"file://{self.root}"

    def get(self, path: str, largest: int | None = None) -> tuple[bytes, str]:
        most = smaller(largest, self.largest)
        with self._named(path):
            size = self._place(path).stat().st_size
            if most is not None and size > most:
                raise too_large(path, size, most)
            data = self._place(path).read_bytes()
        return data, hashlib.sha256(data).hexdigest()

    def put(self, path: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> None:
        place = self._place(path)
        with self._named(path, writing=True), self._temporary(place) as temporary:
            with temporary.open("wb") as file:
                file.write(data)
                _sync(file.fileno())
            if if_absent:
                self._link(temporary, place, path)
            elif if_match is not None:
                self._replace_if(temporary, place, path, if_match)
            else:
                temporary.replace(place)
            _sync_folder(place.parent)

    def get_file(self, path: str, to: Path) -> None:
        with self._named(path):
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._place(path), to)

    def put_file(self, path: str, source: Path) -> None:
        place = self._place(path)
        with self._named(path, writing=True), self._temporary(place) as temporary:
            with source.open("rb") as origin, temporary.open("wb") as file:
                shutil.copyfileobj(origin, file, 1 << 20)
                file.flush()
                _sync(file.fileno())
            temporary.replace(place)
            _sync_folder(place.parent)

    def present(self, paths: Iterable[str]) -> set[str]:
        return {p for p in paths if self._is_there(p)}

    def list(self, prefix: str) -> Iterator[Entry]:
        top = self._place(prefix)
        found: list[Entry] = []
        for folder, _, names in os.walk(top):
            for name in names:
                if name.startswith(_TEMPORARY):
                    continue
                file = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):  # deleted during the walk
                    status = file.stat()
                    found.append(Entry(file.relative_to(self.root).as_posix(), status.st_size, status.st_mtime))
        yield from sorted(found, key=lambda e: e.path)

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            place = self._place(path)
            with self._named(path), contextlib.suppress(FileNotFoundError):
                place.unlink()
            # An object store has no empty folders; therefore a folder is deleted with its last object.
            with contextlib.suppress(OSError):
                for folder in place.parents:
                    if folder == self.root:
                        break
                    folder.rmdir()

    def local_path(self, path: str) -> Path | None:
        return self._place(path)

    def details(self) -> str:
        return ""

    def check(self) -> None:
        pass  # a directory always answers; therefore nothing to check

    def _is_there(self, path: str) -> bool:
        with self._named(path):
            return self._place(path).is_file()

    def _place(self, path: str) -> Path:
        return self.root.joinpath(*checked_path(path).split("/"))

    def _link(self, temporary: Path, place: Path, path: str) -> None:
        try:
            os.link(temporary, place)
        except FileExistsError:
            raise Conflict(f"{path} is there already") from None

    def _replace_if(self, temporary: Path, place: Path, path: str, version: str) -> None:
        # Only writers that replace take this lock; a reader sees the old file or the new one.
        lock = place.parent / f"{_TEMPORARY}lock"
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            try:
                now = hashlib.sha256(place.read_bytes()).hexdigest()
            except FileNotFoundError:
                now = ""
            if now != version:
                raise Conflict(f"{path} has changed")
            temporary.replace(place)

    @contextlib.contextmanager
    def _temporary(self, place: Path) -> Iterator[Path]:
        _make_folders(place.parent)
        temporary = place.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
        try:
            yield temporary
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()

    @contextlib.contextmanager
    def _named(self, path: str, writing: bool = False) -> Iterator[None]:
        """Translate errors of the file system into errors of the store."""
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not writing:
                raise NotFound(f"{self.uri} has no {path}") from None
            raise StoreError(self._reason(path, error)) from None

    def _reason(self, path: str, error: OSError) -> str:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the store {self.uri} is full (writing {path}): free some space or use another --store"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
            return f"the store {self.uri} is not writable for you ({path}: {error.strerror}): use another --store"
        if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            return f"the store {self.uri} is not usable: a file lies where a folder belongs ({path})"
        return f"the store {self.uri} failed at {path}: {error.strerror or error}"


def _make_folders(folder: Path) -> None:
    if folder.is_dir():
        return
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    for place in reversed(missing):
        place.mkdir(mode=0o700, exist_ok=True)


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
