"""What a person sees of a run's progress: lines in a log, one live bar on a terminal."""

import io
import logging

import pytest
from rich.console import Console

from llavamed.run import progress as module
from llavamed.run.progress import ProgressDisplay
from tests.support.log_messages import on_log


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the progress reads; a test moves it."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_the_lines_of_a_stage(clock: list[float]) -> None:
    said: list[str] = []
    with on_log(said.append), ProgressDisplay() as progress:
        progress.stage_started("align", 4)
        progress.trained([{"step": 1, "loss": 2.0, "tokens_per_second": 1234.0, "mfu": 0.4321}])
        clock[0] += 0.5
        progress.trained([{"step": 2, "loss": 1.9, "tokens_per_second": 1234.0}])
        clock[0] += 0.5
        progress.trained([{"step": 4, "loss": 1.5, "tokens_per_second": 1234.0}])
    assert said == [
        "train align: 4 steps; starting the workers",
        "train align  1/4  loss 2.000  1,234 tokens/s  43.2% MFU",
        "train align  4/4  loss 1.500  1,234 tokens/s  3.0 steps/s  left 0:00",
    ]


def test_a_stage_without_workers_does_not_name_any() -> None:
    said: list[str] = []
    with on_log(said.append), ProgressDisplay() as progress:
        progress.stage_started("align", 4, on_workers=False)
        progress.stage_started("align", 4, num_saved=2, on_workers=False)
    assert said == [
        "train align: 4 steps; training in this process",
        "train align: 4 steps, 2 of them in a checkpoint; training in this process",
    ]


def test_the_rate_is_that_of_the_last_seconds(clock: list[float]) -> None:
    """A slow start is forgotten: 100 samples in 100 s, then 10 a second for a minute."""
    said: list[str] = []
    with on_log(said.append), ProgressDisplay() as progress:
        progress.prepared("captions", 0, 10_000)
        clock[0] += 100
        progress.prepared("captions", 100, 10_000)
        for second in range(1, 61):
            clock[0] += 1
            progress.prepared("captions", 100 + 10 * second, 10_000)
    assert said[-1] == "prepare captions  700/10000  10.0 samples/s  left 15:30"


def test_a_terminal_shows_a_bar_and_keeps_the_last_line() -> None:
    said: list[str] = []
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100)
    with on_log(said.append), ProgressDisplay(terminal) as progress:
        for done in range(5):
            progress.answered(done, 4)
        assert "evaluate" in screen.getvalue()
        progress.prepared("captions", 1, 2)
    assert len(said) == 1, "the bar takes the place of lines"
    assert said[0].startswith("evaluate  4/4  ")
    assert screen.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K"), (
        "the bar is gone, the cursor back"
    )


def test_a_quiet_run_shows_no_bar() -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True)
    with on_log(lambda _: None, level=logging.WARNING), ProgressDisplay(terminal) as progress:
        progress.answered(1, 2)
    assert screen.getvalue() == ""
