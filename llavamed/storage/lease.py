"""Let one attempt at a time write to a folder, by a lease that all attempts can see.

Every attempt creates a file with its own number below `.lease`, which only one of many can do, and
writes a new beat into it every few seconds. The highest number holds the folder. A later attempt
watches the beat: if it moves, the holder is alive and the later attempt is refused; if it stands
still, the holder was killed and the next number is taken. Clocks of different machines are never
compared. A holder looks again before it publishes anything, so a holder that was taken over stops
by itself, and a beat that it writes late changes nothing.
"""

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import ClassVar

from llavamed.errors import LeaseError, LlavaMedError, StorageError
from llavamed.storage.location import Location
from llavamed.storage.manifest import Manifest, dump, read, write

LEASE = ".lease"
"""Folder of the attempts; no run, stage or dataset can have this name."""
BEAT_SECONDS = 5.0
EXPIRY_SECONDS = 30.0
"""A holder whose beat stands still for this long is gone."""
PATIENCE_SECONDS = 600.0
"""Watching a holder ends with an error if the storage cannot be read for this long."""
SETTLE_SECONDS = 0.3
"""Wait before a lease is read back where the storage lets two attempts create the same file: then
the last writer holds it."""

logger = logging.getLogger(__name__)
_held_here: set[str] = set()
"""Tokens of the leases that this process holds."""


class LeaseRecord(Manifest):
    """One attempt's hold on a folder."""

    VERSION: ClassVar[int] = 1
    ERROR: ClassVar[type[LlavaMedError]] = LeaseError
    HINT: ClassVar[str] = "end the attempt of the other program, then delete the file"

    attempt: int
    """Number of the attempt, counted from 1."""
    token: str
    """Random name that no other attempt has."""
    holder: str
    """Process and machine, for messages."""
    host: str
    """Name of the machine."""
    pid: int
    """Id of the process there."""
    since: str
    """When the attempt began, in UTC."""
    beat: int
    """Number that grows every few seconds while the holder lives."""
    released: bool
    """Whether the holder has given the folder back."""


@dataclass(frozen=True)
class Lease:
    """The right of one attempt to write into a folder."""

    folder: Location
    attempt: int
    """Counts all attempts on the folder, from 1."""
    token: str
    since: str

    def without_retries(self) -> "Lease":
        """Return the same lease, whose reads and writes are not tried again if they fail."""
        return replace(self, folder=self.folder.without_retries())

    def check(self) -> None:
        """Check that no other attempt has taken over.

        Raises:
            LeaseError: Another one has, so this attempt must not write again.
            StorageError: The lease cannot be read.
        """
        found = newest_lease(self.folder)
        if found is None or found.token != self.token:
            by = f"{found.holder}, attempt {found.attempt}" if found else "somebody"
            raise LeaseError(
                f"attempt={self.attempt}: {self.folder} was taken over by {by}; this attempt stops "
                "here, and what it has not saved is left to the other"
            )

    def record(self, *, beat: int = 0, released: bool = False) -> LeaseRecord:
        """Return the content of the attempt's file."""
        return LeaseRecord(
            attempt=self.attempt,
            token=self.token,
            holder=f"process {os.getpid()} on {socket.gethostname()}",
            host=socket.gethostname(),
            pid=os.getpid(),
            since=self.since,
            beat=beat,
            released=released,
        )


@contextmanager
def hold_lease(folder: Location, *, hint: str, take_over: bool = False) -> Iterator[Lease]:
    """Hold the lease of a folder, beating in a thread until the end.

    Args:
        hint: For the error, what a user can do beside ending the holder.
        take_over: Take the lease even if its holder is alive.

    Raises:
        LeaseError: Another attempt holds it and is alive.
        StorageError: The folder cannot be written, or cannot be read for too long.
    """
    lease = _acquire(folder, hint, take_over)
    ended = threading.Event()
    own = lease.without_retries()  # a beat must not come late, when another may have taken over
    beating = threading.Thread(target=_beat, args=(own, ended), name="lease", daemon=True)
    beating.start()
    try:
        yield lease
    finally:
        ended.set()
        beating.join()
        _held_here.discard(lease.token)
        with suppress(StorageError, LeaseError):
            own.check()
            _write(own, released=True)


