"""Ctrl-C and SIGTERM, at any moment of a run: a sentence, the right exit code, nothing of Ray's."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import DEMO, SMALL

pytestmark = pytest.mark.ray

MOMENTS = {
    "while importing": (r"config: ", 0.0),
    "while Ray starts": (r"config: ", 12.0),
    "while preparing": (r"prepare captions", 0.0),
    "while workers start": (r"starting the workers", 3.0),
    "while training": (r"train align .*/60  loss", 0.0),
    "while evaluating": (r"train vqa: done", 2.0),
}
"""What the screen shows before, and how many seconds later the signal comes."""


class Command:
    """`llavamed train` on a terminal of its own."""

    def __init__(self, storage: Path, *overrides: str) -> None:
        ours, theirs = pty.openpty()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        overrides = (f"storage={storage}", *SMALL, "stages.align.max_steps=60", *overrides)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llavamed", "train", "--config", str(DEMO), *overrides],
            env=environment
            | {"RAY_ADDRESS": "local", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
            | {"COLUMNS": "200", "TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        os.set_blocking(ours, False)
        self._screen = ours
        self.text = ""

    def wait_for(self, pattern: str, timeout: float = 240) -> None:
        deadline = time.monotonic() + timeout
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, self.text
            assert self._read(), self.text
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def end(self) -> int:
        deadline = time.monotonic() + 120
        while self._process.poll() is None:
            self._read()
            if time.monotonic() > deadline:
                self._process.kill()
                pytest.fail(f"it goes on in spite of the signal: {self.text}")
            time.sleep(0.02)
        self._read()
        os.close(self._screen)
        return self._process.returncode

    def _read(self) -> bool:
        """Read what is there; tells whether the command may still write."""
        try:
            while data := os.read(self._screen, 1 << 16):
                self.text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode(errors="replace"))
        except BlockingIOError:
            return True
        except OSError:  # the other side is closed
            return self._process.poll() is None
        return True


@pytest.fixture
def command(moment: str, small_datasets: Path, tmp_path: Path) -> Iterator[Command]:
    overrides = () if moment == "while preparing" else (f"data.directory={small_datasets}",)
    command = Command(tmp_path, *overrides)
    yield command
    if command._process.poll() is None:
        command._process.kill()


CASES = [
    pytest.param(
        number,
        moment,
        marks=pytest.mark.skipif(
            (number, moment) != (signal.SIGINT, "while training")
            and "LLAVAMED_KILLS" not in os.environ,
            reason="each is a run of a minute; `make test-kill` takes them all",
        ),
    )
    for moment in MOMENTS
    for number in (signal.SIGINT, signal.SIGTERM)
]


@pytest.mark.parametrize(("number", "moment"), CASES)
def test_a_signal_ends_a_run_with_a_sentence(
    command: Command, moment: str, number: signal.Signals
) -> None:
    pattern, seconds = MOMENTS[moment]
    command.wait_for(pattern)
    time.sleep(seconds)
    command.send(number)
    sent = time.monotonic()
    assert command.end() == 128 + number, command.text
    print(f"{moment}: {time.monotonic() - sent:.1f} s")  # noqa: T201
    lines = [line for line in command.text.splitlines() if line.strip()]
    sentence = f"error: signal={number.name}: the command was interrupted; start the same command"
    assert sentence in lines[-1], command.text
    for text in ("Traceback", "***", "core_worker", "Aborted"):
        assert text not in command.text
