"""One attempt at a time: the living are not disturbed, the dead do not stand in the way."""

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from llavamed.data.prepared.dataset import hold_datasets
from llavamed.errors import LeaseError, StorageError
from llavamed.storage import lease
from llavamed.storage.lease import LEASE, Lease, newest_lease
from llavamed.storage.location import Location, locate
from llavamed.storage.manifest import write
from tests.support.faulty_s3 import FOR_EVER, FaultyS3
from tests.support.log_messages import on_log

spawn = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats come fast; but on a busy machine they come late, so silence is long unless wanted."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 120.0)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.05)


hold_lease = partial(lease.hold_lease, hint="wait")


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "local":
        return locate(str(tmp_path / "run"))
    s3_uri = request.getfixturevalue("s3_uri")
    return locate(f"{s3_uri}/lease/{tmp_path.name}")


def hold_until_killed(place: str, holds) -> None:
    lease.BEAT_SECONDS = 0.1
    with hold_lease(locate(place)):
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
    found = newest_lease(folder)
    assert found is not None
    write(folder / LEASE, found.replace(**changes), name=f"{found.attempt:06d}.json")


@pytest.fixture
def in_s3(s3_uri: str, faulty: FaultyS3, tmp_path: Path) -> Location:
    """A folder in a storage that may fail."""
    return locate(f"{s3_uri}/away/{tmp_path.name}")


def test_a_lease_given_back_is_had_at_once(folder: Location) -> None:
    for attempt in (1, 2, 3):
        with hold_lease(folder) as held:
            assert held.attempt == attempt
            held.check()


def test_a_living_holder_is_not_disturbed(folder: Location) -> None:
    with hold_lease(folder) as first:
        message = (
            rf"is held by process {os.getpid()} on .*, attempt 1 since 20.*, which is alive; wait "
            "for its end or stop it, or "
        )
        with pytest.raises(LeaseError, match=message + "wait$"), hold_lease(folder):
            pytest.fail("two hold it")
        message += "set data.directory to another folder$"
        with pytest.raises(LeaseError, match=message), hold_datasets(folder):
            pytest.fail("two hold it")
        first.check()


def test_another_living_process_is_seen(holder: multiprocessing.Process, tmp_path: Path) -> None:
    place = locate(str(tmp_path / "run"))
    with pytest.raises(LeaseError, match=f"held by process {holder.pid} on"), hold_lease(place):
        pytest.fail("two hold it")


def test_a_killed_process_of_this_machine_is_not_waited_for(
    holder: multiprocessing.Process, tmp_path: Path
) -> None:
    holder.kill()
    holder.join()
    said: list[str] = []
    with on_log(said.append), hold_lease(locate(str(tmp_path / "run"))) as held:
        assert held.attempt == 2
    assert said == [], "it is waited for"


def test_a_silent_holder_elsewhere_is_gone_after_a_while(
    folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.3)
    with hold_lease(folder):
        pass
    look_away(folder, host="elsewhere", holder="process 7 on elsewhere", released=False)
    said: list[str] = []
    with on_log(said.append), hold_lease(folder) as held:
        assert held.attempt == 2
    assert said == [
        f"{folder}: waiting to see whether process 7 on elsewhere, which held it, still lives"
    ]


def test_a_storage_that_is_away_is_no_silence(
    in_s3: Location, faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.3)

    def mend() -> None:
        fell = time.monotonic()
        while faulty.num_faults < 20 or time.monotonic() - fell < 1.0:
            time.sleep(0.05)
        monkeypatch.setattr(lease, "EXPIRY_SECONDS", 120.0)  # however late the next beat comes
        faulty.heal()

    def fall(_: str) -> None:
        faulty.fail("500", LEASE, times=FOR_EVER)
        threading.Thread(target=mend).start()

    with hold_lease(in_s3) as first:
        with (
            on_log(fall, name=lease.__name__),
            pytest.raises(LeaseError, match="which is alive"),
            hold_lease(in_s3),
        ):
            pytest.fail("two hold it")
        first.check()


