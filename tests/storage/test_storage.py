import os
import posixpath
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import fsspec
import pyarrow as pa
import pytest
import s3fs

from llavamed.data.sources.files import find_files
from llavamed.errors import StorageError
from llavamed.storage.location import (
    MANIFEST,
    UNRETRIED_TIMEOUT_SECONDS,
    Location,
    check_writable,
    locate,
)


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    """An empty folder of each kind of storage."""
    if request.param == "local":
        return locate(str(tmp_path / "folder"))
    s3_uri = request.getfixturevalue("s3_uri")
    return locate(f"{s3_uri}/{tmp_path.name}")


@pytest.fixture
def endpoint(monkeypatch):
    """Leads to another S3 server than the session's, and back again."""

    def lead(url):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-very-secret-key")
        s3fs.S3FileSystem.clear_instance_cache()

    yield lead
    s3fs.S3FileSystem.clear_instance_cache()


def test_bytes_come_back(folder):
    file = folder / "below" / "file.bin"
    assert not file.exists()
    file.write_bytes(b"one")
    file.write_bytes(b"two")
    assert file.exists()
    assert file.read_bytes() == b"two"
    assert file.name == "file.bin"


def test_json_comes_back_and_equal_values_give_equal_bytes(folder):
    (folder / "a.json").write_json({"b": 1, "a": [1.5, None, "é"]})
    (folder / "b.json").write_json({"a": [1.5, None, "é"], "b": 1})
    assert (folder / "a.json").read_json() == {"a": [1.5, None, "é"], "b": 1}
    assert (folder / "a.json").read_bytes() == (folder / "b.json").read_bytes()


def test_tables_come_back_in_row_groups(folder):
    table = pa.table({"number": list(range(10)), "text": ["a"] * 10})
    file = folder / "table.parquet"
    file.write_table(table, row_group_size=4)
    assert file.read_table() == table
    with pa.parquet.ParquetFile(file.path, filesystem=file.fs) as parquet:
        assert parquet.num_row_groups == 3


def test_a_missing_file_stays_a_missing_file(folder):
    for read in ("read_bytes", "read_json", "read_table"):
        with pytest.raises(FileNotFoundError, match="absent"):
            getattr(folder / "absent", read)()


def test_a_missing_file_of_a_bucket_called_bucket_is_no_missing_bucket(s3_uri):
    s3fs.S3FileSystem().mkdir("my-bucket")
    with pytest.raises(FileNotFoundError, match="my-bucket/absent"):
        locate("s3://my-bucket/absent").read_bytes()


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe"], ids=["empty", "cut off", "no text"])
def test_a_damaged_file_is_named(folder, data):
    (folder / "file").write_bytes(data)
    with pytest.raises(StorageError, match=r"file: is not JSON \(.*\); make it again"):
        (folder / "file").read_json()
    with pytest.raises(StorageError, match=r"file: is not Parquet \(.*\); make it again"):
        (folder / "file").read_table()


def test_children_are_sorted_names_of_files_and_folders(folder):
    assert folder.children() == []
    (folder / "b" / "inner").write_bytes(b"1")
    (folder / "a").write_bytes(b"1")
    assert folder.children() == ["a", "b"]
    assert (folder / "absent").children() == []


def test_what_another_process_writes_is_seen(folder):
    assert folder.children() == []
    other = (
        fsspec.filesystem("file")
        if folder.is_local
        else s3fs.S3FileSystem(skip_instance_cache=True)
    )
    if folder.is_local:
        other.makedirs(folder.path)
    other.pipe_file(f"{folder.path}/new", b"1")
    assert folder.children() == ["new"]
    assert (folder / "new").exists()


