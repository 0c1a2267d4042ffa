"""What may pass is tried again, whatever the operation; what does not is told at once."""

import errno
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import botocore.exceptions
import pyarrow as pa
import pytest
import s3fs
from fsspec.asyn import sync
from hypothesis import given
from hypothesis import strategies as st

from llavamed.errors import DamagedFileError, StorageError
from llavamed.storage import lease, retry
from llavamed.storage import location as storage
from llavamed.storage.location import MANIFEST, Location, check_writable, locate
from llavamed.storage.retry import ATTEMPTS, WAIT, with_retries
from tests.support.faulty_s3 import FOR_EVER, OF_A_BODY, OF_ANY_REQUEST, FaultyS3
from tests.support.log_messages import on_log

DATA = bytes(range(256)) * 50
TABLE = pa.table({"number": list(range(1000))})


@pytest.fixture
def folder(s3_uri: str, faulty: FaultyS3, tmp_path: Path) -> Location:
    """A folder with a file of each kind."""
    place = locate(f"{s3_uri}/retry/{tmp_path.name}")
    (place / "bytes").write_bytes(DATA)
    (place / "json").write_json({"a": 1})
    (place / "table").write_table(TABLE, row_group_size=100)
    faulty.heal()
    return place


def stream(place: Location) -> bytes:
    with place.open() as file:
        return b"".join(iter(lambda: file.read(1000), b""))


def write(place: Location) -> bytes:
    place.write_bytes(DATA)
    return place.read_bytes()


def remove(place: Location) -> list[str]:
    place.remove()
    return (place / "..").children()


def upload(place: Location, scratch: Path) -> bytes:
    (scratch / "up").mkdir()
    (scratch / "up" / "file").write_bytes(DATA)
    place.upload(scratch / "up")
    return (place / "file").read_bytes()


def download(place: Location, scratch: Path) -> dict[str, int]:
    there = place.download(scratch / "down")
    return {file.name: file.stat().st_size for file in there.iterdir() if file.name == "bytes"}


READS: dict[str, tuple[Callable[[Location, Path], Any], Any]] = {
    "read": (lambda folder, _: (folder / "bytes").read_bytes(), DATA),
    "json": (lambda folder, _: (folder / "json").read_json(), {"a": 1}),
    "table": (lambda folder, _: (folder / "table").read_table(), TABLE),
    "download": (download, {"bytes": len(DATA)}),
    "children": (lambda folder, _: folder.children(), ["bytes", "json", "table"]),
}
OTHERS: dict[str, tuple[Callable[[Location, Path], Any], Any]] = {
    "range": (lambda folder, _: (folder / "bytes").read_bytes(5, 9), DATA[5:9]),
    "stream": (lambda folder, _: stream(folder / "bytes"), DATA),
    "exists": (lambda folder, _: (folder / "bytes").exists(), True),
    "absent": (lambda folder, _: (folder / "absent").exists(), False),
    "write": (lambda folder, _: write(folder / "new"), DATA),
    "upload": (lambda folder, scratch: upload(folder / "new", scratch), DATA),
    "remove": (lambda folder, _: (folder / "bytes").remove(), None),
}
CASES = [
    *itertools.product(OF_ANY_REQUEST, [*READS, *OTHERS]),
    *itertools.product(OF_A_BODY, READS),
    *(("cut", name) for name in ("range", "stream")),
]


