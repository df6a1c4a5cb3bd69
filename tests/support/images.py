"""Our images, built by buildah as root on a base that debootstrap makes: no image registry is asked.

All of it lies in the cache folder, so that torch is brought into an image once on a machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.support.toolchain import CACHE, binary

ROOT = Path(__file__).parents[2]
BASE = "localhost/expunge-base:bookworm"
TOOLS = ("buildah", "debootstrap")
_CERTIFICATES = "/etc/ssl/certs"


def why_not() -> str:
    """Why no image can be built here, or nothing."""
    if os.geteuid() != 0:
        return "images are built as root: run `make images` as root, on Debian or Ubuntu"
    if not all(map(shutil.which, TOOLS)) and not shutil.which("apt-get"):
        return f"needs {' and '.join(TOOLS)}"
    return ""


def install_tools() -> None:
    """buildah and debootstrap, from the distribution, if they are not there."""
    if all(map(shutil.which, TOOLS)):
        return
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *TOOLS]):
        subprocess.run(["apt-get", "-qq", *words], env=environment, check=True, capture_output=True)


def buildah(*words: str, give: str | None = None) -> str:
    """The output of one call."""
    place = CACHE / "containers"
    done = subprocess.run(
        [
            "buildah",
            "--root",
            str(place / "root"),
            "--runroot",
            str(place / "run"),
            "--storage-driver",
            "overlay",
            *words,
        ],
        input=give,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"buildah {' '.join(words[:3])}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def exists(image: str) -> bool:
    return bool(buildah("images", "--quiet", "--filter", f"reference={image}").strip())


def make_base() -> None:
    """Debian with Python and CA certificates, a minute or two. What earlier builds left is removed."""
    buildah("rmi", "--prune")
    if exists(BASE):
        return
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        packages = "--include=python3,python3-venv,ca-certificates"
        subprocess.run(
            ["debootstrap", "--variant=minbase", packages, "bookworm", f"{folder}/base"],
            check=True,
            capture_output=True,
        )
        Path(folder, "Dockerfile").write_text("FROM scratch\nADD base /\n")
        buildah("bud", "--quiet", "--tag", BASE, folder)


def archive(image: str, to: Path) -> None:
    """The image as a file that a container runtime imports."""
    to.unlink(missing_ok=True)
    buildah("push", image, f"docker-archive:{to}:{image}")


def identity(image: str) -> str:
    """The image's digest."""
    (found,) = json.loads(buildah("images", "--json", "--filter", f"reference={image}"))
    return str(found["id"])


def make_pause() -> str:
    """The image of a pod's first process."""
    image = "localhost/pause:1"
    if not exists(image):
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            shutil.copy(binary("pause"), f"{folder}/pause")
            Path(folder, "Dockerfile").write_text('FROM scratch\nADD pause /pause\nENTRYPOINT ["/pause"]\n')
            buildah("bud", "--quiet", "--tag", image, folder)
    return image


def build_from(name: str, line: str) -> str:
    """The base with one thing more, for a user that is not root."""
    image = f"localhost/{name}:1"
    if not exists(image):
        text = f"FROM {BASE}\n{line}\nUSER 65532:65532\n"
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            Path(folder, "Dockerfile").write_text(text)
            buildah("bud", "--isolation", "chroot", "--quiet", "--tag", image, folder)
    return image


def build(name: str, context: Path = ROOT, file: Path | None = None, tag: str = "test", **arguments: str) -> str:
    """Build ``docker/<name>.Dockerfile``, or another file. Layers that have not changed are not made again."""
    image = f"localhost/expunge-{name}:{tag}"
    given = [w for k, v in (arguments or {"BASE": BASE}).items() for w in ("--build-arg", f"{k}={v}")]
    certificates = ["--volume", f"{_CERTIFICATES}:{_CERTIFICATES}:ro"]
    if own := os.environ.get("SSL_CERT_FILE"):
        certificates += ["--build-arg", f"SSL_CERT_FILE={own}"]
    buildah(
        "bud",
        "--isolation",
        "chroot",
        "--layers",
        *certificates,
        *given,
        "--tag",
        image,
        "--file",
        str(file or context / "docker" / f"{name}.Dockerfile"),
        str(context),
    )
    return image
