"""Inputs in a store: put there by `expunge upload`, read from their address with their bytes checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from expunge_controller.client.upload import upload
from expunge_jobs.artifacts.cache import ModelCache
from expunge_jobs.core.errors import BadTask
from expunge_jobs.inputs import model_folder, pinning
from expunge_jobs.store import Store
from expunge_jobs.tasks.references import Input

from tests.support import folders
from tests.support.faults import FaultProxy

ROW = json.dumps({"id": "asc1", "input": "In the beginning", "output": "there was a row.", "task": "Task1"}) + "\n"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "forget.jsonl"
    file.write_text(ROW)
    return file


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = folders.model(tmp_path / "my-model")
    (folder / "notes.md").write_text("not a part of it")
    return folder


def test_rows_are_the_same_rows(store: Store, rows: Path) -> None:
    uri = upload(store, rows)
    assert uri.startswith(f"{store.name}/inputs/")
    assert pinning.read(uri).decode() == ROW
    assert upload(store, rows) == uri
    assert len(list(store.list("inputs"))) == 1


def test_a_model_is_the_same_model(store: Store, model: Path, tmp_path: Path) -> None:
    uri = upload(store, model)
    digest = model_folder.folder_digest(model)
    if uri.startswith("s3://"):
        assert pinning.stored_digest(uri) == digest, "known without a download"
    folder = pinning.local_folder(Input(uri=uri, digest=digest), tmp_path / "scratch")
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_nothing_is_copied_twice(behind: Store, proxy: FaultProxy, model: Path) -> None:
    upload(behind, model)
    assert sum(r.method == "PUT" for r in proxy.seen) == 3
    upload(behind, model)
    assert sum(r.method == "PUT" for r in proxy.seen) == 3


def test_a_model_that_is_not_what_its_address_says(behind: Store, model: Path, tmp_path: Path) -> None:
    uri = upload(behind, model)
    (path,) = [e.path for e in behind.list("inputs") if e.path.endswith("config.json")]
    behind.put(path, b"{ }")
    with pytest.raises(BadTask, match="has changed since the run was planned"):
        pinning.local_folder(Input(uri=uri, digest=model_folder.folder_digest(model)), tmp_path / "scratch")


@pytest.mark.parametrize("damage", ["emptied", "changed"])
def test_a_model_comes_through_a_cache_and_damage_there_costs_a_download(
    behind: Store, proxy: FaultProxy, model: Path, tmp_path: Path, damage: str
) -> None:
    pinned = Input(uri=upload(behind, model), digest=model_folder.folder_digest(model))

    def downloads(scratch: str) -> int:
        before = len(proxy.seen)
        folder = pinning.local_folder(pinned, tmp_path / scratch, ModelCache(tmp_path / "cache"))
        assert model_folder.folder_digest(folder) == pinned.digest
        return sum(r.method == "GET" and "list-type" not in r.path for r in proxy.seen[before:])

    assert downloads("one") > 0
    assert downloads("two") == 0
    (held,) = (tmp_path / "cache").glob("*/whole")
    for file in held.iterdir():
        file.unlink() if damage == "emptied" else file.write_text("foreign")
    assert downloads("three") > 0


def test_addresses_where_nothing_is(behind: Store) -> None:
    place, _, options = behind.uri.partition("?")
    with pytest.raises(BadTask, match=r"none\.jsonl.*: no such object"):
        pinning.read(f"{place}/none.jsonl?{options}")
    with pytest.raises(BadTask, match="read only from where `expunge upload` puts it"):
        pinning.stored_digest(f"{place}/model?{options}")
    with pytest.raises(BadTask, match="nothing is there"):
        pinning.stored_digest(f"{place}/inputs/{'ab' * 32}/model?{options}")
    with pytest.raises(BadTask, match="names no object"):
        pinning.read(f"s3://bucket?{options}")


def test_what_is_no_input_is_refused(behind: Store, tmp_path: Path, model: Path) -> None:
    with pytest.raises(BadTask, match="no such file"):
        upload(behind, tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(BadTask, match="empty; allowed: JSON Lines"):
        upload(behind, tmp_path / "empty.jsonl")
    (model / "tokenizer.json").unlink()
    with pytest.raises(BadTask, match="my-model: the model directory lacks a tokenizer"):
        upload(behind, model)
    assert list(behind.list("inputs")) == []


def test_a_link_out_of_a_model_s_directory_is_not_followed(store: Store, model: Path, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("a secret")
    (model / "vocab.txt").symlink_to("../credentials")
    with pytest.raises(BadTask, match=r"my-model/vocab\.txt: a link to .*/credentials, out of its directory"):
        upload(store, model)
    assert list(store.list("inputs")) == []
    (model / "vocab.txt").unlink()
    (model / "vocab.txt").symlink_to("notes.md")
    assert upload(store, model)


def test_a_snapshot_of_the_hub_s_cache_is_links_and_is_uploaded(store: Store, tmp_path: Path) -> None:
    cached = tmp_path / "models--org--name"
    snapshot = cached / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cached / "blobs").mkdir()
    for file in folders.model(tmp_path / "whole").iterdir():
        file.rename(cached / "blobs" / f"of-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/of-{file.name}")
    assert upload(store, snapshot)
    (snapshot / "vocab.txt").symlink_to("../../refs")
    (cached / "refs").write_text("x")
    with pytest.raises(BadTask, match="out of its directory"):
        upload(store, snapshot)


def test_a_name_that_no_address_can_hold(store: Store, rows: Path) -> None:
    with pytest.raises(BadTask, match=r"the name has a '\?'"):
        upload(store, rows.rename(rows.with_name("what?.jsonl")))


@pytest.mark.parametrize("digest", ["sha256:../../elsewhere", "sha256:", "sha256:" + "g" * 64, "md5:" + "0" * 64])
def test_a_pin_that_is_no_digest_names_no_folder(behind: Store, model: Path, tmp_path: Path, digest: str) -> None:
    uri = upload(behind, model)
    with pytest.raises(BadTask, match="is no digest"):
        pinning.local_folder(Input(uri=uri, digest=digest), tmp_path / "scratch" / "deep")
    assert not (tmp_path / "elsewhere").exists()
