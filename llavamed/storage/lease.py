"""One writer at a time: a folder's lease, held by one attempt and seen by all others.

`lease.json` names its holder, who writes a new beat into it every few seconds. Whoever comes later
watches it: a beat that moves is a holder alive, and the later one is refused; one that stands still
is a holder that was killed, and its place is taken. No clock is compared with another machine's.
A holder looks again before it publishes anything, so one that was taken over stops by itself.
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
from typing import Any

from llavamed.errors import LeaseError, StorageError
from llavamed.storage.location import Location

LEASE = "lease.json"
BEAT_SECONDS = 5.0
EXPIRY_SECONDS = 30.0
"""A holder whose beat is seen to stand still for so long is gone."""
PATIENCE_SECONDS = 600.0
"""A storage that cannot be read for so long, while a holder is watched, ends the watch."""

logger = logging.getLogger(__name__)
_held_here: set[str] = set()
"""Tokens of the leases that this process holds."""

_SETTLE_SECONDS = 0.3
"""Between writing a lease and reading it back: of two that come together, the last writer wins."""


@dataclass(frozen=True)
class Lease:
    """The right of one attempt to write into a folder."""

    folder: Location
    attempt: int
    """Counts all attempts on the folder, from 1."""
    token: str
    since: str

    def without_retries(self) -> "Lease":
        """The same, of which a look or a beat that fails is not tried again."""
        return replace(self, folder=self.folder.without_retries())

    def check(self) -> None:
        """Make sure that no later attempt has taken over.

        Raises:
            LeaseError: One has; this one must not write any more.
            StorageError: The lease cannot be read.
        """
        found = _read(self.folder)
        if found is None or found["token"] != self.token:
            by = f"{found['holder']}, attempt {found['attempt']}" if found else "somebody"
            raise LeaseError(
                f"attempt={self.attempt}: {self.folder} was taken over by {by}; this attempt stops "
                "here, and what it has not saved is left to the other"
            )


@contextmanager
def hold_lease(
    folder: Location,
    *,
    hint: str,
    take_over: bool = False,
) -> Iterator[Lease]:
    """Hold the lease of a folder, beating in a thread until the end.

    Args:
        folder: Whose lease.
        hint: What one can do who is refused, beside ending the holder; for the error.
        take_over: Do not ask whether its holder is alive.

    Raises:
        LeaseError: Another attempt holds it and is alive.
        StorageError: The folder cannot be written, or not be read for long enough.
    """
    lease = _acquire(folder, hint, take_over)
    ended = threading.Event()
    own = lease.without_retries()  # a beat must not come late, when another may have taken over
    beating = threading.Thread(target=_beat, args=(own, ended), name="lease", daemon=True)
    beating.start()
    _held_here.add(lease.token)
    try:
        yield lease
    finally:
        ended.set()
        beating.join()
        _held_here.discard(lease.token)
        with suppress(StorageError, LeaseError):
            own.check()
            _write(own, beat=0, released=True)


def _acquire(folder: Location, hint: str, take_over: bool) -> Lease:
    before = _read(folder)
    if before is not None and not (take_over or before["released"] or _died_here(before)):
        logger.info(
            "%s: waiting to see whether %s, which held it, still lives", folder, before["holder"]
        )
        _wait_for_silence(folder, before, hint)
    attempt = before["attempt"] + 1 if before else 1
    now = datetime.now(UTC).isoformat(timespec="seconds")
    lease = Lease(folder, attempt, uuid.uuid4().hex, now)
    while True:
        _write(lease, beat=0)
        time.sleep(_SETTLE_SECONDS)
        found = _read(folder)
        if found is None or found["token"] == lease.token:
            return lease
        # A beat that was on its way when we wrote: its holder lives, and is to be taken over.
        is_late = before is not None and found["token"] == before["token"]
        if not (take_over and is_late):
            raise _refusal(folder, found, hint)


def _wait_for_silence(folder: Location, found: dict[str, Any], hint: str) -> None:
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
            now = _read(watched)
        except StorageError:
            still_since = asked = time.monotonic()
            if still_since - started > PATIENCE_SECONDS:
                raise
            continue
        if now is None or now["released"]:
            return
        if (now["token"], now["beat"]) != (found["token"], found["beat"]):
            raise _refusal(folder, now, hint)


def _refusal(folder: Location, found: dict[str, Any], hint: str) -> LeaseError:
    return LeaseError(
        f"{folder}: is held by {found['holder']}, attempt {found['attempt']} since "
        f"{found['since']}, which is alive; wait for its end or stop it, or {hint}"
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


def _read(folder: Location) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = (folder / LEASE).read_json()
    except FileNotFoundError:
        return None
    return found


def _write(lease: Lease, *, beat: int, released: bool = False) -> None:
    (lease.folder / LEASE).write_json(
        {
            "attempt": lease.attempt,
            "token": lease.token,
            "holder": f"process {os.getpid()} on {socket.gethostname()}",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": lease.since,
            "beat": beat,
            "released": released,
        }
    )


def _died_here(found: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    if found["host"] != socket.gethostname():
        return False
    if found["pid"] == os.getpid():
        # A container started again gives its processes the same numbers.
        return found["token"] not in _held_here
    try:
        os.kill(found["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
