"""Contracts of `stylegen.storage`, against a real S3 server over HTTP and a real folder."""

import contextlib
import hashlib
import io
import json
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from s3_server import (
    OwnerEnforcedGate,
    S3Server,
    answer,
    error_body,
    lose_conditions,
    put_half,
    recorded,
)

from stylegen.job import (
    Canceled,
    InvalidMessage,
    LoraInvalid,
    LoraNotFound,
    StorageError,
    StylegenError,
)
from stylegen.settings import load_settings
from stylegen.storage import (
    MAX_LORA_BYTES,
    MAX_READ_BYTES,
    FolderStore,
    InvalidUrl,
    LoraFiles,
    Manifest,
    ObjectDamaged,
    ObjectNotFound,
    ObjectTooLarge,
    S3Store,
    commit,
    download_lora_model,
    download_object,
    encode_jpeg,
    find_manifest,
    lora_errors,
    make_s3_store,
    mark_canceled,
    parse_s3_url,
    store_result,
    upload_image_to_s3,
)
from stylegen.storage.keys import JSON_TYPE, picture_key
from stylegen.storage.manifest import read_manifest
from stylegen.storage.s3_client import error_code
from stylegen.storage.store import LimitedFile
from stylegen.worker import make_store

BUCKET = "storage-tests"
KEY_ID, SECRET_KEY, REGION = "test-key-id", "test-secret-key", "us-east-1"
RESULT = {"generation_id": 7, "result_url": "c", "metadata": {}}
PICTURE = Image.new("RGB", (64, 96), "teal")


@pytest.fixture(name="server")
def _server(s3: S3Server) -> S3Server:
    for bucket in (BUCKET, "models"):
        s3.client().create_bucket(Bucket=bucket)
    return s3


@pytest.fixture(name="lora_folder")
def _lora_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where downloads land, and nothing else."""
    folder = tmp_path / "loras"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def s3_store(server: S3Server, bucket: str = BUCKET, **options: Any) -> S3Store:
    defaults = {
        "region": REGION,
        "endpoint_url": server.endpoint_url,
        "access_key_id": KEY_ID,
        "secret_access_key": SECRET_KEY,
    }
    return make_s3_store(bucket, **(defaults | options))


def test_import_is_cheap() -> None:
    code = "import sys, stylegen.storage; print('boto3' in sys.modules, 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert shown.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("s3://models/a.safetensors", ("models", "a.safetensors")),
        (
            "s3://a.b-c/style 10/한글.safetensors",
            ("a.b-c", "style 10/한글.safetensors"),
        ),
        ("s3://models/a%2Fb", ("models", "a%2Fb")),
        ("s3://models/" + "é" * 512, ("models", "é" * 512)),
        ("s3://" + "a" * 63 + "/x", ("a" * 63, "x")),
        ("s3://abc/x", ("abc", "x")),
    ],
)
def test_s3_urls(url: str, parts: tuple[str, str]) -> None:
    assert parse_s3_url(url) == parts


@pytest.mark.parametrize(
    "url",
    [
        "",
        "models/x",
        "http://models/x",
        "S3://models/x",
        "s3:/models/x",
        "s3://models",
        "s3://models/",
        "s3:///x",
        "s3://UP/x",
        "s3://a_b/x",
        "s3://ab/x",
        "s3://-abc/x",
        "s3://" + "a" * 64 + "/x",
        "s3://id:secret@models/x",
        "s3://models:9000/x",
        "s3://models/x?versionId=1",
        "s3://models/x#top",
        "s3://models/x\n",
        "s3://models/x\0y",
        "s3://models/../x",
        "s3://models/a\\b",
        "s3://models/" + "é" * 512 + "a",
    ],
)
def test_hostile_s3_urls(url: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        parse_s3_url(url)
    assert "secret" not in str(caught.value)


def test_bucket_round_trip(server: S3Server, lora_folder: Path) -> None:
    server.client().put_object(Bucket="models", Key="style_10/w.safetensors", Body=b"tensors")
    path = Path(download_lora_model("s3://models/style_10/w.safetensors", store=s3_store(server)))
    assert path.read_bytes() == b"tensors"
    assert path.parent == lora_folder and path.suffix == ".safetensors"
    assert path.name.startswith("stylegen-") and "style_10" not in path.name


def test_equal_names_stay_apart(server: S3Server, lora_folder: Path) -> None:
    for style in ("s1", "s2"):
        server.client().put_object(Bucket="models", Key=f"{style}/w.safetensors", Body=style)
    store = s3_store(server)
    paths = [
        download_lora_model(f"s3://models/{s}/w.safetensors", store=store) for s in ("s1", "s2")
    ]
    assert [Path(path).read_text(encoding="ascii") for path in paths] == ["s1", "s2"]
    assert len(list(lora_folder.iterdir())) == 2


@pytest.mark.parametrize("url", ["s3://models/none.safetensors", "s3://no-such-bucket/x"])
def test_missing_lora(server: S3Server, lora_folder: Path, url: str) -> None:
    with pytest.raises(LoraNotFound) as caught:
        download_lora_model(url, store=s3_store(server))
    assert url in str(caught.value)
    assert SECRET_KEY not in str(caught.value) and str(lora_folder) not in str(caught.value)
    assert not list(lora_folder.iterdir())


def test_dead_server_is_a_storage_error(lora_folder: Path) -> None:
    dead = S3Server()  # never started
    with pytest.raises(StorageError) as caught:
        download_lora_model("s3://models/x", store=s3_store(dead))
    assert caught.value.transient and SECRET_KEY not in str(caught.value)
    assert not list(lora_folder.iterdir())


def test_too_large_object_is_not_downloaded(server: S3Server, lora_folder: Path) -> None:
    server.client().put_object(Bucket="models", Key="large", Body=b"12345678")
    with pytest.raises(ObjectTooLarge) as caught:
        download_object("s3://models/large", s3_store(server), max_bytes=7)
    assert not caught.value.transient
    assert not list(lora_folder.iterdir())
    path = download_object("s3://models/large", s3_store(server), max_bytes=8)
    assert (path.stat().st_size, path.suffix) == (8, "")


def test_a_lora_may_be_as_large_as_its_limit(tmp_path: Path, lora_folder: Path) -> None:
    """2 GiB are taken, and not one byte more; the file is sparse, and no copy of it is made."""
    store, large = FolderStore(tmp_path), tmp_path / "large.safetensors"
    large.touch()
    os.truncate(large, MAX_LORA_BYTES + 1)
    assert MAX_LORA_BYTES == 2 * 1024**3
    with pytest.raises(LoraInvalid):
        download_lora_model(large.as_uri(), store=store)
    assert not list(lora_folder.iterdir())


def test_an_objects_errors_are_the_jobs_of_its_field() -> None:
    """The store says what is wrong with an object; the field and the code are the job's."""
    for error, expected in (
        (InvalidUrl("not a URL"), InvalidMessage),
        (ObjectNotFound("not found"), LoraNotFound),
        (ObjectTooLarge("too large"), LoraInvalid),
        (StorageError("busy"), StorageError),
    ):
        with pytest.raises(expected) as caught, lora_errors("extra_loras.0.url"):
            raise error
        named = "" if expected is StorageError else "extra_loras.0.url: "
        assert type(caught.value) is expected and str(caught.value) == f"{named}{error}"