def test_a_listing_that_another_thread_has_made_is_no_answer(folder, monkeypatch):
    """It may come between this thread's look and the call that forgets older listings."""
    (folder / "a").write_bytes(b"1")
    monkeypatch.setattr(type(folder.fs), "invalidate_cache", lambda *_: None)
    for list_all in (folder.fs.ls, folder.fs.find, folder.fs.info):
        list_all(folder.path)
    if folder.is_local:
        fsspec.filesystem("file").pipe_file(f"{folder.path}/b", b"1")
    else:
        boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).put_object(
            Bucket=folder.path.partition("/")[0], Key=folder.path.partition("/")[2] + "/b"
        )
    assert folder.children() == ["a", "b"]
    assert (folder / "b").exists()
    assert [posixpath.basename(path) for path in folder.list_files()] == ["a", "b"]


def test_remove_takes_a_file_or_a_folder_and_nothing_else(folder):
    for name in ("ab", "a/one", "a/deep/two", "file"):
        (folder / name).write_bytes(b"1")
    (folder / "a").remove()
    (folder / "file").remove()
    (folder / "absent").remove()
    assert folder.children() == ["ab"]


def test_a_folder_that_a_console_made_is_no_file(s3_uri: str, tmp_path: Path) -> None:
    place = locate(f"{s3_uri}/{tmp_path.name}")
    bucket, _, key = place.path.partition("/")
    s3 = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    for folder in ("", "deep/", "empty/"):
        s3.put_object(Bucket=bucket, Key=f"{key}/{folder}")
    assert (place / "empty").children() == []
    (place / "deep" / "file").write_bytes(b"1")
    assert place.children() == ["deep", "empty"]
    copied = place.download(tmp_path)
    assert [path.name for path in copied.rglob("*") if path.is_file()] == ["file"]
    assert [file.path for file in find_files(place, "")] == [f"{place.path}/deep/file"]
    place.remove()
    assert s3.list_objects_v2(Bucket=bucket, Prefix=key)["KeyCount"] == 0


def test_no_name_of_an_object_leads_out_of_the_folder(s3_uri: str, tmp_path: Path) -> None:
    place = locate(f"{s3_uri}/{tmp_path.name}")
    bucket, _, key = place.path.partition("/")
    s3 = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    s3.put_object(Bucket=bucket, Key=f"{key}/deep/../../outside", Body=b"1")
    with pytest.raises(StorageError, match=r"object .*/outside leads out of this folder"):
        place.download(tmp_path / "copy")
    assert not list(tmp_path.rglob("outside"))


def test_upload_writes_the_manifest_last_and_download_gives_the_same(folder, tmp_path, monkeypatch):
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / MANIFEST).write_text("{}")
    (source / "z").write_bytes(b"z")
    (source / "deep" / "file").write_bytes(b"deep")
    seen = []
    put_file = folder.fs.put_file

    def watch(local, target):
        seen.append((Path(local).name, (folder / MANIFEST).exists()))
        return put_file(local, target)

    monkeypatch.setattr(folder.fs, "put_file", watch)
    folder.upload(source)
    assert seen == [("file", False), ("z", False)]
    assert (folder / MANIFEST).read_json() == {}
    copy = folder.download(tmp_path / "copy")
    found = {str(file.relative_to(copy)) for file in copy.rglob("*") if file.is_file()}
    assert found == {MANIFEST, "z", "deep/file"}
    assert (copy / "deep" / "file").read_bytes() == b"deep"
    assert (str(copy) == folder.path) is folder.is_local


def test_downloading_what_is_not_there_is_refused(folder, tmp_path):
    with pytest.raises(StorageError, match=r"absent: no such folder; check the path"):
        (folder / "absent").download(tmp_path / "copy")


def test_check_writable_leaves_nothing_behind(folder):
    check_writable(folder)
    assert folder.children() == []


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match=r"taken: cannot write it: IsADirectoryError"):
        locate(str(tmp_path / "taken")).write_bytes(b"data")
    assert os.listdir(tmp_path) == ["taken"]


