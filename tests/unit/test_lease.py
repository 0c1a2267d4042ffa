"""One attempt at a time: the living are not disturbed, the dead do not stand in the way."""

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llavamed import lease
from llavamed.errors import TrainingError
from llavamed.lease import LEASE, hold
from llavamed.storage import Location, locate

spawn = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 1.0)
    monkeypatch.setattr(lease, "_SETTLE_SECONDS", 0.05)


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "local":
        return locate(str(tmp_path / "run"))
    s3_uri = request.getfixturevalue("s3_uri")
    return locate(f"{s3_uri}/lease/{tmp_path.name}")


def hold_until_killed(place: str, holds) -> None:
    lease.BEAT_SECONDS = 0.1
    with hold(locate(place)):
        holds.set()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[multiprocessing.Process]:
    """Another process that holds the folder `run`."""
    holds = spawn.Event()
    process = spawn.Process(target=hold_until_killed, args=(str(tmp_path / "run"), holds))
    process.start()
    assert holds.wait(30)
    yield process
    process.kill()
    process.join()


def look_away(folder: Location, **changes: object) -> None:
    """Make the lease that of another machine."""
    (folder / LEASE).write_json((folder / LEASE).read_json() | changes)


def test_a_lease_given_back_is_had_at_once(folder: Location) -> None:
    for attempt in (1, 2, 3):
        with hold(folder) as held:
            assert held.attempt == attempt
            held.check()


def test_a_living_holder_is_not_disturbed(folder: Location) -> None:
    with hold(folder) as first:
        message = (
            rf"is held by process {os.getpid()} on .*, attempt 1 since 20.*, which is alive; wait "
            "for its end or stop it, or use another folder; .* --take-over"
        )
        with pytest.raises(TrainingError, match=message), hold(folder):
            pytest.fail("two hold it")
        first.check()


def test_another_living_process_is_seen(holder: multiprocessing.Process, tmp_path: Path) -> None:
    place = locate(str(tmp_path / "run"))
    with pytest.raises(TrainingError, match=f"held by process {holder.pid} on"), hold(place):
        pytest.fail("two hold it")


def test_a_killed_process_of_this_machine_is_not_waited_for(
    holder: multiprocessing.Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder.kill()
    holder.join()
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 1e9)
    with hold(locate(str(tmp_path / "run"))) as held:
        assert held.attempt == 2


def test_a_silent_holder_elsewhere_is_gone_after_a_while(folder: Location) -> None:
    with hold(folder):
        pass
    look_away(folder, host="elsewhere", holder="process 7 on elsewhere", released=False)
    said: list[str] = []
    with hold(folder, say=said.append) as held:
        assert held.attempt == 2
    assert said == [
        f"{folder}: waiting to see whether process 7 on elsewhere, which held it, still lives"
    ]


def test_who_is_taken_over_finds_out_and_stays_quiet(folder: Location) -> None:
    with hold(folder) as first, hold(folder, take_over=True) as second:
        message = r"attempt=1: .* was taken over by process \d+ on .*, attempt 2; this attempt"
        with pytest.raises(TrainingError, match=message):
            first.check()
        time.sleep(0.4)  # beats of both are due
        second.check()
    assert (folder / LEASE).read_json()["attempt"] == 2


def test_of_many_that_come_together_one_holds(folder: Location) -> None:
    start, outcomes = threading.Barrier(4), []

    def attempt() -> None:
        start.wait()
        try:
            with hold(folder):
                outcomes.append("held")
                time.sleep(1.5)
        except TrainingError:
            outcomes.append("refused")

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused", "refused", "refused"]