def test_a_bucket_refuses_file_urls(server: S3Server, lora_folder: Path) -> None:
    with pytest.raises(InvalidMessage):
        download_lora_model("file:///etc/passwd", store=s3_store(server))
    assert not list(lora_folder.iterdir())


def test_upload(server: S3Server) -> None:
    url = upload_image_to_s3(PICTURE, 500, store=s3_store(server))
    assert url == f"{server.endpoint_url}/{BUCKET}/generations/gen_500.jpg"
    stored = server.client().get_object(Bucket=BUCKET, Key="generations/gen_500.jpg")
    assert stored["ContentType"] == "image/jpeg"
    with Image.open(BytesIO(stored["Body"].read())) as image:
        assert (image.format, image.size) == ("JPEG", PICTURE.size)
    grants = server.client().get_object_acl(Bucket=BUCKET, Key="generations/gen_500.jpg")["Grants"]
    assert "READ" in [grant["Permission"] for grant in grants if "URI" in grant["Grantee"]]


def test_ready_bytes_are_stored_as_they_are(server: S3Server) -> None:
    data = encode_jpeg(PICTURE)
    upload_image_to_s3(data, "a-b_1", store=s3_store(server))
    stored = server.client().get_object(Bucket=BUCKET, Key="generations/gen_a-b_1.jpg")
    assert stored["Body"].read() == data


def test_bucket_without_acls(server: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    with OwnerEnforcedGate(server) as gate, caplog.at_level(logging.INFO, "stylegen.storage"):
        store = s3_store(server, endpoint_url=gate.endpoint_url)
        for number in (11, 12, 13):
            upload_image_to_s3(PICTURE, number, store=store)
    assert gate.seen == [("PUT", True)] + [("PUT", False)] * 3
    assert len([record for record in caplog.records if "ACL" in record.getMessage()]) == 1
    stored = server.client().list_objects_v2(Bucket=BUCKET, Prefix="generations/gen_1")
    assert {f"generations/gen_{number}.jpg" for number in (11, 12, 13)} <= {
        each["Key"] for each in stored["Contents"]
    }


REFUSALS = [
    (400, "AccessControlListNotSupported"),
    (400, "InvalidArgument"),
    (400, "InvalidRequest"),
    (403, "AccessDenied"),
    (403, None),
    (405, "MethodNotAllowed"),
    (501, "NotImplemented"),
    (501, None),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_a_refused_acl_is_left_out(
    server: S3Server, caplog: pytest.LogCaptureFixture, refusal: tuple[int, str | None]
) -> None:
    """Whatever a bucket calls it; from several threads at once, too."""
    with OwnerEnforcedGate(server, refusal) as gate:
        store = s3_store(server, endpoint_url=gate.endpoint_url)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: upload_image_to_s3(b"jpeg", n, store=store), range(20, 24)))
        del gate.seen[:]
        store_result(store, f"new-{refusal}".replace(", ", "-").strip("()'"), b"jpeg", "digest")
    assert ("PUT", True) not in gate.seen
    assert len([record for record in caplog.records if "ACL" in record.getMessage()]) == 1


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_a_bucket_that_refuses_all_says_why(
    server: S3Server, caplog: pytest.LogCaptureFixture, refusal: tuple[int, str | None]
) -> None:
    """The first error counts, and the ACL is tried again: it was not to blame."""
    with OwnerEnforcedGate(server, refusal, refuses_all=True) as gate:
        store = s3_store(server, endpoint_url=gate.endpoint_url)
        with pytest.raises(StorageError, match=str(refusal[1] or refusal[0])):
            upload_image_to_s3(b"jpeg", 31, store=store)
        assert gate.seen[0] == ("PUT", True) and gate.seen[-1] == ("PUT", False)
        gate.refuses_all = False
        upload_image_to_s3(b"jpeg", 31, store=store)
    assert len([record for record in caplog.records if "ACL" in record.getMessage()]) == 1


def test_a_picture_that_is_there_is_no_refusal(server: S3Server) -> None:
    """Without its ACL the write is allowed, and is told that another worker was first."""
    with OwnerEnforcedGate(server, (403, "AccessDenied")) as gate:
        store = s3_store(server, endpoint_url=gate.endpoint_url)
        assert store.detect_conditional_writes()
        _, first = store_result(s3_store(server), "first", b"first", "digest")
        assert store_result(store, "first", b"second", "digest")[1] == first
    assert store.read(picture_key("first")) == b"first"


def test_no_acl_is_sent_where_none_is_wanted(server: S3Server) -> None:
    with OwnerEnforcedGate(server) as gate:
        upload_image_to_s3(
            b"jpeg", 32, store=s3_store(server, endpoint_url=gate.endpoint_url, acl="none")
        )
    assert gate.seen == [("PUT", False)]


def test_every_write_has_a_checksum(server: S3Server) -> None:
    """Object Lock wants one; MD5 is known to every server, and a wrong one would be refused."""
    store, sent = s3_store(server), []
    store.client.meta.events.register(
        "before-send.s3.PutObject", lambda request, **_: sent.append(request.headers)
    )
    store_result(store, "checked", b"jpeg", "digest")
    commit(store, Manifest(7, "digest", "complete", RESULT, "complete_7"))
    assert len(sent) >= 2 and all("Content-MD5" in headers for headers in sent)
    assert not [name for headers in sent for name in headers if "x-amz-checksum" in name.lower()]


