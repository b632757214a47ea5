"""`stylegen-erase`: on a real S3 server, with and without versions, and on a folder."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server

from stylegen.fleet.erase import main
from stylegen.settings import Settings
from stylegen.storage import Bucket, BucketVersions, FolderStore, Manifest, Store, commit
from stylegen.storage import find_manifest, make_s3_store, mark_canceled, store_result
from stylegen.storage.erasure import MAX_VERSIONS_PER_REQUEST
from stylegen.storage.keys import DETECTION_KEY

Erase = Callable[..., int]
DAY = 86_400


@pytest.fixture(name="bare")
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No setting of a worker: only the storage's will be set."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


@pytest.fixture(name="folder")
def _folder(bare: pytest.MonkeyPatch, tmp_path: Path) -> FolderStore:
    store = FolderStore(tmp_path / "bucket")
    bare.setenv("STYLEGEN_STORAGE_FOLDER", str(store.root))
    return store


@pytest.fixture(name="bucket")
def _bucket(bare: pytest.MonkeyPatch, s3: S3Server) -> Any:
    """Settings of a new bucket; returns its name, made with the options that are passed."""

    def make(name: str, *, versioned: bool = False, **options: Any) -> Store:
        client = s3.client()
        client.create_bucket(Bucket=name, **options)
        if versioned:
            status = {"Status": "Enabled"}
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration=status)
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        place = {"AWS_ENDPOINT_URL_S3": s3.endpoint_url, "AWS_REGION": "us-east-1"}
        for variable, value in (keys | place | {"S3_BUCKET": name}).items():
            bare.setenv(variable, value)
        return make_s3_store(name, region="us-east-1", endpoint_url=s3.endpoint_url)

    return make


def finish(store: Store, *generation_ids: str) -> None:
    """What jobs leave: one that is done, and one that failed and was canceled then."""
    for each in generation_ids:
        url, digest = store_result(store, each, b"a picture", "job")
        payload = {"generation_id": each, "result_url": url, "metadata": {}}
        commit(store, Manifest(each, "job", "complete", payload, f"complete_{each}", digest))
    failed = f"{generation_ids[0]}-failed"
    payload = {"generation_id": failed, "error_message": "", "error_code": "X", "retry_count": 0}
    commit(store, Manifest(failed, "job", "failed", payload, f"failed_{failed}"))
    assert mark_canceled(store, failed)


def keys_of(store: Any, name: str = "") -> list[str]:
    """All keys there are, hidden versions included."""
    if isinstance(store, FolderStore):
        files = [path for path in store.root.rglob("*") if path.is_file()]
        return sorted(path.relative_to(store.root).as_posix() for path in files)
    return [each.key for each in BucketVersions(Bucket(name, store.client)).find("")]


@pytest.mark.parametrize("versioned", [False, True], ids=["plain", "versions"])
def test_a_customer_is_erased_from_a_bucket(
    bucket: Any, versioned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """By id, every version; others' generations and the worker's probes stay, the id is free."""
    name = f"erased-{versioned}".lower()
    store = bucket(name, versioned=versioned)
    store.check()
    finish(store, "500", "5001")
    if versioned:
        store.client.delete_object(Bucket=name, Key="generations/gen_500.jpg")
        assert len(keys_of(store, name)) > 8
    assert main(["500", "500-failed", "--dry-run"]) == 0
    assert "would erase 2 generations" in capsys.readouterr().out
    assert find_manifest(store, "500", "job")
    assert main(["500", "500-failed"]) == 0
    left = set(keys_of(store, name))
    assert left >= {"generations/gen_5001.jpg", "manifests/gen_5001.json", DETECTION_KEY}
    assert not [key for key in left if "_500." in key or "500-failed" in key]
    assert find_manifest(store, "500", "another job") is None
    assert main(["500"]) == 1
    assert "nothing is stored of 500\n" in capsys.readouterr().err


def test_what_a_lock_holds_is_named(bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The lock's object stays with its reason, and so does the exit code; the rest is erased."""
    store = bucket("locked", ObjectLockEnabledForBucket=True)
    finish(store, "1", "2")
    until = {"Mode": "COMPLIANCE", "RetainUntilDate": "2099-01-01"}
    store.client.put_object_retention(Bucket="locked", Key="generations/gen_1.jpg", Retention=until)
    assert main(["1", "2"]) == 1
    shown = capsys.readouterr()
    assert shown.err == "stays: generations/gen_1.jpg: AccessDenied\n"
    assert "erased 1 generations" in shown.out and "erased 1:" not in shown.out
    kept = [key for key in keys_of(store, "locked") if "failed" not in key and "gen_" in key]
    assert kept == ["generations/gen_1.jpg"]


def test_more_than_one_request(bucket: Any) -> None:
    """S3 takes a thousand versions at a time; a list of more is asked for in parts."""
    store = bucket("many", versioned=True)
    for number in range(3):
        store.client.put_object(Bucket="many", Key=f"generations/gen_{number}.jpg", Body=b"")
    versions = BucketVersions(Bucket("many", store.client))
    everything = list(versions.find("generations/"))
    repeated = everything * (MAX_VERSIONS_PER_REQUEST // 2)
    assert versions.erase(repeated) == {} and not list(versions.find(""))


def test_old_ones_go_from_a_folder(folder: FolderStore, capsys: pytest.CaptureFixture[str]) -> None:
    """By age and by prefix, both if both are said; one that was stored again is new."""
    finish(folder, "shop-1", "shop-2", "500")
    long_ago = time.time() - 40 * DAY
    for key in keys_of(folder):
        if "shop-2" not in key:
            os.utime(folder.root / key, (long_ago, long_ago))
    os.utime(folder.root / "generations/gen_500.jpg")
    assert main(["--older-than", "30", "--prefix", "shop-", "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith("would erase 2 generations\n")
    assert main(["--older-than", "30"]) == 0
    assert capsys.readouterr().out.endswith("erased 2 generations\n")
    assert not [key for key in keys_of(folder) if "shop-1" in key]
    assert main(["--older-than", "30"]) == 0, "nothing that is old enough is no failure"
    assert main(["--prefix", "shop-"]) == 0
    assert {key.split("gen_")[1].split(".")[0] for key in keys_of(folder)} == {"500"}


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--dry-run"],
        ["500", "--older-than", "3"],
        ["500", "--prefix", "5"],
        ["../500"],
        [""],
        ["--prefix", ""],
        ["--older-than", "0"],
        ["--older-than", "-3"],
        ["--older-than", "nan"],
        ["--older-than", "inf"],
        ["--older-than", "soon"],
    ],
    ids=str,
)
def test_a_slip_erases_nothing(folder: FolderStore, words: list[str]) -> None:
    """Code 2, and everything stays."""
    finish(folder, "500")
    before = keys_of(folder)
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and keys_of(folder) == before


def test_storage_that_fails(
    bare: pytest.MonkeyPatch, bucket: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong setting is 2, a bucket that is not there 1, each in one line without a secret."""
    bucket("there")
    bare.setenv("S3_BUCKET", "not-there")
    assert main(["500"]) == 1
    assert capsys.readouterr().err == "failed: s3://not-there: not found\n"
    bare.setenv("S3_BUCKET", "s3://x")
    assert main(["500"]) == 2
    assert capsys.readouterr().err.startswith("S3_BUCKET: ")