def test_a_storage_that_stays_away_ends_the_watch(
    in_s3: Location, faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 0.3)

    def fall(_: str) -> None:
        faulty.fail("500", LEASE, times=FOR_EVER)

    with hold_lease(in_s3):
        with (
            pytest.raises(StorageError, match=r"\.lease: cannot list"),
            on_log(fall, name=lease.__name__),
            hold_lease(in_s3),
        ):
            pytest.fail("two hold it")
        assert faulty.num_faults >= 3
        faulty.heal()


def beat(held: Lease) -> None:
    write(held.folder / LEASE, held.record(beat=1), name=f"{held.attempt:06d}.json")


def test_who_is_taken_over_finds_out_and_stays_quiet(folder: Location) -> None:
    with hold_lease(folder) as first:
        (beating,) = (thread for thread in threading.enumerate() if thread.name == "lease")
        with hold_lease(folder, take_over=True) as second:
            message = r"attempt=1: .* was taken over by process \d+ on .*, attempt 2; this attempt"
            with pytest.raises(LeaseError, match=message):
                first.check()
            beating.join(60)
            assert not beating.is_alive(), "it beats on"
            second.check()
    found = newest_lease(folder)
    assert found is not None
    assert (found.attempt, found.released) == (2, True)


@pytest.mark.parametrize("num_beats", [1, 3])
def test_a_beat_that_comes_late_does_not_undo_a_take_over(
    folder: Location, num_beats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late: of two attempts the older one finds out, and the newer one goes on."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 1e6)
    with hold_lease(folder) as first, hold_lease(folder, take_over=True) as second:
        for _ in range(num_beats):
            beat(first)
            second.check()
            with pytest.raises(LeaseError, match="attempt 2"):
                first.check()
    with hold_lease(folder) as third:
        assert third.attempt == 3
        assert (folder / LEASE).children() == ["000003.json"]


def test_an_attempt_whose_number_was_taken_is_refused(
    folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked before another one came, and creates its file after that one was replaced too."""
    create = Location.create

    def come_late(self: Location, data: bytes) -> bool:
        if self.path.endswith("000001.json"):
            monkeypatch.setattr(Location, "create", create)
            for _ in range(2):
                with hold_lease(folder):
                    pass
            holder.enter_context(hold_lease(folder))
        return create(self, data)

    monkeypatch.setattr(Location, "create", come_late)
    with ExitStack() as holder:
        with pytest.raises(LeaseError, match=r"attempt 3 since"), hold_lease(folder):
            pytest.fail("two hold it")
        assert newest_lease(folder).attempt == 3


def test_an_answer_that_is_lost_does_not_refuse_who_was_first(
    in_s3: Location, faulty: FaultyS3
) -> None:
    faulty.fail("lost", "000001.json", method="PUT")
    with hold_lease(in_s3) as held:
        assert held.attempt == 1
        held.check()


@pytest.mark.parametrize("is_exclusive", [True, False])
def test_of_many_that_come_together_one_holds(
    folder: Location, is_exclusive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0 if is_exclusive else 1.5)
    if not is_exclusive:
        monkeypatch.setattr(Location, "can_create_exclusively", lambda _: False)
    start, end, outcomes = threading.Barrier(4), threading.Barrier(4), []

    def attempt() -> None:
        start.wait(60)
        try:
            with hold_lease(folder):
                outcomes.append("held")
                end.wait(60)
        except LeaseError:
            outcomes.append("refused")
            end.wait(60)

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused", "refused", "refused"]


def test_the_probe_of_another_attempt_is_left_alone(folder: Location) -> None:
    probe = folder / LEASE / ".llavamed-0123abcd"
    probe.write_bytes(b"1")
    with hold_lease(folder), hold_lease(folder, take_over=True):
        assert probe.exists()