def test_a_picture_that_comes_and_goes_is_never_put_without_a_condition(server: S3Server) -> None:
    """412 for the write, 404 for the look: the same write again, a few times, then an error."""
    store = S3Store(BUCKET, server.client(), conditional=True)
    refused = (412, error_body("PreconditionFailed"))
    left = answer(store.client, refused, refused)
    with recorded(store.client) as requests:
        store_result(store, "fleeting", b"jpeg", "digest")
    assert not left and store.read(picture_key("fleeting")) == b"jpeg"
    left = answer(store.client, *[refused] * 20)
    with recorded(store.client) as more, pytest.raises(StorageError):
        store_result(store, "never", b"jpeg", "digest")
    puts = [line for line in (*requests, *more) if line.startswith("PUT")]
    assert 4 < len(puts) < 12 and all("if-none-match: *" in line for line in puts)
    assert store.read(picture_key("never")) is None


@pytest.mark.parametrize("length", [7, 20 * 2**20])
def test_a_download_is_of_the_version_whose_size_was_asked(
    server: S3Server, tmp_path: Path, length: int
) -> None:
    """Replaced between HEAD and GET: asked again, a few times; then an error that may pass."""
    client, target = server.client(), tmp_path / "target"
    versions = [b"abcdefgh"[n : n + 1] * length for n in range(8)]
    with OwnerEnforcedGate(server) as gate:

        def put(method: str) -> None:
            if method == "GET" and left:
                client.put_object(Bucket="models", Key="restless", Body=left.pop(0))

        gate.before = put
        store = s3_store(server, endpoint_url=gate.endpoint_url)
        for changes in (1, 8):
            client.put_object(Bucket="models", Key="restless", Body=b"x" * length)
            left = versions[:changes]
            if changes == 1:
                store.fetch("s3://models/restless", target, max_bytes=length)
                assert target.read_bytes() == versions[0]
                continue
            with pytest.raises(StorageError):
                store.fetch("s3://models/restless", target, max_bytes=length)
            assert 8 - len(left) < 8


def test_an_object_that_grows_stays_within_its_limit(server: S3Server, tmp_path: Path) -> None:
    """By a server that doesn't know ``If-Match``, too: no more than the limit reaches the disk."""
    client, target = server.client(), tmp_path / "target"
    client.put_object(Bucket="models", Key="growing", Body=b"x")
    with OwnerEnforcedGate(server) as gate:

        def grow(method: str) -> None:
            if method == "GET":
                client.put_object(Bucket="models", Key="growing", Body=b"y" * 2**20)

        gate.before, store = grow, s3_store(server, endpoint_url=gate.endpoint_url)
        store.client.meta.events.register(
            "before-sign.s3.GetObject", lambda request, **_: request.headers.__delitem__("If-Match")
        )
        with pytest.raises(ObjectTooLarge):
            store.fetch("s3://models/growing", target, max_bytes=2**16)
    assert target.stat().st_size <= 2**16