def _acquire(folder: Location, hint: str, take_over: bool) -> Lease:
    before = newest_lease(folder)
    if before is not None and not (take_over or before.released or _died_here(before)):
        logger.info(
            "%s: waiting to see whether %s, which held it, still lives", folder, before.holder
        )
        _wait_for_silence(folder, before, hint)
    attempt = before.attempt + 1 if before else 1
    now = datetime.now(UTC).isoformat(timespec="seconds")
    lease = Lease(folder, attempt, uuid.uuid4().hex, now)
    _held_here.add(lease.token)  # before others see it, and take this process for an older one
    try:
        _claim(lease, hint)
    except LlavaMedError:
        _held_here.discard(lease.token)
        raise
    return lease


def _claim(lease: Lease, hint: str) -> None:
    """Create the file of an attempt, and delete those of older ones. Raises as `hold_lease`."""
    folder, attempt = lease.folder, lease.attempt
    if (folder / LEASE).can_create_exclusively():
        (folder / LEASE / _name(attempt)).create(dump(lease.record()))
    else:
        logger.warning(
            "%s: the storage lets two attempts create the same file; waiting %.1f s to see whether "
            "another one does",
            *(folder, SETTLE_SECONDS),
        )
        _write(lease)
        time.sleep(SETTLE_SECONDS)
    found = newest_lease(folder)
    if found is not None and found.token != lease.token:
        raise _refusal(folder, found, hint)
    for name in (folder / LEASE).children():
        # Another attempt may be probing the folder with a file of another name.
        if name.endswith(".json") and name < _name(attempt):
            (folder / LEASE / name).remove()


def _wait_for_silence(folder: Location, found: LeaseRecord, hint: str) -> None:
    """Watch a lease until it is seen to stand still for long enough, or is given back.

    While the storage does not answer nothing is seen, and its holder cannot beat either.
    """
    watched = folder.without_retries()
    started = still_since = time.monotonic()
    asked = started
    while asked - still_since < EXPIRY_SECONDS:
        time.sleep(min(1.0, BEAT_SECONDS / 2))
        asked = time.monotonic()  # what an answer tells may be as old as the question
        try:
            now = newest_lease(watched)
        except StorageError:
            still_since = asked = time.monotonic()
            if still_since - started > PATIENCE_SECONDS:
                raise
            continue
        if now is None or now.released:
            return
        if (now.token, now.beat) != (found.token, found.beat):
            raise _refusal(folder, now, hint)


def _refusal(folder: Location, found: LeaseRecord, hint: str) -> LeaseError:
    return LeaseError(
        f"{folder}: is held by {found.holder}, attempt {found.attempt} since {found.since}, which "
        f"is alive; wait for its end or stop it, or {hint}"
    )


def _beat(lease: Lease, ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(BEAT_SECONDS):
        try:
            lease.check()
            beat += 1
            _write(lease, beat=beat)
        except LeaseError:
            return  # taken over; whoever publishes next finds out
        except StorageError:
            continue  # the storage is away for a moment; whoever needs it says so


def _name(attempt: int) -> str:
    return f"{attempt:06d}.json"


def newest_lease(folder: Location) -> LeaseRecord | None:
    """Return the record of the newest attempt on a folder, or None before the first one."""
    while names := [name for name in (folder / LEASE).children() if name.endswith(".json")]:
        with suppress(FileNotFoundError):  # a newer attempt has deleted it in between
            return read(LeaseRecord, folder / LEASE, name=names[-1])
    return None


def _write(lease: Lease, *, beat: int = 0, released: bool = False) -> None:
    record = lease.record(beat=beat, released=released)
    write(lease.folder / LEASE, record, name=_name(lease.attempt))


def _died_here(found: LeaseRecord) -> bool:
    """Return whether the holder was a process of this machine that has ended."""
    if found.host != socket.gethostname():
        return False
    if found.pid == os.getpid():
        # A container started again gives its processes the same numbers.
        return found.token not in _held_here
    try:
        os.kill(found.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
