"""A store in a bucket: what only a server, a network and the SDK can get wrong. The protocol's tests are in
test_store.py.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme
from expunge_jobs.artifacts.attempts import Attempt
from expunge_jobs.artifacts.manifests import fetch, read_manifest
from expunge_jobs.core.errors import BadTask, DamagedInput
from expunge_jobs.store import (
    Conflict,
    Store,
    StoreError,
    TooLarge,
    Unavailable,
    check_conditional_writes,
    open_store,
)
from expunge_jobs.store.s3_address import parse_address
from expunge_jobs.store.schemes import s3
from expunge_jobs.store.schemes.s3 import S3Store
from expunge_jobs.tasks.references import ArtifactRef

from tests.support.faults import Answer, FaultProxy, Request, Serve, answer, corrupt, cut, lose, silent, slow, truncate
from tests.support.s3server import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server
from tests.support.samples import task

MIB = 1 << 20


def put(request: Request) -> bool:
    return request.method == "PUT"


def get(request: Request) -> bool:
    return request.method == "GET"


@pytest.fixture
def sums(proxy: FaultProxy, prefix: str) -> Store:
    """The same, with the SDK's own checksums on the wire."""
    return open_store(f"s3://{prefix}?endpoint_url={proxy.url}&checksums=when_supported")


def unfinished(store: Store, prefix: str) -> list[str]:
    """Multipart uploads that nobody ended."""
    client: Any = store._client()  # type: ignore[attr-defined]
    found = client.list_multipart_uploads(Bucket=BUCKET, Prefix=prefix.partition("/")[2]).get("Uploads", [])
    return [u["Key"] for u in found]


def test_an_address_comes_back_as_it_was() -> None:
    for uri in (
        "s3://bucket",
        "s3://bucket/a/b",
        "s3://bucket/a?endpoint_url=http%3A%2F%2F127.0.0.1%3A9000&region=eu-west-1&addressing=path&checksums=when_required",
        "s3://bucket/a?ca_bundle=%2Fetc%2Fca.pem&sse_kms_key_id=arn%3Aaws%3Akms%3Akey",
        "s3://My_Bucket.Old/a",
        "s3://arn:aws:s3:us-east-1:123456789012:accesspoint/mine/a/b",
        "s3://arn:aws:s3:us-east-1:123456789012:accesspoint:mine",
    ):
        assert str(parse_address(uri)) == open_store(uri).uri == uri
    store = open_store("s3://bucket/a/?endpoint_url=http://127.0.0.1:9000")
    assert store.name == "s3://bucket/a"
    assert "endpoint_url=http%3A%2F%2F127.0.0.1%3A9000" in store.uri


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://", "'' is no bucket's name"),
        ("s3://tenant:bucket/a", "'tenant:bucket' is no bucket's name"),
        ("s3://a b/a", "'a b' is no bucket's name"),
        ("s3://../a", "'..' is no bucket's name"),
        ("s3://" + "a" * 256, "is no bucket's name"),
        ("s3://bucket/a/../b", "no path in a store"),
        ("s3://bucket?regoin=x", "unknown option 'regoin'.*did you mean 'region'"),
        ("s3://bucket?region=", "region is ''"),
        ("s3://bucket?checksums=when_require", "allowed: when_supported, when_required; did you mean 'when_required'"),
        ("s3://bucket?addressing=paths", "did you mean 'path'"),
        ("s3://bucket?x", "unknown option 'x'"),
        ("s4://bucket", "unknown scheme 's4://'; allowed: file://, s3://"),
    ],
)
def test_wrong_addresses(uri: str, words: str) -> None:
    with pytest.raises((BadTask, StoreError), match=words):
        open_store(uri)


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(BadTask, match="credentials do not belong") as caught:
        open_store("s3://AKIAKEY:verysecret@bucket/a")
    assert "verysecret" not in str(caught.value)