def test_downloads_share_a_budget(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eight jobs, two have their bytes on the way at a time; a larger file comes alone."""
    monkeypatch.setattr("stylegen.storage.s3.MAX_BYTES_IN_FLIGHT", 2**21)
    client, pairs, lock = server.client(), threading.Barrier(2), threading.Lock()
    sizes, in_flight, most = {"m": 2**20, "large": 2**22}, [0], [0]
    for name, size in sizes.items():
        client.put_object(Bucket="models", Key=name, Body=bytes(size))

    def count(method: str, change: int) -> None:
        with lock:
            in_flight[0] += change if method == "GET" else 0
            most[0] = max(most + in_flight)

    def begin(method: str) -> None:
        count(method, 1)
        if method == "GET":
            pairs.wait(30)

    with OwnerEnforcedGate(server) as gate:
        store = s3_store(server, endpoint_url=gate.endpoint_url)
        gate.before, gate.after = begin, lambda method: count(method, -1)
        with ThreadPoolExecutor(8) as pool:
            targets = [tmp_path / str(number) for number in range(8)]
            fetch = partial(store.fetch, "s3://models/m", max_bytes=2**22)
            list(pool.map(fetch, targets))
        gate.before = lambda method: count(method, 1)
        store.fetch("s3://models/large", tmp_path / "large", max_bytes=2**22)
    assert {target.stat().st_size for target in targets} == {2**20} and most == [2]
    assert (tmp_path / "large").stat().st_size == 2**22


def test_missing_bucket_is_a_storage_error(server: S3Server) -> None:
    store = s3_store(server, "no-such-bucket")
    for act in (store.check, lambda: upload_image_to_s3(PICTURE, 1, store=store)):
        with pytest.raises(StorageError):
            act()
    s3_store(server).check()


def test_urls_of_results(server: S3Server) -> None:
    cdn = s3_store(server, public_url="https://cdn.example/")
    assert upload_image_to_s3(PICTURE, 7, store=cdn) == "https://cdn.example/generations/gen_7.jpg"


def test_the_environment_makes_a_store(
    server: S3Server, lora_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL_S3": server.endpoint_url,
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "S3_BUCKET": BUCKET,
        "S3_PUBLIC_URL": "https://cdn.example",
    }.items():
        monkeypatch.setenv(name, value)
    assert upload_image_to_s3(PICTURE, 8) == "https://cdn.example/generations/gen_8.jpg"
    path = download_lora_model(f"s3://{BUCKET}/generations/gen_8.jpg")
    assert Path(path).parent == lora_folder and Path(path).read_bytes()[:2] == b"\xff\xd8"


def test_folder_round_trip(tmp_path: Path, lora_folder: Path) -> None:
    store = FolderStore(tmp_path / "new" / "root")
    store.check()
    upload_image_to_s3(PICTURE, 1, store=store)
    assert os.listdir(store.root / "generations") == ["gen_1.jpg"]
    (store.root / "models").mkdir()
    (store.root / "models" / "w.safetensors").write_bytes(b"tensors")
    inside = download_lora_model("s3://models/w.safetensors", store=store)
    by_file = download_lora_model((store.root / "models/w.safetensors").as_uri(), store=store)
    assert Path(inside).read_bytes() == Path(by_file).read_bytes() == b"tensors"
    for path in (inside, by_file):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        Path(path).unlink()
    for url in ("s3://models/none", "file:///none/none", "s3://models-none/x"):
        with pytest.raises(LoraNotFound):
            download_lora_model(url, store=store)
    assert not list(lora_folder.iterdir())


def test_jpeg() -> None:
    ninety_five = BytesIO()
    PICTURE.save(ninety_five, "JPEG", quality=95)
    with Image.open(BytesIO(encode_jpeg(PICTURE))) as image, Image.open(ninety_five) as expected:
        assert image.layer[0][1:3] == (1, 1)  # no chroma subsampling
        assert (image.size, image.quantization) == (PICTURE.size, expected.quantization)
    for mode in ("RGBA", "L", "P"):
        assert encode_jpeg(PICTURE.convert(mode))[:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    "url",
    [
        "s3://models/./x",
        "s3://models/a/.",
        "s3://a..b/x",
        "s3://a.-b/x",
        "s3://192.168.0.1/x",
        "s3://models/x\x7f",
        "s3://models/x\x85",
        "s3://models/\ud800",
    ],
)
def test_more_hostile_s3_urls(url: str) -> None:
    with pytest.raises(InvalidMessage):
        parse_s3_url(url)


@pytest.mark.parametrize("key", ["/etc/passwd", "link/secret", "../secret", "../../secret"])
def test_a_folder_is_not_left(tmp_path: Path, lora_folder: Path, key: str) -> None:
    store = FolderStore(tmp_path / "root")
    (store.root / "models").mkdir(parents=True)
    (store.root / "models" / "link").symlink_to(tmp_path)
    (tmp_path / "secret").write_text("secret", encoding="ascii")
    with pytest.raises(InvalidMessage):
        download_lora_model(f"s3://models/{key}", store=store)
    assert not list(lora_folder.iterdir())


@pytest.mark.parametrize("key", ["../secret", "models/link/secret", "models/../../secret"])
def test_a_result_stays_in_the_folder(tmp_path: Path, key: str) -> None:
    store = FolderStore(tmp_path / "root")
    (store.root / "models").mkdir(parents=True)
    (store.root / "models" / "link").symlink_to(tmp_path)
    with pytest.raises(InvalidMessage):
        store.put(key, b"overwritten", "image/jpeg")
    assert not (tmp_path / "secret").exists()


def test_downloads_are_private(server: S3Server, lora_folder: Path) -> None:
    server.client().put_object(Bucket="models", Key="private", Body=b"tensors")
    path = Path(download_lora_model("s3://models/private", store=s3_store(server)))
    assert path.parent == lora_folder and stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_folder_of_downloads_can_be_chosen(tmp_path: Path, lora_folder: Path) -> None:
    store = FolderStore(tmp_path / "root", public_url="https://cdn.example/")
    assert store.put("a.jpg", b"x", "image/jpeg") == "https://cdn.example/a.jpg"
    (store.root / "models").mkdir()
    (store.root / "models" / "w").write_bytes(b"tensors")
    (tmp_path / "mine").mkdir()
    path = Path(download_lora_model("s3://models/w", store=store, folder=tmp_path / "mine"))
    assert path.parent == tmp_path / "mine" and not list(lora_folder.iterdir())
    with pytest.raises(StorageError, match="no place for the object's file"):
        download_lora_model("s3://models/w", store=store, folder=tmp_path / "none")


def test_a_download_that_took_its_file_away_fails_by_its_own_error(lora_folder: Path) -> None:
    """Such as a sweeper of temporary files that came first."""

    class Gone(FolderStore):
        """A store whose download fails after its file is gone."""

        def fetch(self, url: str, target: Path, *, max_bytes: int) -> None:
            """Fail."""
            target.unlink()
            raise StorageError("the line broke")

    with pytest.raises(StorageError, match="the line broke"):
        download_object("s3://models/x", Gone(lora_folder), max_bytes=7)


def test_a_folder_has_the_size_limit_too(tmp_path: Path, lora_folder: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("models/large", b"12345678", "")
    for url in ("s3://models/large", (tmp_path / "models/large").as_uri()):
        with pytest.raises(ObjectTooLarge):
            download_object(url, store, max_bytes=7)
    assert not list(lora_folder.iterdir())


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("file:///dev/zero", "can't be read .not a regular file"),
        ("file:///", "can't be read .not a regular file"),
        ("file://evil.org/x", "lora_model_url: not a plain file: URL"),
        ("file:///a%00b", "lora_model_url: not a plain file: URL"),
        ("file:///a?b=c", "lora_model_url: not a plain file: URL"),
        ("file:///a#b", "lora_model_url: not a plain file: URL"),
        ("file:relative", "can't be read .No such file"),
    ],
)
def test_hostile_file_urls(tmp_path: Path, lora_folder: Path, url: str, why: str) -> None:
    with pytest.raises(StylegenError, match=why):
        download_lora_model(url, store=FolderStore(tmp_path))
    assert not list(lora_folder.iterdir())


def test_a_file_url_may_name_this_machine(tmp_path: Path) -> None:
    """``file://localhost/…`` is ``file:///…`` (RFC 8089)."""
    path = tmp_path / "a b.safetensors"
    path.write_bytes(b"a style")
    url = path.as_uri().replace("file:///", "file://localhost/")
    loaded = Path(download_lora_model(url, store=FolderStore(tmp_path)))
    assert loaded.read_bytes() == b"a style"


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://s3.example:9000", "http://s3.example:9000/pictures/a.jpg"),
        ("http://s3.example/BoX/", "http://s3.example/BoX/pictures/a.jpg"),
        ("https://s3.eu-central-1.amazonaws.com", "https://pictures.s3.amazonaws.com/a.jpg"),
        (
            "https://s3.cn-north-1.amazonaws.com.cn",
            "https://s3.cn-north-1.amazonaws.com.cn/pictures/a.jpg",
        ),
    ],
)
def test_results_have_the_address_of_their_bucket(endpoint: str, url: str) -> None:
    """The guide's form on AWS; the bucket as a folder of other servers."""
    keys = {"access_key_id": "i", "secret_access_key": "s", "region": REGION}
    assert make_s3_store("pictures", endpoint_url=endpoint, **keys).url("a.jpg") == url


