"""What lies in object storage is fetched once per machine, and anew when it changes."""

import os
import threading
from pathlib import Path

import pytest

from llavamed.errors import StorageError
from llavamed.storage.fetch import fetch_once
from llavamed.storage.location import locate
from tests.support.faulty_s3 import FaultyS3


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine's folder for temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def put(uri: str, **files: str) -> str:
    for name, text in files.items():
        (locate(uri) / name.replace("_", ".", 1)).write_bytes(text.encode())
    return uri


def test_a_local_folder_or_a_name_is_not_copied(machine: Path) -> None:
    assert fetch_once("some/name") == "some/name"
    assert fetch_once(str(machine)) == str(machine)
    assert list(machine.iterdir()) == []


def test_all_workers_of_a_machine_fetch_once(machine: Path, faulty: FaultyS3, s3_uri: str) -> None:
    source = put(f"{s3_uri}/once", config_json="{}", model_safetensors="weights")
    before = faulty.count("model.safetensors", "GET")
    found: list[str] = []
    workers = [threading.Thread(target=lambda: found.append(fetch_once(source))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert (Path(found[0]) / "model.safetensors").read_text() == "weights"
    assert faulty.count("model.safetensors", "GET") == before + 1


def test_a_source_that_changes_is_fetched_anew(machine: Path, s3_uri: str) -> None:
    source = put(f"{s3_uri}/changes", config_json="{}")
    first = fetch_once(source)
    put(source, config_json="[]")
    second = fetch_once(source)
    assert (Path(first) / "config.json").read_text() == "{}"
    assert (Path(second) / "config.json").read_text() == "[]"


def test_weights_stay_where_they_are_when_only_the_config_is_asked_for(
    machine: Path, s3_uri: str
) -> None:
    source = put(f"{s3_uri}/small", config_json="{}", model_safetensors="weights")
    assert [path.name for path in Path(fetch_once(source, weights=False)).iterdir()] == [
        "config.json"
    ]
    assert len(list(Path(fetch_once(source)).iterdir())) == 2


def test_a_folder_that_is_not_there_is_named(machine: Path, s3_uri: str) -> None:
    with pytest.raises(StorageError, match=r"s3://llavamed-test/nowhere: no such folder; check"):
        fetch_once(f"{s3_uri}/nowhere")


def test_a_folder_of_another_user_is_not_trusted(
    machine: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = put(f"{s3_uri}/planted", config_json="{}")
    fetch_once(source)
    (folder,) = machine.iterdir()
    other = folder.rename(machine / "elsewhere")
    folder.symlink_to(other)
    with pytest.raises(StorageError, match=r"TMPDIR=.* belongs to another user; set TMPDIR to a"):
        fetch_once(source)


def test_a_copy_that_nothing_asks_for_any_more_is_deleted(machine: Path, s3_uri: str) -> None:
    old, used, new = (put(f"{s3_uri}/{name}", config_json="{}") for name in ("old", "used", "new"))
    unused, kept = Path(fetch_once(old)), Path(fetch_once(used))
    killed = unused.parent / "left-behind"
    killed.mkdir()
    for folder in (unused, kept, killed):
        os.utime(folder, (0, 0))
    assert fetch_once(used) == str(kept), "used again"
    fetch_once(new)
    assert (kept / "config.json").exists()
    assert not unused.exists()
    assert not killed.exists()
    assert (Path(fetch_once(old)) / "config.json").read_text() == "{}"
