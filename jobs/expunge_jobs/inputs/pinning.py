"""Reading of inputs outside the store, and the digests that pin them.

The module loads no torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from expunge_jobs.artifacts.cache import ModelCache
from expunge_jobs.core.errors import BadTask
from expunge_jobs.inputs import builtin, hub
from expunge_jobs.inputs.addresses import STORED, scheme
from expunge_jobs.inputs.model_folder import MODEL_SUFFIXES, folder_digest
from expunge_jobs.store import AWAY, NotFound, Store, is_shared, open_store, shared_schemes, split
from expunge_jobs.tasks.references import Input


def read(uri: str, largest: int | None = None, should_stop: Callable[[], bool] | None = None) -> bytes:
    """Return the bytes of a data file.

    ``largest`` limits the bytes of an object in a bucket. With ``should_stop``, the call waits ``AWAY`` seconds at most
    for an unavailable server. The wait ends early if ``should_stop`` returns True.

    Raises:
        BadTask: missing, a folder, not readable, or a scheme that holds no data files.
        TooLarge: an object of more than ``largest`` bytes.
        StoreError: a server that refuses, or does not answer.
    """
    kind = scheme(uri)
    if kind == "builtin":
        return builtin.read(uri)
    if kind == "hf":
        shared = ", ".join(f"{s}://" for s in shared_schemes())
        raise BadTask(f"{uri}: data files are read from file://, {shared} or builtin://; hf:// is for models")
    if is_shared(uri):
        store, name = _apart(uri, should_stop, largest)
        try:
            return _whole(uri, store.get(name)[0])
        except NotFound:
            raise BadTask(f"{uri}: no such object") from None
    path = Path(uri.removeprefix("file://"))
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BadTask(f"{path}: no such file") from None
    except IsADirectoryError:
        raise BadTask(f"{path}: is a folder; allowed: a file of rows") from None
    except OSError as error:
        raise BadTask(f"{path}: not readable ({error.strerror})") from None
    return _whole(str(path), content)


def _whole(name: str, content: bytes) -> bytes:
    if not content.strip():
        raise BadTask(f"{name}: empty; allowed: JSON Lines with id, input, output, task")
    return content


def _apart(uri: str, should_stop: Callable[[], bool] | None = None, largest: int | None = None) -> tuple[Store, str]:
    """Return the store of an input's folder, and the input's name there."""
    folder, name = split(uri)
    if should_stop is None:
        return open_store(folder, largest=largest, patient=False), name
    return open_store(folder, away=AWAY, largest=largest, should_stop=should_stop), name


def stored_digest(uri: str) -> str:
    """Return the digest of a model or adapter in a bucket.

    The digest is a part of the address. A fetch verifies the digest.

    Raises:
        BadTask: not where `expunge upload` puts such folders, or nothing is there.
    """
    store, name = _apart(uri)
    place = re.search(rf"/{STORED}/([0-9a-f]{{64}})$", store.name)
    if place is None:
        raise BadTask(f"{uri}: a folder in a bucket is read only from where `expunge upload` puts it")
    if next(iter(store.list(name)), None) is None:
        raise BadTask(f"{uri}: nothing is there")
    return f"sha256:{place.group(1)}"


def read_checked(ref: Input, should_stop: Callable[[], bool]) -> bytes:
    """Return the bytes of a pinned data file.

    ``should_stop`` is as in ``read``.

    Raises:
        BadTask: the file has another digest than the pinned one.
    """
    content = read(ref.uri, should_stop=should_stop)
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != ref.digest:
        raise BadTask(f"the input {ref.uri.removeprefix('file://')} has changed since the run was planned: run again")
    return content


def local_folder(
    ref: Input, scratch: Path, cache: ModelCache | None = None, should_stop: Callable[[], bool] = lambda: False
) -> Path:
    """Return the local folder of a pinned model or adapter.

    A hub model comes from, or goes through, the hub's own cache. A model in a bucket is copied below ``scratch``,
    through ``cache`` if given.

    Raises:
        BadTask: another digest than the pinned one, or the hub does not have the model.
    """
    if scheme(ref.uri) == "hf":
        return hub.snapshot(hub.parse_address(ref.uri)[0], hub.commit_of(ref.digest), MODEL_SUFFIXES)
    folder = Path(ref.uri.removeprefix("file://"))
    if is_shared(ref.uri):
        digest = ref.digest.removeprefix("sha256:")
        if not re.fullmatch("[0-9a-f]{64}", digest):  # the digest becomes a folder's name; therefore validate it
            raise BadTask(f"'{ref.digest}' is no digest; allowed: sha256: and 64 hex digits")
        folder = scratch / digest
        fetch = partial(_fetch, ref.uri, should_stop)
        if cache:
            cache.fetch(digest, folder, fetch, partial(_is, ref.digest))
        else:
            fetch(folder)
    if folder_digest(folder) != ref.digest:
        raise BadTask(f"the input {ref.uri.removeprefix('file://')} has changed since the run was planned: run again")
    return folder


def _is(digest: str, folder: Path) -> bool:
    try:
        return folder_digest(folder) == digest
    except BadTask:  # the folder is empty or missing
        return False


def _fetch(uri: str, should_stop: Callable[[], bool], into: Path) -> None:
    store, name = _apart(uri, should_stop)
    into.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda path: store.get_file(path, into / Path(path).name), [e.path for e in store.list(name)]))