@pytest.mark.parametrize(
    ("bucket", "region", "base"),
    [
        ("pictures", "us-east-1", "https://pictures.s3.amazonaws.com"),
        ("pictures", "ap-northeast-2", "https://pictures.s3.amazonaws.com"),
        ("pictures", "cn-north-1", "https://pictures.s3.cn-north-1.amazonaws.com.cn"),
        ("pictures", "us-gov-west-1", "https://pictures.s3.us-gov-west-1.amazonaws.com"),
        ("my.pictures", "us-east-1", "https://s3.amazonaws.com/my.pictures"),
        ("my.pictures", "cn-north-1", "https://s3.cn-north-1.amazonaws.com.cn/my.pictures"),
    ],
)
@pytest.mark.parametrize("keys", [{}, {"access_key_id": "i", "secret_access_key": "s"}])
def test_results_have_the_address_of_their_partition(
    bucket: str, region: str, base: str, keys: dict[str, str]
) -> None:
    """Names with dots have none that a wildcard certificate covers; credentials play no part."""
    assert make_s3_store(bucket, region=region, **keys).url("a.jpg") == f"{base}/a.jpg"


def test_a_virtual_hosted_endpoint_is_the_address_of_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n", "ascii")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    store = make_s3_store("pictures", region=REGION, endpoint_url="https://s3.example:9000")
    assert store.url("a.jpg") == "https://pictures.s3.example:9000/a.jpg"


@pytest.mark.parametrize("by_file", [False, True])
def test_the_operators_word_on_checksums_holds(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_file: bool
) -> None:
    """boto3's variables, and its shared file, win over our default; the server gets a checksum."""
    names = "request_checksum_calculation", "response_checksum_validation"
    lines = [f"{name} = when_supported" for name in names]
    (tmp_path / "config").write_text("\n".join(["[default]", *lines]), "ascii")
    if by_file:
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    else:
        for name in names:
            monkeypatch.setenv(f"AWS_{name.upper()}", "when_supported")
    store, sent = s3_store(server), []
    config = store.client.meta.config
    found = config.request_checksum_calculation, config.response_checksum_validation
    assert found == ("when_supported", "when_supported")
    store.client.meta.events.register(
        "before-send.s3.PutObject", lambda request, **_: sent.append(request.headers)
    )
    store.put("generations/gen_sum.jpg", b"jpeg", "image/jpeg")
    assert "x-amz-checksum-crc32" in {name.lower() for name in sent[0]}
    assert store.read("generations/gen_sum.jpg") == b"jpeg"


def test_checksums_are_asked_of_nobody_who_has_none() -> None:
    """Other servers than S3 know no newer checksums: neither sent nor asked for."""
    store = make_s3_store(BUCKET, region=REGION, access_key_id="i", secret_access_key="s")
    config = store.client.meta.config
    found = config.request_checksum_calculation, config.response_checksum_validation
    assert found == ("when_required", "when_required")


def test_half_a_credential_is_a_storage_error() -> None:
    with pytest.raises(StorageError):
        make_s3_store(BUCKET, access_key_id="only-an-id")


@pytest.mark.parametrize("conditional", [True, False])
def test_a_manifest_that_was_cut_off_is_written_anew(server: S3Server, conditional: bool) -> None:
    bucket = S3Store(BUCKET, server.client(), conditional=conditional)
    put_half(server, BUCKET, "manifests/gen_7.json", {"length": "1000"})
    assert find_manifest(bucket, 7, "digest") is None
    whole = Manifest(7, "digest", "complete", RESULT | {"result_url": "a"}, "complete_7")
    assert commit(bucket, whole) == whole
    assert find_manifest(bucket, 7, "digest") == whole
    later = Manifest(7, "digest", "complete", RESULT | {"result_url": "b"}, "complete_7")
    assert commit(bucket, later) == whole
    stored = server.client().head_object(Bucket=BUCKET, Key="manifests/gen_7.json")
    assert stored["ContentType"] == "application/json"


@pytest.mark.parametrize("conditional", [True, False])
def test_a_picture_that_was_cut_off_is_stored_anew(server: S3Server, conditional: bool) -> None:
    bucket = S3Store(BUCKET, server.client(), conditional=conditional)
    jpeg = encode_jpeg(PICTURE)
    put_half(
        server, BUCKET, "generations/gen_7.jpg", {"length": "1000", "job": "digest", "sha256": "0"}
    )
    _, sha256 = store_result(bucket, 7, jpeg, "digest")
    there = server.client().get_object(Bucket=BUCKET, Key="generations/gen_7.jpg")
    assert there["Body"].read() == jpeg
    assert there["Metadata"]["sha256"] == sha256


def test_an_object_without_a_length_is_complete(server: S3Server) -> None:
    """Such as a manifest that an operator has copied; and one that is too long is an error."""
    store, client = s3_store(server), server.client()
    for size in (2, MAX_READ_BYTES, MAX_READ_BYTES + 1):
        client.put_object(Bucket=BUCKET, Key=f"manifests/{size}.json", Body=b"x" * size)
    assert store.read("manifests/2.json") == b"xx"
    assert len(store.read(f"manifests/{MAX_READ_BYTES}.json") or b"") == MAX_READ_BYTES
    with pytest.raises(StorageError, match="longer than"):
        store.read(f"manifests/{MAX_READ_BYTES + 1}.json")


def test_an_unknown_bucket_is_asked_before_it_is_written(server: S3Server) -> None:
    """A detection that failed at the start is made up for, once; nothing is assumed meanwhile."""
    store = s3_store(server)
    with recorded(store.client) as requests:
        for number in (1, 2):
            key = f"manifests/unknown-{number}.json"
            store.put_if_absent(key, b"{}", "", metadata={}, public=False)
    paths = [line.split()[1].removeprefix(f"/{BUCKET}/manifests/") for line in requests]
    assert paths in (
        ["probe.json", "probe.json", "unknown-1.json", "unknown-2.json"],
        ["probe.json", "unknown-1.json", "unknown-2.json"],  # another test has asked this bucket
    )