def test_large_files_travel_in_parts(behind: Store, proxy: FaultProxy, tmp_path: Path, prefix: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(40 * MIB + 7))
    behind.put_file("a", source)
    behind.get_file("a", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == source.read_bytes()
    parts = [r for r in proxy.seen if "partNumber" in r.path]
    assert len(parts) == 3
    assert len([r for r in proxy.seen if r.method == "GET" and "range" in {h.lower() for h in r.headers}]) == 3
    assert unfinished(behind, prefix) == []
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["source", "to"]


def test_memory_is_bounded(server: S3Server, prefix: str, tmp_path: Path) -> None:
    with (tmp_path / "source").open("wb") as file:
        for _ in range(400):
            file.write(os.urandom(MIB))
    script = """
import resource, sys
from pathlib import Path
from expunge_jobs.store import open_store
store = open_store(sys.argv[1])
store.put("warm", b"")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.put_file("a", Path(sys.argv[2]))
store.get_file("a", Path(sys.argv[3]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            script,
            f"s3://{prefix}?endpoint_url={server.url}",
            tmp_path / "source",
            tmp_path / "to",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "to").stat().st_size == 400 * MIB
    assert int(done.stdout) < 250, "mebibytes for a file of 400"


@pytest.mark.parametrize(
    "fault", [answer(500, "InternalError"), answer(503, "SlowDown"), cut], ids=["500", "SlowDown", "cut"]
)
def test_what_passes_is_tried_again(behind: Store, proxy: FaultProxy, tmp_path: Path, fault: Any) -> None:
    proxy.inject(fault, times=2)
    behind.put("a", b"one")
    proxy.inject(fault, get, times=2)
    assert behind.get("a")[0] == b"one"
    proxy.inject(fault, times=1)
    behind.get_file("a", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == b"one"
    proxy.inject(fault, times=1)
    assert behind.present(["a"]) == {"a"}
    proxy.inject(fault, times=1)
    assert [e.path for e in behind.list("a")] == []


def test_a_server_that_is_far_away_is_asked_by_several_threads(behind: Store, proxy: FaultProxy) -> None:
    behind.put("a", b"")
    asking, most = 0, 0
    lock = threading.Lock()

    def far(serve: Serve) -> Answer:
        nonlocal asking, most
        with lock:
            asking += 1
            most = max(most, asking)
        time.sleep(0.2)
        with lock:
            asking -= 1
        return serve()

    proxy.inject(far, get, times=99)
    assert behind.present(["a", *(f"no{n}" for n in range(12))]) == {"a"}
    assert most > 1


def test_a_server_that_says_nothing_may_answer_later(proxy: FaultProxy, prefix: str) -> None:
    """Read timeouts are the SDK's OSErrors too, and yet no trouble of this machine's files."""
    proxy.inject(silent(30), times=99)
    store = S3Store(f"s3://{prefix}?endpoint_url={proxy.url}", patient=False)
    with pytest.raises(Unavailable, match="is not reachable"):
        store.get("one")
    assert len(proxy.seen) == 2
    with pytest.raises(Unavailable, match="is not reachable"):
        store.present(["one"])


def test_a_server_that_stays_busy_is_told_in_words(behind: Store, proxy: FaultProxy) -> None:
    proxy.inject(answer(503, "SlowDown", "Please reduce your request rate."), times=99)
    with pytest.raises(StoreError, match="too busy, after several tries"):
        behind.check()
    assert len(proxy.seen) == 2, "a check has no patience"


@pytest.mark.parametrize("fault", [truncate, corrupt], ids=["truncated", "corrupted"])
def test_a_body_that_is_spoiled_on_the_way_is_fetched_again(
    sums: Store, proxy: FaultProxy, tmp_path: Path, fault: Any
) -> None:
    data = os.urandom(100_000)
    sums.put("a", data)
    proxy.inject(fault, get)
    assert sums.get("a")[0] == data
    proxy.inject(fault, get)
    sums.get_file("a", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == data


def test_a_body_that_is_always_spoiled_is_an_error(sums: Store, proxy: FaultProxy, tmp_path: Path) -> None:
    sums.put("a", b"x" * 1000)
    proxy.inject(truncate, get, times=99)
    with pytest.raises(StoreError, match="s3://bucket"):
        sums.get("a")
    with pytest.raises(StoreError, match="s3://bucket"):
        sums.get_file("a", tmp_path / "to")
    assert list(tmp_path.iterdir()) == []


def test_without_the_servers_checksums_our_own_find_it(behind: Store, proxy: FaultProxy, tmp_path: Path) -> None:
    ref, attempt = made(behind, tmp_path, "one")
    assert attempt
    proxy.inject(corrupt, lambda r: get(r) and r.path.endswith("/weights"))
    assert (fetch(behind, ref, tmp_path / "in") / "weights").read_bytes() == b"one" * 9999, "right the second time"
    proxy.inject(corrupt, lambda r: get(r) and r.path.endswith("/weights"), times=2)
    with pytest.raises(DamagedInput, match="weights is not what was written") as caught:
        fetch(behind, ref, tmp_path / "in")
    assert f"delete {behind.name}/artifacts/merge" in str(caught.value)
    assert "endpoint" not in str(caught.value)


def made(store: Store, folder: Path, name: str) -> tuple[ArtifactRef, bool]:
    """An artifact of one file, and whether this attempt won."""
    out = folder / name
    out.mkdir()
    (out / "weights").write_bytes(name.encode() * 9999)
    work = task("merge")
    ref = ArtifactRef(kind="merge", key=work.key())
    attempt = Attempt(store, ref, name)
    attempt.begin("host", 1)
    return ref, attempt.publish(work, out, {}, {}, "cpu", 1)


def test_a_manifest_whose_answer_got_lost_is_ones_own(behind: Store, proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.inject(lose, lambda r: put(r) and r.path.endswith("manifest.json"))
    ref, won = made(behind, tmp_path, "one")
    assert won
    manifest = read_manifest(behind, ref)
    assert manifest is not None and manifest.attempt == "one"
    assert len([r for r in proxy.seen if put(r) and r.path.endswith("manifest.json")]) == 2
    assert (fetch(behind, ref, tmp_path / "in") / "weights").read_bytes() == b"one" * 9999
    assert made(behind, tmp_path, "two")[1] is False
    assert read_manifest(behind, ref) == manifest


def test_409_is_tried_until_the_outcome_is_known(behind: Store, proxy: FaultProxy) -> None:
    busy = answer(409, "ConditionalRequestConflict")
    proxy.inject(busy, put, times=2)
    behind.put("a", b"one", if_absent=True)
    proxy.inject(busy, put, times=2)
    with pytest.raises(Conflict):
        behind.put("a", b"two", if_absent=True)
    assert behind.get("a")[0] == b"one"


def test_a_failed_upload_leaves_no_parts(behind: Store, proxy: FaultProxy, tmp_path: Path, prefix: str) -> None:
    (tmp_path / "source").write_bytes(bytes(40 * MIB))
    proxy.inject(answer(400, "BadDigest", "not what came"), lambda r: "partNumber=2" in r.path, times=99)
    with pytest.raises(StoreError, match="not what came"):
        behind.put_file("a", tmp_path / "source")
    assert unfinished(behind, prefix) == []
    assert behind.present(["a"]) == set()
    assert any(r.method == "DELETE" and "uploadId" in r.path for r in proxy.seen)


def test_sigterm_in_an_upload_leaves_no_parts(behind: Store, proxy: FaultProxy, tmp_path: Path, prefix: str) -> None:
    class Terminated(BaseException):
        pass

    def on_term(number: int, frame: object) -> None:
        raise Terminated

    (tmp_path / "source").write_bytes(bytes(40 * MIB))
    proxy.inject(slow(2), lambda r: "partNumber" in r.path, times=99)
    before = signal.signal(signal.SIGUSR1, on_term)
    try:
        timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        timer.start()
        with pytest.raises(Terminated):
            behind.put_file("a", tmp_path / "source")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert unfinished(behind, prefix) == []
    assert behind.present(["a"]) == set()


def test_a_server_that_is_away_for_a_while(tmp_path: Path) -> None:
    """For longer than the SDK's own tries, of which eight requests at once share a quota, each by chance shorter."""
    server = S3Server(tmp_path)
    timer = threading.Timer(15, server.start)
    try:
        store = open_store(f"s3://{BUCKET}/away?endpoint_url={server.url}", away=60)
        (tmp_path / "source").write_bytes(bytes(40 * MIB))
        store.put("a", b"one")
        server.stop()
        timer.start()
        began = time.monotonic()
        store.put_file("b", tmp_path / "source")
        assert time.monotonic() - began >= 14
        assert store.get("a")[0] == b"one"
    finally:
        timer.cancel()
        if timer.ident is not None:
            timer.join()  # it is starting, perhaps
        server.stop()


def test_a_server_that_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_PATIENT", 2)
    began = time.monotonic()
    with pytest.raises(Unavailable, match="not reachable"):
        open_store("s3://bucket/a?endpoint_url=http://127.0.0.1:9", away=3).get("a")
    assert 3 <= time.monotonic() - began < 10
    began = time.monotonic()
    with pytest.raises(Unavailable, match="not reachable"):  # SIGTERM: there is no time to wait
        open_store("s3://bucket/a?endpoint_url=http://127.0.0.1:9", away=60, should_stop=lambda: True).get("a")
    assert time.monotonic() - began < 10


def test_a_server_that_refuses_checksums(sums: Store, proxy: FaultProxy) -> None:
    proxy.inject(answer(400, "InvalidRequest", "unknown checksum algorithm"), put)
    with pytest.raises(StoreError, match="checksums=when_required may help"):
        sums.put("a", b"")


def test_a_bucket_that_demands_checksums(behind: Store, proxy: FaultProxy, sums: Store) -> None:
    said = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters"
    proxy.inject(answer(400, "InvalidRequest", said), put)
    with pytest.raises(StoreError, match="checksums=when_supported may help"):
        behind.put("a", b"")
    proxy.inject(answer(403, "SignatureDoesNotMatch", "no match"), put)
    with pytest.raises(StoreError, match="secret key is wrong, or .* try checksums=when_required"):
        sums.put("a", b"")


CONFIG = """\
[default]
services = mine
[services mine]
s3 =
  endpoint_url = {url}
"""


def test_the_endpoint_is_the_one_that_the_sdk_has(
    server: S3Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(CONFIG.format(url=server.url))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    store = S3Store(f"s3://{prefix}")
    assert store.checksums == "when_required"
    store.put("a", b"1")
    assert store.get("a")[0] == b"1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert S3Store(f"s3://{prefix}").checksums == "when_supported", "the SDK goes to AWS"


def test_a_server_in_a_network_of_no_proxy_is_asked_directly(
    server: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with pytest.raises(Unavailable):
        S3Store(f"s3://{prefix}?endpoint_url={server.url}", patient=False).put("a", b"")
    monkeypatch.setenv("NO_PROXY", "127.0.0.0/8")
    S3Store(f"s3://{prefix}?endpoint_url={server.url}", patient=False).put("a", b"")


def test_credentials_that_were_renewed_are_found(
    server: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    text = "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    file.write_text(text.format(ACCESS_KEY, "of yesterday"))
    store = open_store(f"s3://{prefix}?endpoint_url={server.url}")
    with pytest.raises(StoreError, match="secret key is wrong"):
        store.put("a", b"")
    file.write_text(text.format(ACCESS_KEY, SECRET_KEY))
    store.put("a", b"")


def test_a_login_that_has_expired_is_waited_for(behind: Store, proxy: FaultProxy) -> None:
    proxy.inject(answer(400, "ExpiredToken", "The provided token has expired."), put)
    with pytest.raises(Unavailable, match="credentials have expired; log in again"):
        behind.put("a", b"")
    patient = open_store(behind.uri, away=30)
    proxy.inject(answer(400, "ExpiredToken", "The provided token has expired."), put)
    patient.put("a", b"")


def test_a_policy_by_prefix_allows_the_check(behind: Store, proxy: FaultProxy, prefix: str) -> None:
    behind.check()
    assert f"prefix={prefix.partition('/')[2]}%2F" in proxy.seen[-1].path


def test_nobody_listens(tmp_path: Path) -> None:
    store = open_store("s3://bucket/a?endpoint_url=http://127.0.0.1:9")
    with pytest.raises(StoreError, match="s3://bucket/a is not reachable: .*127.0.0.1:9"):
        store.check()


def test_no_such_bucket(server: S3Server) -> None:
    store = open_store(f"s3://nothing-here/a?endpoint_url={server.url}")
    for act in (store.check, lambda: store.put("a", b""), lambda: store.get("a"), lambda: list(store.list("a"))):
        with pytest.raises(StoreError, match="s3://nothing-here/a: there is no such bucket"):
            act()


def test_a_wrong_secret_and_an_unknown_key(server: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match="the secret key is wrong"):
        open_store(f"s3://{prefix}?endpoint_url={server.url}").check()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(StoreError, match="does not know this access key"):
        open_store(f"s3://{prefix}?endpoint_url={server.url}").check()


def test_no_credentials(server: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreError, match="no credentials found; set AWS_ACCESS_KEY_ID"):
        open_store(f"s3://{prefix}?endpoint_url={server.url}").check()


def test_access_denied(behind: Store, proxy: FaultProxy) -> None:
    proxy.inject(answer(403, "AccessDenied", "Access Denied."))
    with pytest.raises(StoreError, match=r"access denied \(PutObject a/b\)"):
        behind.put("a/b", b"")


def test_a_wrong_region(behind: Store, proxy: FaultProxy) -> None:
    proxy.inject(answer(400, "AuthorizationHeaderMalformed", "expecting 'eu-west-1'"))
    with pytest.raises(StoreError, match="in another region; add its own.*expecting 'eu-west-1'"):
        behind.put("a", b"")
    moved = answer(301, "PermanentRedirect", "use the right endpoint")
    proxy.inject(lambda serve: Answer(301, moved(serve).body, {"x-amz-bucket-region": "eu-west-1"}), times=9)  # type: ignore[union-attr]
    with pytest.raises(StoreError, match="region"):
        behind.put("a", b"")


def test_a_clock_that_is_off(server: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore import auth

    def yesterday(*args: object, **words: object) -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC).replace(tzinfo=None) - datetime.timedelta(days=1)

    monkeypatch.setattr(auth, "get_current_datetime", yesterday)
    with pytest.raises(StoreError, match="this machine's clock differs"):
        open_store(f"s3://{prefix}?endpoint_url={server.url}").check()


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(tmp_path: Path, authority: trustme.CA) -> Iterator[S3Server]:
    certificate = authority.issue_cert("127.0.0.1")
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    certificate.private_key_pem.write_to_path(key)
    certificate.cert_chain_pems[0].write_to_path(chain)
    server = S3Server(tmp_path / "server", certificate=(chain, key))
    yield server
    server.stop()


def test_tls(secure: S3Server, authority: trustme.CA, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="certificate is not trusted.*ca_bundle"):
        open_store(f"s3://{BUCKET}/a?endpoint_url={secure.url}").check()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    store = open_store(f"s3://{BUCKET}/a?endpoint_url={secure.url}&ca_bundle={tmp_path}/ca.pem")
    store.put("x", b"1", if_absent=True)
    assert store.get("x")[0] == b"1"
    with pytest.raises(BadTask, match=r"ca_bundle /nothing\.pem: no such file"):
        open_store(f"s3://{BUCKET}/a?endpoint_url={secure.url}&ca_bundle=/nothing.pem").check()


def test_a_server_that_ignores_conditions_is_refused(behind: Store, proxy: FaultProxy) -> None:
    proxy.inject(lambda serve: Answer(200, b"", {"ETag": '"x"'}), put, times=2)
    with pytest.raises(StoreError, match="ignores If-None-Match"):
        check_conditional_writes(behind)


def test_a_server_that_has_no_conditions_is_refused(behind: Store, proxy: FaultProxy) -> None:
    proxy.inject(answer(501, "NotImplemented", "A header you provided implies functionality"), put)
    with pytest.raises(StoreError, match="does not know conditional writes"):
        check_conditional_writes(behind)


def test_what_is_written_is_encrypted_where_a_key_is_given(proxy: FaultProxy, prefix: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{prefix}?endpoint_url={proxy.url}&sse_kms_key_id=the-key")
    (tmp_path / "source").write_bytes(bytes(17 * MIB))
    proxy.inject(lambda serve: Answer(200, b"", {"ETag": '"x"'}), put, times=1)
    store.put("a", b"")
    proxy.inject(answer(400, "InvalidArgument", "no KMS here"), lambda r: "uploads" in r.path)
    with pytest.raises(StoreError, match="no KMS here"):
        store.put_file("b", tmp_path / "source")
    for request in proxy.seen:
        assert request.headers["x-amz-server-side-encryption"] == "aws:kms"
        assert request.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "the-key"


def test_one_object_for_each_artifact_file(server: S3Server, prefix: str, tmp_path: Path) -> None:
    """The layout of an artifact, which people read with other tools."""
    store = open_store(f"s3://{prefix}?endpoint_url={server.url}")
    ref, _ = made(store, tmp_path, "one")
    folder = f"artifacts/merge/{ref.key}"
    assert [e.path for e in store.list("artifacts")] == [
        f"{folder}/attempts/one.json",
        f"{folder}/attempts/one/weights",
        f"{folder}/manifest.json",
    ]
    manifest = json.loads(store.get(f"{folder}/manifest.json")[0])
    assert manifest["files"][0]["path"] == "weights"


def test_credentials_that_several_threads_need_are_renewed_once(
    server: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of yesterday")
    store = S3Store(f"s3://{prefix}?endpoint_url={server.url}", patient=False)
    store._client()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.put(f"a/{n}", b""), range(8)))
    assert len(list(store.list("a"))) == 8


def test_a_login_that_fails_in_the_middle_is_told_and_waited_for(
    server: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    said = json.dumps({"Version": 1, "AccessKeyId": ACCESS_KEY, "SecretAccessKey": "of yesterday"})
    (tmp_path / "login").write_text(f"#!/bin/sh\necho '{said}'\n")
    (tmp_path / "login").chmod(0o755)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {tmp_path / 'login'}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    store = S3Store(f"s3://{prefix}?endpoint_url={server.url}", patient=False)
    store._client()
    (tmp_path / "login").write_text("#!/bin/sh\necho log in >&2\nexit 1\n")
    with pytest.raises(Unavailable, match="the login gives no credentials"):
        store.put("a", b"")


def test_no_error_tells_a_credential(server: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "the-word-of-the-session\n")
    store = S3Store(f"s3://{prefix}?endpoint_url={server.url}", patient=False)
    for act in (store.check, lambda: store.put("a", b""), lambda: store.get("a")):
        with pytest.raises(StoreError, match="a newline in the credentials") as caught:
            act()
        assert "the-word" not in str(caught.value)


def test_a_list_has_a_bound_where_reading_has_one(server: S3Server, prefix: str) -> None:
    store = open_store(f"s3://{prefix}?endpoint_url={server.url}")
    for number in range(4):
        store.put(f"a/{'x' * 200}{number}", b"")
    assert len(list(store.list("a"))) == 4
    with pytest.raises(TooLarge, match="more objects than are listed here"):
        list(open_store(store.uri, largest=2000).list("a"))