@pytest.mark.parametrize(("fault", "name"), CASES, ids=map("-".join, CASES))
def test_a_failure_that_passes_changes_nothing_but_the_log(
    fault: Any,
    name: str,
    folder: Location,
    faulty: FaultyS3,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    operation, expected = (READS | OTHERS)[name]
    folder.fs.invalidate_cache()
    times = 1 if fault == "hang" else 2
    faulty.fail(fault, times=times, method="GET" if fault in OF_A_BODY else "")
    assert operation(folder, tmp_path) == expected
    if name == "remove":
        assert folder.children() == ["json", "table"]
    assert faulty.num_faults == times
    lines = [
        record.getMessage() for record in caplog.records if record.name == "llavamed.storage.retry"
    ]
    assert 1 <= len(lines) <= times
    for line in lines:
        assert str(folder) in line
        assert f"of {ATTEMPTS} failed, the next comes in" in line


def test_what_stays_bad_is_tried_so_often_and_then_named(
    folder: Location, faulty: FaultyS3
) -> None:
    faulty.fail("500", "/bytes", times=FOR_EVER)
    with pytest.raises(StorageError, match=r"/bytes: cannot read it: OSError: .*; check that"):
        (folder / "bytes").read_bytes()
    assert faulty.count("/bytes") == ATTEMPTS
    faulty.heal()
    faulty.fail("wrong", "/table", times=FOR_EVER, method="GET")
    with pytest.raises(StorageError, match=r"/table: cannot read it: FlexibleChecksumError: Expe"):
        (folder / "table").read_table()


def test_what_cannot_get_better_is_not_tried_again(
    folder: Location, faulty: FaultyS3, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FileNotFoundError):
        (folder / "absent").read_bytes()
    with pytest.raises(StorageError, match="create the bucket"):
        locate("s3://llavamed-tset/file").write_bytes(DATA)
    faulty.heal()
    faulty.fail("403", "/bytes", times=FOR_EVER)
    with pytest.raises(StorageError, match=r"/bytes: cannot read it: PermissionError"):
        (folder / "bytes").read_bytes()
    assert faulty.count("/bytes") == 1
    assert not [record for record in caplog.records if record.name == "llavamed.storage.retry"]


def test_a_store_that_deletes_one_file_at_a_time_is_enough(
    folder: Location, faulty: FaultyS3
) -> None:
    """Google's has no request for many files, and older ones of MinIO and Ceph want its MD5."""
    faulty.fail("403", "?delete", times=FOR_EVER, method="POST")
    folder.remove()
    assert not folder.exists()
    check_writable(folder)


def test_a_file_that_may_not_be_deleted_is_told(folder: Location, faulty: FaultyS3) -> None:
    faulty.fail("403", times=FOR_EVER, method="DELETE")
    for work in (folder.remove, (folder / "json").remove, lambda: check_writable(folder)):
        with pytest.raises(StorageError, match=r"cannot delete it: PermissionError: .*; check"):
            work()
    assert (folder / "json").exists()
    faulty.heal()
    faulty.fail("403", "/json", times=FOR_EVER, method="DELETE")
    with pytest.raises(StorageError, match=r"cannot delete it: PermissionError: .*; check"):
        folder.remove()
    assert (folder / "json").exists()


def test_the_impatient_are_told_at_once(folder: Location, faulty: FaultyS3) -> None:
    for fault in ("500", "hang"):
        faulty.heal()
        faulty.fail(fault, times=FOR_EVER)
        with pytest.raises(StorageError, match="cannot write it"):
            check_writable(folder)
        assert faulty.count() <= 2
    assert (folder.without_retries() / "below").attempts == 1


IMPATIENT: dict[str, Callable[[Location], Any]] = {
    "list": lambda place: place.children(),
    "look at": lambda place: place.exists(),
    "read": lambda place: place.read_bytes(),
    "write": lambda place: place.write_bytes(DATA),
    "create": lambda place: place.create(DATA),
    "delete": lambda place: place.remove(),
}


@pytest.mark.parametrize("name", IMPATIENT)
def test_the_impatient_do_not_wait_for_a_client_that_never_wakes(
    name: str, folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock is held by a request that never ends, so the server is not even asked."""
    place = folder.without_retries() / "bytes"
    place.fs.connect()
    monkeypatch.setattr(storage, "UNRETRIED_LIMIT_SECONDS", 0.5)
    lock = place.fs._set_session_lock
    with monkeypatch.context() as patch:
        patch.setattr(place.fs, "_s3", None)  # the client is not there yet
        sync(place.fs.loop, lock.acquire)
        with pytest.raises(StorageError, match=r"/bytes: cannot .* it: .*Timeout"):
            IMPATIENT[name](place)
        place.fs.loop.call_soon_threadsafe(lock.release)
    monkeypatch.setattr(storage, "UNRETRIED_LIMIT_SECONDS", 30.0)
    assert place.read_bytes() == DATA


@pytest.mark.parametrize("name", ["list", "look at"])
def test_the_patient_ask_again_when_a_client_never_wakes(
    name: str, folder: Location, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storage, "LISTING_LIMIT_SECONDS", 0.5)
    place = folder / "bytes"
    lock = place.fs._set_session_lock
    woken = on_log(lambda _: place.fs.loop.call_soon_threadsafe(lock.release), name=retry.__name__)
    with monkeypatch.context() as patch, woken:
        patch.setattr(place.fs, "_s3", None)
        sync(place.fs.loop, lock.acquire)
        assert IMPATIENT[name](place)
    assert "attempt 1 of 6 failed" in caplog.text


def test_a_beat_that_fails_is_not_tried_again_lest_it_come_late(
    folder: Location, faulty: FaultyS3, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    with lease.hold_lease(folder, hint="wait"):
        faulty.fail("500", lease.LEASE, times=FOR_EVER, method="PUT")
        deadline = time.monotonic() + 10
        while faulty.num_faults < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert faulty.num_faults >= 3
    assert not [record for record in caplog.records if record.name == "llavamed.storage.retry"]


def test_a_stream_goes_on_where_it_was(folder: Location, faulty: FaultyS3) -> None:
    place = folder / "large"
    data = bytes(range(251)) * 4000
    place.write_bytes(data)
    faulty.fail_at_random(0.3, ("500", "503", "reset", "lost", "cut"), seed=1)
    with place.open(cache_type="none") as file:
        pieces = [file.read(50_000) for _ in range(10)]
        file.seek(-len(data) // 2, 2)
        assert file.read() == data[len(data) - len(data) // 2 - len(data) % 2 :]
    assert b"".join(pieces) == data[:500_000]
    assert faulty.num_faults >= 3


def test_an_upload_that_fails_publishes_no_manifest(
    folder: Location, faulty: FaultyS3, tmp_path: Path
) -> None:
    for name in (MANIFEST, "a", "z"):
        (tmp_path / name).write_bytes(DATA)
    faulty.fail("503", "/z", times=FOR_EVER, method="PUT")
    with pytest.raises(StorageError, match=r"export/z: cannot write it"):
        (folder / "export").upload(tmp_path)
    faulty.heal()
    assert (folder / "export").children() == ["a"]


def test_with_the_client_s_own_tries_a_short_failure_is_not_even_told(
    folder: Location, faulty: FaultyS3, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    place = Location(s3fs.S3FileSystem(skip_instance_cache=True), (folder / "bytes").path)
    faulty.fail("500", "/bytes")
    assert place.read_bytes() == DATA
    assert faulty.num_faults == 1
    assert not [record for record in caplog.records if record.name == "llavamed.storage.retry"]


HERE, AWAY = locate("/some/file"), locate("memory://some/file")
PASSING = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    TimeoutError("no answer"),
    ConnectionResetError("reset"),
    botocore.exceptions.EndpointConnectionError(endpoint_url="http://host"),
    DamagedFileError("file: is not JSON", "cut off"),
]
CHECK = "check that the place exists, is reachable and that the credentials in the environment"
FINAL = {
    OSError(errno.ENOSPC, "No space left on device"): "free some space, or name another place",
    OSError(errno.EDQUOT, "Quota exceeded"): "free some space, or name another place",
    OSError(errno.EROFS, "Read-only file system"): "name a place that can be written",
    OSError(errno.EISDIR, "Is a directory"): "name a file",
    PermissionError("denied"): CHECK,
    IsADirectoryError("a folder"): CHECK,
    botocore.exceptions.NoCredentialsError(): CHECK,
}


@given(errors=st.lists(st.sampled_from(PASSING), max_size=ATTEMPTS + 2))
def test_work_is_done_until_it_succeeds_or_has_been_tried_often_enough(
    errors: list[Exception],
) -> None:
    coming, done = iter(errors), []

    def work() -> str:
        done.append(1)
        if error := next(coming, None):
            raise error
        return "done"

    if len(errors) < ATTEMPTS:
        assert with_retries(AWAY, "read", work) == "done"
    else:
        with pytest.raises(StorageError):
            with_retries(AWAY, "read", work)
    assert len(done) == min(len(errors) + 1, ATTEMPTS)


@pytest.mark.parametrize(("error", "advice"), FINAL.items(), ids=repr)
def test_an_error_that_waits_for_somebody_is_raised_at_once(error: Exception, advice: str) -> None:
    done = []

    def work() -> None:
        done.append(1)
        raise error

    with pytest.raises(StorageError, match=rf"/some/file: cannot write it: .*; {advice}"):
        with_retries(HERE, "write", work)
    assert len(done) == 1


def test_waits_grow_and_last_as_long_as_a_server_takes_to_start_again(monkeypatch: Any) -> None:
    waits: list[float] = []
    monkeypatch.setattr(retry, "WAIT", WAIT)
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=waits.append))
    coming = itertools.repeat(OSError(errno.EIO, "Input/output error"))
    with pytest.raises(StorageError):
        with_retries(HERE, "read", lambda: (_ for _ in ()).throw(next(coming)))
    assert len(waits) == ATTEMPTS - 1
    assert waits == sorted(waits)
    assert 30 <= sum(waits) < 60
    waits.clear()
    damaged = itertools.repeat(DamagedFileError("file: is not JSON", "cut off"))
    with pytest.raises(DamagedFileError):
        with_retries(AWAY, "read", lambda: (_ for _ in ()).throw(next(damaged)))
    assert waits == [0.0] * (ATTEMPTS - 1)
    waits.clear()
    with pytest.raises(DamagedFileError):  # a file of this machine stays as it is
        with_retries(HERE, "read", lambda: (_ for _ in ()).throw(next(damaged)))
    assert waits == []