def test_detection_writes_where_the_documented_rights_reach(server: S3Server) -> None:
    """Rights are given on `generations/*` and `manifests/*`, as docs/security.md says."""
    client = server.client()
    client.create_bucket(Bucket="probed")
    assert S3Store("probed", client).detect_conditional_writes()
    there = client.list_objects_v2(Bucket="probed").get("Contents", [])
    assert [each["Key"] for each in there] == ["manifests/probe.json"]


@pytest.mark.parametrize("conditional", [True, False])
def test_conditions_go_out_with_the_write(server: S3Server, conditional: bool) -> None:
    """A server that honours them decides between two writers; one that doesn't is not asked to."""
    store = S3Store(BUCKET, server.client(), conditional=conditional)
    key = f"manifests/conditions-{conditional}.json"
    with recorded(store.client) as requests:
        store.put_if_absent(key, b"{}", JSON_TYPE, metadata={}, public=False)
        tag = server.client().head_object(Bucket=BUCKET, Key=key)["ETag"]
        assert store.compare_and_swap(key, b"{}", b"[]", JSON_TYPE)
    conditions = [line.split("json  ")[-1] for line in requests if line.startswith("PUT")]
    expected = (
        ["if-none-match: *  → 200", f"if-match: {tag}  → 200"] if conditional else ["→ 200"] * 2
    )
    assert conditions == expected
    assert store.read(key) == b"[]"


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "OperationAborted", None])
def test_a_conflict_of_two_writers_is_asked_again(server: S3Server, code: str | None) -> None:
    """S3's 409 means the same PUT again, not another picture; it may come without a body."""
    store = S3Store(BUCKET, server.client(), conditional=True)
    left = answer(store.client, (409, error_body(code)), (409, error_body(code)))
    key = f"manifests/busy-{code}.json"
    assert store.put_if_absent(key, b"{}", "", metadata={}, public=False) is None
    assert store.read(key) == b"{}" and not left
    answer(store.client, *[(409, error_body(code))] * 9)
    with pytest.raises(StorageError):
        store.put_if_absent(key, b"{}", "", metadata={}, public=False)


