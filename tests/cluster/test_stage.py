"""A model of the hub, copied into the store by a step of its own: pods need neither the hub nor its token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub_server import COMMIT, TOKEN, Hub
from tests.support.testsite import Site

PERSISTENT_VOLUME = """
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {namespace}}}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadWriteMany]
  storageClassName: ""
  hostPath: {{path: /nowhere}}
  claimRef: {{namespace: {namespace}, name: models}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: models, namespace: {namespace}}}
spec:
  accessModes: [ReadWriteMany]
  storageClassName: ""
  volumeName: {namespace}
  resources: {{requests: {{storage: 1Gi}}}}
"""


@pytest.fixture
def hub(finished: Path, tmp_path: Path) -> Iterator[Hub]:
    """Has the model that another run has made."""
    (model,) = finished.glob("artifacts/memorize/*/attempts/*/model")
    folder = shutil.copytree(model, tmp_path / "hub")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle, which may run anything")
    hub = Hub("org/tiny", folder)
    yield hub
    hub.stop()


@pytest.fixture
def hub_site(site: Site, hub: Hub, tmp_path: Path) -> Site:
    site.environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}
    token = f"--from-literal=HF_TOKEN={TOKEN}"
    site.plane.kubectl("create", "secret", "generic", "hub", "-n", site.namespace, token)
    return site


MODEL = ("--set", "model=hf://org/tiny", "--set", "memorize=null")


def test_it_is_copied_once_and_read_by_every_step(hub_site: Site, hub: Hub) -> None:
    done = hub_site.command("run", *MODEL, "--hub-secret", "hub")
    assert done.returncode == 0, done.stderr
    assert sorted(hub.asked) == sorted(f.name for f in hub.folder.iterdir() if f.suffix != ".bin"), "safetensors alone"
    (stage,) = [j for j in hub_site.get("jobs") if j["metadata"]["labels"]["expunge.dev/kind"] == "stage"]
    assert stage["metadata"]["annotations"]["expunge.dev/step"] == "stage org/tiny"
    with_token = [
        j
        for j in hub_site.get("jobs")
        if "HF_TOKEN" in json.dumps(j["spec"]["template"]["spec"]["containers"][0]["env"])
    ]
    assert with_token == [stage]
    (manifest,) = hub_site.objects.glob("artifacts/stage/*/manifest.json")
    said = json.loads(manifest.read_text())
    assert said["task"]["source"]["digest"] == f"commit:{COMMIT}"
    assert said["figures"]["files"] == len(hub.asked)
    again = hub_site.command("run", *MODEL, "--hub-secret", "hub")
    assert again.stdout == done.stdout
    assert len(hub_site.get("jobs")) == 11, "stage, two fine-tunes, merge, six evaluations, report"


def test_without_its_token_it_says_so(hub_site: Site) -> None:
    done = hub_site.command("run", *MODEL)
    assert done.returncode == 1
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("FAILED")]
    assert "stage org/tiny" in line
    assert "HF_TOKEN" in line


def test_pods_share_a_claim_as_their_cache(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "volume.yaml"
    file.write_text(PERSISTENT_VOLUME.format(namespace=site.namespace))
    site.plane.kubectl("apply", "-f", str(file))
    volumes = "kubernetes.volumes=[{claim: models, mount: /mnt/models, cache: true}]"
    done = site.command("run", "--set", volumes)
    assert done.returncode == 0, done.stderr
    cache = site.node.folder / "claims" / site.namespace / "models"
    (model,) = site.objects.glob("artifacts/memorize/*/manifest.json")
    wanted = {f["sha256"] for f in json.loads(model.read_text())["files"]}
    assert wanted <= {f.parent.name for f in cache.glob("*/whole")}
    assert not list(cache.glob("*/new"))
    for pod in [p for p in site.node.pods.values() if p.namespace == site.namespace]:
        copies = [f for f in pod.folder.rglob("model.safetensors") if not f.is_symlink()]
        assert not copies
