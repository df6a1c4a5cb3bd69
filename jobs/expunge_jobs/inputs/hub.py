"""The model hub: addresses, commits and files.

The address of a hub model is ``hf://org/name@revision``. The module asks for a commit over plain HTTP. Therefore the
controller needs neither huggingface_hub nor its dependencies. In a step, huggingface_hub downloads the files.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from expunge_jobs.core.errors import BadTask, StepError
from expunge_jobs.core.proxies import connections
from expunge_jobs.store import Unavailable

ENDPOINT = "https://huggingface.co"
SECONDS = 20.0
"""Timeout in seconds for one answer of the hub."""
ANSWER_BYTES = 16 * 2**20
"""Limit in bytes of an answer. An answer lists every file of the repository."""
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
REVISION_PATTERN = r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._+-]{0,95}){0,7}"
"""A branch, a tag, a commit or a ref such as refs/pr/1. No part is empty, begins with a dot, or leads elsewhere."""
_ADDRESS = re.compile(rf"hf://({NAME_PATTERN})(?:@({REVISION_PATTERN}))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_IGNORED = ["*/*", "consolidated*"]
"""Folders beside the model, and duplicates of the weights in their makers' own form."""


def parse_address(uri: str) -> tuple[str, str]:
    """Return the name and the revision of ``hf://org/name@revision``.

    The default revision is ``main``.

    Raises:
        BadTask: not of that form.
    """
    found = _ADDRESS.fullmatch(uri)
    if found is None:
        raise BadTask(f"{uri}: not a hub model; allowed: hf://org/name@revision")
    return found[1], found[2] or "main"


def commit_of(digest: str) -> str:
    """Return the commit of a pinned hub model, ``commit:<40 hex digits>``.

    Raises:
        BadTask: not of that form.
    """
    commit = digest.removeprefix("commit:")
    if not _COMMIT.fullmatch(commit):
        raise BadTask(f"'{digest}' pins no commit of the hub; allowed: commit: and 40 hex digits")
    return commit


@dataclass(frozen=True)
class Hub:
    """The API of a hub with one user's credentials.

    ``cache`` is a folder in huggingface_hub's layout. The cache answers if the hub does not.
    """

    endpoint: str = ENDPOINT
    token: str | None = None
    cache: Path | None = None
    offline: bool = False

    def commit(self, uri: str) -> str:
        """Return the commit that a hub model's revision names now.

        Raises:
            BadTask: no such address, model or revision, or not for this user.
            Unavailable: the hub did not answer; a later call may go through.
        """
        name, revision = parse_address(uri)
        if _COMMIT.fullmatch(revision):
            return revision
        try:
            if self.offline:
                raise Unavailable(f"{uri}: HF_HUB_OFFLINE is set, and the hub's cache here does not know it")
            return self._ask(uri, name, revision)
        except Unavailable:
            if self.cache is None:
                raise
            # No part of a revision is absolute or begins with a dot; therefore the path stays inside the cache.
            known = self.cache / f"models--{name.replace('/', '--')}" / "refs" / revision
            commit = known.read_text().strip() if known.is_file() else ""
            if not _COMMIT.fullmatch(commit):
                raise
            return commit

    def _ask(self, uri: str, name: str, revision: str) -> str:
        from urllib3.exceptions import HTTPError
        from urllib3.util import Retry, Timeout

        url = f"{self.endpoint}/api/models/{name}/revision/{revision.replace('/', '%2F')}"
        headers = {"Accept": "application/json", "User-Agent": "expunge"}
        if self.token and not re.fullmatch(r"[\x21-\x7e]+", self.token):
            raise BadTask(f"{uri}: HF_TOKEN holds characters that no header may hold")
        if self.token:  # urllib3 drops this header on a redirect to another host
            headers["Authorization"] = f"Bearer {self.token}"
        away = f"{uri}: the hub {self.endpoint}"
        try:
            answer = connections(url).request(
                "GET",
                url,
                headers=headers,
                preload_content=False,
                timeout=Timeout(total=SECONDS),
                retries=Retry(connect=1, read=1, redirect=5, status=0),
            )
            with answer:
                status, body = answer.status, answer.read(ANSWER_BYTES + 1)
        except (HTTPError, OSError) as error:
            raise Unavailable(f"{away} does not answer: {_cause(error)}") from None
        if status in (401, 403, 404):
            mine = (
                "not for this HF_TOKEN"
                if self.token
                else "private: then name its commit (hf://org/name@<40 hex digits>)"
            )
            raise BadTask(f"{uri}: the hub has no such model or revision, or it is {mine}")
        if status != 200 or len(body) > ANSWER_BYTES:
            raise Unavailable(f"{away} answers {status}" if status != 200 else f"{away} gives more than is read")
        try:
            commit = str(json.loads(body)["sha"])
        except (ValueError, KeyError, TypeError):
            commit = ""
        if not _COMMIT.fullmatch(commit):
            raise Unavailable(f"{away} gives no commit")
        return commit


def public_hub() -> Hub:
    """Return the hub without credentials.

    The result has no token and no cache, and the function reads no file of this machine. HF_ENDPOINT names a mirror.
    """
    return Hub((os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/"))


def own_hub() -> Hub:
    """Return the hub with this user's token and cache.

    huggingface_hub would use the same token and cache.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = Path(os.environ.get("HF_HOME") or f"{cache}/huggingface").expanduser()
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    file = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
    if not token and os.access(file, os.R_OK):
        token = file.read_text()
    return Hub(
        public_hub().endpoint,
        token.strip() or None,
        Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser(),
        offline=os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"),
    )


def snapshot(name: str, commit: str, suffixes: tuple[str, ...]) -> Path:
    """Return the local folder of a hub model at a commit.

    Files with one of the suffixes are downloaded unless the cache has them.

    Raises:
        BadTask: the hub does not have the model, or not for this token.
        StepError: the hub could not be asked. A later call may succeed.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    patterns = [f"*{suffix}" for suffix in suffixes]
    try:
        return Path(snapshot_download(name, revision=commit, allow_patterns=patterns, ignore_patterns=_IGNORED))
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise BadTask(f"hf://{name}@{commit}: the hub does not have it, or not for this HF_TOKEN") from None
    except Exception as error:  # the hub's client and its HTTP client raise errors of many types
        raise StepError(f"hf://{name}@{commit}: cannot be had: {_first_line(error)}") from None


def _cause(error: Exception) -> str:
    """Return the cause of a connection error.

    The text omits urllib3's names of its own objects.
    """
    return str(getattr(error, "reason", None) or error).rpartition("): ")[2] or type(error).__name__


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