def test_a_server_without_conditions_is_found_out(
    server: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes both writes, or says that it can't; then each write looks first."""
    ignores, refuses = lose_conditions(server.client()), server.client()
    answer(refuses, (501, error_body("NotImplemented")))
    for name, client in (("ignores", ignores), ("refuses", refuses)):
        store, key = S3Store(BUCKET, client), f"manifests/{name}.json"
        assert not store.detect_conditional_writes()
        with recorded(client) as requests:
            outcomes = [
                store.put_if_absent(key, data, JSON_TYPE, metadata={"by": name}, public=False)
                for data in (b"first", b"second")
            ]
        assert outcomes == [None, {"by": name, "length": "5"}] and store.read(key) == b"first"
        assert [line.split()[0] for line in requests] == ["HEAD", "PUT", "HEAD"]
        assert not any("match" in line for line in requests)
    warnings = [record for record in caplog.records if "conditional" in record.getMessage()]
    assert len(warnings) == 2


def test_a_bucket_that_may_not_be_written_is_no_answer(server: S3Server) -> None:
    """Whether conditions are honoured is asked again with the next write."""
    store = S3Store(BUCKET, server.client())
    left = answer(store.client, (403, error_body("AccessDenied")))
    with pytest.raises(StorageError, match="AccessDenied"):
        store.detect_conditional_writes()
    assert not left and store.detect_conditional_writes()


def test_a_folder_keeps_whose_picture_it_is(tmp_path: Path) -> None:
    """Of two jobs with one id the second waits, whatever the first's worker is doing."""
    store = FolderStore(tmp_path)
    url, sha256 = store_result(store, 5, b"first", "job-a")
    with pytest.raises(StorageError):
        store_result(store, 5, b"second", "job-b")
    assert (tmp_path / "generations/gen_5.jpg").read_bytes() == b"first"
    assert store_result(store, 5, b"first", "job-a") == (url, sha256)


def test_temporary_keys_go_with_their_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A role's keys are refused without it; no secret of the three is shown."""
    role = {
        "INTERNAL_API_TOKEN": "t",
        "WEBHOOK_ALLOWED_ORIGINS": "https://api.example.com",
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_SESSION_TOKEN": "session-of-a-role",
        "AWS_REGION": "us-east-1",
    }
    for name, value in role.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    store = make_store(settings)
    signer = store.client._request_signer  # type: ignore[attr-defined]
    assert signer._credentials.token == "session-of-a-role"
    assert "session-of-a-role" in settings.secrets and "session-of" not in repr(settings)


def test_a_manifest_of_a_later_version_is_read(tmp_path: Path) -> None:
    """What it says more is no damage; during an upgrade both versions work."""
    store, said = FolderStore(tmp_path), Manifest(7, "digest", "complete", RESULT, "complete_7")
    text = json.dumps(asdict(said) | {"later": 1}).encode()
    store.put_if_absent("manifests/gen_7.json", text, "", metadata={}, public=False)
    assert find_manifest(store, 7, "digest") == said


def _whole(**changed: Any) -> bytes:
    said = Manifest(7, "digest", "complete", RESULT, "complete_7")
    return json.dumps(asdict(said) | changed).encode()


_DAMAGED = {
    "empty": b"",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "deep in a field": _whole()[:-1] + b', "later": ' + b"[" * 100_000,
    "not UTF-8": _whole(job="e").replace(b'"e"', b'"\xe9"'),
    "cut off": _whole()[:-1],
    "a payload that is a list": _whole(payload=[]),
    "an empty payload": _whole(payload={}),
    "a payload of the other event": _whole(event="failed", event_id="failed_7"),
    "a URL that is none": _whole(payload=RESULT | {"result_url": ["c"]}),
    "metadata that is a text": _whole(payload=RESULT | {"metadata": "seed"}),
    "NaN": _whole(payload=RESULT | {"more": float("nan")}),
    "1e400": _whole(payload=RESULT | {"more": 5}).replace(b": 5", b": 1e400"),
    "a long number": _whole().replace(b'"redrives": 0', b'"redrives": ' + b"9" * 5000),
    "redrives in a text": _whole(redrives="9"),
    "redrives below zero": _whole(redrives=-1),
    "redrives as a float": _whole(redrives=0.5),
    "another id": _whole(generation_id=8),
    "another id in the payload": _whole(payload=RESULT | {"generation_id": 8}),
    "an id that is true": _whole(generation_id=True),
    "an unknown event": _whole(event="done", event_id="done_7"),
    "another event's id": _whole(event_id="complete_8"),
    "an event's id with a header": _whole(event_id="complete_7\r\nx: y"),
    "a job that is a number": _whole(job=5),
    "a picture that is a number": _whole(picture=5),
    "huge": _whole(more="x" * MAX_READ_BYTES),
}


@pytest.mark.parametrize("data", _DAMAGED.values(), ids=_DAMAGED)
def test_a_manifest_that_is_not_ours_is_damaged(tmp_path: Path, data: bytes) -> None:
    """It is neither believed nor replaced, and ends no process."""
    store, said = FolderStore(tmp_path), Manifest(7, "digest", "complete", RESULT, "complete_7")
    store.put("manifests/gen_7.json", data, "")
    for act in (
        lambda: find_manifest(store, 7, "digest"),
        lambda: find_manifest(store, 7, "digest", redrives=5),
        lambda: commit(store, said),
        lambda: mark_canceled(store, 7),
    ):
        with pytest.raises(ObjectDamaged):
            act()
    assert (tmp_path / "manifests/gen_7.json").read_bytes() == data


_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
_FIELDS = tuple(asdict(Manifest(7, "digest", "complete", RESULT, "complete_7")))


@given(field=st.sampled_from(_FIELDS + tuple(RESULT)), value=_JSON)
@examples(300)
def test_whatever_a_manifest_holds_it_is_ours_or_damaged(field: str, value: Any) -> None:
    """And what counts as ours can be sent."""
    changed = {field: value} if field in _FIELDS else {"payload": RESULT | {field: value}}
    try:
        manifest = read_manifest(_whole(**changed), 7)
    except ObjectDamaged:
        return
    json.dumps(manifest.payload, allow_nan=False)
    assert str(manifest.generation_id) == str(manifest.payload["generation_id"]) == "7"
    assert isinstance(manifest.payload["result_url"], str) and manifest.redrives >= 0


@given(st.binary(max_size=64))
@examples(200)
def test_bytes_are_no_manifest(data: bytes) -> None:
    with pytest.raises(ObjectDamaged):
        read_manifest(data, 7)


def test_what_lies_at_a_marker_cancels(tmp_path: Path) -> None:
    """It is there or not; what it holds is never read as more."""
    why = {"generation_id": 7, "error_message": "", "error_code": "TIMEOUT", "retry_count": 0}
    for data in (b"", b"[" * 100_000, b"\xff"):
        store = FolderStore(tmp_path / str(len(data)))
        commit(store, Manifest(7, "digest", "failed", why, "failed_7"))
        store.put("manifests/gen_7.canceled", data, "")
        with pytest.raises(Canceled):
            find_manifest(store, 7, "digest", redrives=1)
        assert mark_canceled(store, 7)


def test_a_bucket_that_hides_what_it_lacks_is_found_out(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the right to list, S3 answers 403 for a missing object: no result could be told."""
    store = s3_store(server)
    store.check()
    refused = store.client.exceptions.ClientError({"Error": {"Code": "AccessDenied"}}, "GetObject")

    def get_object(**_: Any) -> Any:
        raise refused

    monkeypatch.setattr(store.client, "get_object", get_object)  # no server here has IAM
    with pytest.raises(StorageError, match="AccessDenied"):
        store.check()


def test_a_bucket_that_hangs_up_is_a_storage_error() -> None:
    """The library's error then has no answer to look into."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    line, _ = server.accept()
                    line.recv(1)
                    line.close()

        threading.Thread(target=hang_up, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        credentials = {"access_key_id": "a", "secret_access_key": "b", "region": "us-east-1"}
        client = make_s3_store("bucket", endpoint_url=address, **credentials).client
        store = S3Store("bucket", client, conditional=True)
        with pytest.raises(StorageError):
            store.put_if_absent("manifests/gone.json", b"{}", "", metadata={}, public=False)


def test_a_silent_bucket_is_waited_for_as_long_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for the minute that boto3 would."""
    monkeypatch.setattr("stylegen.storage.s3_client.READ_TIMEOUT", 0.2)
    monkeypatch.setattr("stylegen.storage.s3_client.MAX_ATTEMPTS", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        credentials = {"access_key_id": "a", "secret_access_key": "b", "region": "us-east-1"}
        store = make_s3_store("bucket", endpoint_url=address, **credentials)
        began = time.monotonic()
        with pytest.raises(StorageError, match="ReadTimeout"):
            store.read("manifests/silent.json")
    assert time.monotonic() - began < 30


def test_codes_of_errors() -> None:
    """S3's own where the server has answered; none where the connection was lost."""
    answered = ClientError({"Error": {"Code": "SlowDown"}}, "PutObject")
    assert error_code(answered) == "SlowDown"
    assert error_code(EndpointConnectionError(endpoint_url="http://127.0.0.1:1")) == ""


def test_a_picture_of_a_worker_without_manifests_is_replaced(
    server: S3Server, tmp_path: Path
) -> None:
    """Nobody can say which job it is of."""
    for store in (FolderStore(tmp_path), s3_store(server)):
        url = store.put(picture_key("old"), b"of an old version", "image/jpeg")
        expected = url, hashlib.sha256(b"new").hexdigest()
        assert store_result(store, "old", b"new", "digest") == expected
        assert store.read(picture_key("old")) == b"new"
    stored = server.client().head_object(Bucket=BUCKET, Key=picture_key("old"))
    assert stored["ContentType"] == "image/jpeg"


def _lora(client: Any, name: str, size: int = 8) -> str:
    client.put_object(Bucket="models", Key=name, Body=name.encode().ljust(size, b"."))
    return f"s3://models/{name}"


def test_a_job_in_flight_is_never_swept(server: S3Server, tmp_path: Path) -> None:
    """A clock that is set forward makes its folder old, as this does."""
    client, cache = server.client(), tmp_path / "cache"
    mine, other = (LoraFiles(s3_store(server), cache) for _ in range(2))
    with mine.get(_lora(client, "held")) as held:
        os.utime(held, (0, 0))
        os.utime(held.parent, (0, 0))
        for files in (mine, other):
            with files.get(_lora(client, f"new-{id(files)}")):
                assert held.read_bytes() == b"held...."
    assert not list((cache / "in-flight").iterdir())


HOLDER = """
import sys
from pathlib import Path
from stylegen.storage import LoraFiles, make_s3_store

endpoint, cache, url = sys.argv[1:]
keys = {"access_key_id": "i", "secret_access_key": "s", "region": "us-east-1"}
with LoraFiles(make_s3_store("b", endpoint_url=endpoint, **keys), Path(cache)).get(url) as path:
    print(path, flush=True)
    sys.stdin.read()
"""


def test_a_frozen_worker_keeps_its_file_and_a_dead_one_does_not(
    server: S3Server, tmp_path: Path
) -> None:
    """Two workers, one cache folder: the kernel knows which of them lives."""
    client, cache = server.client(), tmp_path / "cache"
    arguments = [sys.executable, "-c", HOLDER, server.endpoint_url, cache, _lora(client, "frozen")]
    files = LoraFiles(s3_store(server), cache)
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout
        held = Path(worker.stdout.readline().decode().strip())
        worker.send_signal(signal.SIGSTOP)
        for path in (held, held.parent):
            os.utime(path, (0, 0))
        with files.get(_lora(client, "while it is frozen")):
            assert held.read_bytes() == b"frozen.."
        worker.kill()
        worker.wait()
        with files.get(_lora(client, "after its death")):
            assert not held.parent.exists()


def test_one_download_for_all_jobs_of_an_artist(server: S3Server, tmp_path: Path) -> None:
    """Twenty ask at once; each has the file, and the bucket sent it once."""
    store, sent, start = s3_store(server), [], threading.Barrier(20)
    files = LoraFiles(store, tmp_path / "cache")
    store.client.meta.events.register(
        "before-send.s3.GetObject", lambda request, **_: sent.append(request.url)
    )
    url = _lora(server.client(), "popular", 2**20)

    def get(_: int) -> int:
        start.wait(30)
        with files.get(url) as path:
            return path.stat().st_size

    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(get, range(20))) == {2**20}
    assert len(sent) == 1


FULL_DISK = """
import contextlib, logging, shutil, sys, tempfile
from pathlib import Path
from stylegen.storage import LoraFiles, make_s3_store

endpoint, disk, *urls = sys.argv[1:]
cache, keys = Path(disk) / "cache", {"access_key_id": "i", "secret_access_key": "s"}
logging.basicConfig(format="%(message)s", stream=sys.stdout)
store = make_s3_store("b", endpoint_url=endpoint, region="us-east-1", **keys)
files = LoraFiles(store, cache)
for url in urls:  # each fits, and both don't
    with files.get(url) as path:
        print(path.is_relative_to(cache), path.stat().st_size)
shutil.rmtree(cache / "blobs")
with contextlib.suppress(OSError), (Path(disk) / "others").open("wb", buffering=0) as others:
    while True:
        others.write(bytes(2**12))
with files.get(urls[0]) as path:
    print(path.is_relative_to(cache), path.stat().st_size)
tempfile.tempdir = disk
try:
    with files.get(urls[0]):
        pass
except Exception as error:
    print(type(error).__name__, error)
print(sorted(path.name for path in cache.glob("in-flight/*")))
"""


def test_a_full_disk_is_made_room_on_and_named(server: S3Server, tmp_path: Path) -> None:
    """A real one of a megabyte: evicted, then the temporary folder, then the disk's own error."""
    client, disk = server.client(), tmp_path / "disk"
    urls = [_lora(client, name, 700_000) for name in ("first", "second")]
    disk.mkdir()
    own = [] if os.geteuid() == 0 else ["--map-root-user"]
    mount = 'mount -t tmpfs -o size=1m none "$1" && shift && exec "$@"'
    program = [sys.executable, "-c", FULL_DISK, server.endpoint_url, str(disk), *urls]
    shown = subprocess.run(
        ["unshare", *own, "--mount", "sh", "-c", mount, "sh", str(disk), *program],
        capture_output=True,
        check=True,
        text=True,
    )
    full = "this machine's disk fails (No space left on device)"
    assert shown.stdout.splitlines() == [
        *("True 700000", "True 700000"),
        *(f"the LoRA cache can't be used ({full})", "False 700000"),
        *(f"the LoRA cache can't be used ({full})", f"DiskError {full}"),
        "[]",
    ]


def test_what_the_cache_holds_is_private(server: S3Server, tmp_path: Path) -> None:
    """Whatever the umask lets pass; also the folders, or others could exchange what lies there."""
    before, home = os.umask(0), tmp_path / "made"
    try:
        with LoraFiles(s3_store(server), home / "cache").get(_lora(server.client(), "mine")):
            kept = [home, *home.rglob("*")]
            modes = [(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in kept]
    finally:
        os.umask(before)
    assert set(modes) == {(True, 0o700), (False, 0o600)} and modes.count((False, 0o600)) == 3


def test_a_folders_pictures_can_be_served_and_its_manifests_are_private(tmp_path: Path) -> None:
    """By a web server with a user of its own."""
    store, before = FolderStore(tmp_path), os.umask(0o077)
    try:
        store_result(store, 7, b"jpeg", "digest")
        upload_image_to_s3(b"jpeg", 8, store=store)
        why = {"generation_id": 7, "error_message": "", "error_code": "TIMEOUT", "retry_count": 0}
        failed = Manifest(7, "digest", "failed", why, "failed_7")
        commit(store, failed)
        commit(store, Manifest(7, "digest", "complete", RESULT, "complete_7", redrives=1))
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("gen_*")}
    assert modes["gen_7.jpg"] == modes["gen_8.jpg"] == 0o644
    assert modes["gen_7.json"] == 0o600


def test_a_disk_may_take_less_than_it_is_given(tmp_path: Path) -> None:
    """A short write is no error; what was left is written next, and nothing twice."""

    class ShortWrites(io.FileIO):
        def write(self, data: Any) -> int:
            """No more than seven bytes."""
            return super().write(memoryview(data)[:7])

    class OnSuchADisk(LimitedFile, ShortWrites):
        """The file on a disk that takes little at a time."""

    data = bytes(range(100))
    with OnSuchADisk(tmp_path / "file", 100) as file:
        assert file.write(data) == 100
    assert (tmp_path / "file").read_bytes() == data
