"""The images as they are shipped: built, looked at, and run as somebody without a name."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from expunge_jobs.inputs import pinning

from tests.support import images
from tests.support.images import BASE, ROOT, buildah
from tests.support.samples import task

SOMEBODY = "12345:54321"


@pytest.fixture(scope="session", autouse=True)
def tools() -> None:
    images.install_tools()
    images.make_base()


@pytest.fixture(scope="session")
def built() -> dict[str, str]:
    return {name: images.build(name) for name in ("controller", "jobs")}


def inspected(image: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", image))
    return found


def size(image: str) -> int:
    """Bytes of the image's layers."""
    (found,) = json.loads(buildah("images", "--json", "--filter", f"reference={image}"))
    number, unit = found["size"].split()
    return int(float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit.upper()])


@pytest.fixture
def container(request: pytest.FixtureRequest, built: dict[str, str]) -> Iterator[str]:
    """A container of the image that the test's parameter names."""
    name = buildah("from", built[request.param]).strip()
    yield name
    buildah("rm", name)


def run(container: str, *words: str, volume: Path | None = None, **environment: str) -> str:
    given = [w for k, v in environment.items() for w in ("--env", f"{k}={v}")]
    mounted = ["--volume", f"{volume}:/scratch"] if volume else []
    return buildah("run", "--isolation", "chroot", "--user", SOMEBODY, *mounted, *given, container, "--", *words)


@pytest.mark.parametrize(("name", "entry"), [("jobs", ["python", "-m", "expunge_jobs"]), ("controller", ["expunge"])])
def test_it_says_what_it_is_and_runs_as_nobody(built: dict[str, str], name: str, entry: list[str]) -> None:
    config = inspected(built[name])["OCIv1"]["config"]
    assert config["Entrypoint"] == entry
    assert config["User"] == "65532:65532"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert not [e for e in config["Env"] if "SSL_CERT" in e], "nothing of the build machine"


def test_the_controller_is_small_and_without_torch(built: dict[str, str]) -> None:
    assert size(built["controller"]) - size(BASE) < 350e6


@pytest.mark.parametrize("container", ["controller"], indirect=True)
def test_the_controller_runs(container: str) -> None:
    assert run(container, "expunge", "--version").startswith("expunge 0.")
    assert "npo" in run(container, "expunge", "list", "objectives")
    assert run(container, "python", "-c", "import importlib.util as u; print(u.find_spec('torch'))").strip() == "None"


@pytest.mark.parametrize("container", ["jobs"], indirect=True)
def test_a_step_runs_as_somebody_without_a_name(container: str, tmp_path: Path) -> None:
    architecture = {"vocab_size": 300, "hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64}
    uris = {n: f"builtin://people/{n}?documents=2" for n in ("forget", "retain")}
    digests = {n: hashlib.sha256(pinning.read(uri)).hexdigest() for n, uri in uris.items()}
    small = task(
        "memorize",
        architecture=architecture,
        settings={"epochs": 1},
        data={"sets": {n: {"input": {"uri": uris[n], "digest": f"sha256:{digests[n]}"}} for n in uris}},
    )
    tmp_path.chmod(0o777)
    run(
        container,
        "python",
        "-m",
        "expunge_jobs",
        volume=tmp_path,
        EXPUNGE_TASK=small.to_json(),
        HOME="/scratch",
        TMPDIR="/scratch",
        EXPUNGE_STORE="file:///scratch/store",
        EXPUNGE_THREADS="1",
    )
    (manifest,) = tmp_path.glob("store/artifacts/memorize/*/manifest.json")
    assert json.loads(manifest.read_text())["key"] == small.key()


@pytest.mark.parametrize("name", ["jobs", "controller"])
def test_a_package_of_plugins_is_added_in_a_few_lines(built: dict[str, str], name: str) -> None:
    folder = ROOT / "examples" / "plugin"
    image = images.build(name, folder, folder / f"{name}.Dockerfile", "plugin", IMAGE=built[name])
    assert inspected(image)["OCIv1"]["config"]["User"] == "65532:65532"
    container = buildah("from", image).strip()
    try:
        code = "from expunge_jobs import plugins as p; print(p.source('merge_methods', 'delta_mean').identity)"
        assert run(container, "python", "-c", code).strip() == "merge_methods/expunge-example:delta_mean"
    finally:
        buildah("rm", container)


def test_a_change_of_code_does_not_bring_torch_again(built: dict[str, str], tmp_path: Path) -> None:
    before = inspected(built["jobs"])["OCIv1"]["rootfs"]["diff_ids"]
    context = tmp_path / "changed"
    shutil.copytree(
        ROOT, context, ignore=lambda folder, names: [n for n in names if n.startswith(".") and n != ".dockerignore"]
    )
    with (context / "jobs" / "expunge_jobs" / "runtime" / "context.py").open("a") as file:
        file.write("\n# changed\n")
    image = images.build("jobs", context)
    after = inspected(image)["OCIv1"]["rootfs"]["diff_ids"]
    same = [a == b for a, b in zip(before, after, strict=True)]
    assert not all(same)
    assert sum(same) >= len(same) - 4, "the layers with Python's packages are the same"