def test_a_write_that_is_killed_leaves_the_old_or_the_new_file(tmp_path):
    file = tmp_path / "file"
    code = (
        "import itertools, sys\n"
        "from llavamed.storage.location import locate\n"
        "for number in itertools.count():\n"
        "    locate(sys.argv[1]).write_bytes(bytes([number % 256]) * 4_000_000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(file)]) as writer:
        while not file.exists():
            assert writer.poll() is None, "the writer died"
            time.sleep(0.01)
        time.sleep(0.1)
        writer.kill()
    data = file.read_bytes()
    assert data == data[:1] * 4_000_000
    assert locate(str(tmp_path)).children() == ["file"]


def test_a_folder_below_a_file_is_not_writable(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot write it: .*; check that the place exists"):
        check_writable(locate(str(tmp_path / "file" / "below")))
    with pytest.raises(StorageError, match=r"/proc/below.*: cannot write it"):
        check_writable(locate("/proc/below"))


def test_a_missing_bucket_is_named_and_never_made(s3_uri):
    with pytest.raises(StorageError, match=r"s3://llavamed-tset/runs.* create the bucket"):
        check_writable(locate("s3://llavamed-tset/runs"))
    with pytest.raises(StorageError, match="bucket does not exist"):
        locate("s3://llavamed-tset/runs").read_bytes()
    assert not s3fs.S3FileSystem().exists("llavamed-tset")


@pytest.mark.parametrize("answers", [False, True], ids=["refused", "silent"])
def test_an_unreachable_server_is_named_within_seconds(answers, endpoint, caplog):
    with socket.socket() as server, socket.socket() as first:
        server.bind(("127.0.0.1", 0))
        if answers:  # a full backlog: further connections are never answered
            server.listen(0)
            first.connect(server.getsockname())
        url = "http://{}:{}".format(*server.getsockname())
        endpoint(url)
        place = locate("s3://bucket/runs")
        with pytest.raises(StorageError, match=r"s3://bucket/runs.*: cannot write it") as caught:
            check_writable(place)
    assert "attempt 1 of" not in caplog.text, "it is tried again"
    client = place.without_retries().fs.s3.meta.config
    assert client.connect_timeout == client.read_timeout == UNRETRIED_TIMEOUT_SECONDS <= 5
    assert client.retries["total_max_attempts"] <= 2
    assert url in str(caught.value)
    assert "check that the place exists, is reachable" in str(caught.value)
    assert "a-very-secret-key" not in str(caught.value)


def test_missing_credentials_are_named(endpoint, monkeypatch, tmp_path):
    endpoint("http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="Unable to locate credentials; check that"):
        check_writable(locate("s3://bucket/runs"))


@pytest.mark.parametrize("uri", ["ftpx://host/runs", "S3://bucket/runs"])
def test_an_unknown_scheme_is_refused(uri):
    with pytest.raises(StorageError, match=r"no filesystem for .*; use a local path or s3://, or"):
        locate(uri)


def test_locations_print_as_what_can_be_located_again(tmp_path, monkeypatch, s3_uri):
    monkeypatch.chdir(tmp_path)
    assert str(locate("runs")) == f"{tmp_path}/runs"
    assert str(locate(f"file://{tmp_path}/a b")) == f"{tmp_path}/a b"
    assert str(locate("~/runs")) == str(Path.home() / "runs")
    assert str(locate(f"{s3_uri}/runs/") / "demo") == f"{s3_uri}/runs/demo"
    assert str(locate(s3_uri)) == s3_uri


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_of_many_that_create_a_file_one_is_told_so(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = str(tmp_path) if kind == "local" else f"{request.getfixturevalue('s3_uri')}/create"
    folder = locate(uri)
    assert folder.can_create_exclusively()
    assert folder.children() == []
    start = threading.Barrier(8)

    def create(number: int) -> bool:
        start.wait(60)
        return (folder / "file").create(b"%d" % number * 1000)

    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(create, range(8)))
    assert sum(created) == 1
    assert (folder / "file").read_bytes() == b"%d" % created.index(True) * 1000
    assert folder.children() == ["file"]


def test_a_storage_that_only_looks_first_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not Location(fsspec.filesystem("memory"), "/folder").can_create_exclusively()

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert not locate(str(tmp_path)).can_create_exclusively()
    assert list(tmp_path.iterdir()) == []
