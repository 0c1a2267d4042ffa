"""Show how far a run is: by a live bar on a terminal, by a line every few seconds in a log."""

import logging
import time
from collections import deque

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from llavamed.storage.manifest import ExportManifest
from llavamed.train.metrics import StepRecord, progress_text

_SECONDS_BETWEEN_LINES = 2.0
_RATE_SECONDS = 30.0
"""The rate that is shown is the mean over this many seconds, or over all if there were fewer."""

logger = logging.getLogger(__name__)


class Rate:
    """The mean rate of the last half minute, or of all the time if that is shorter."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def forget(self) -> None:
        """Start again, for another task."""
        self._seen.clear()

    def update(self, done: int) -> float:
        """Note how much is done now, and return the rate in units per second, or 0 if unknown."""
        seen, now = self._seen, time.monotonic()
        if seen and done < seen[-1][1]:  # A worker died, and steps are taken again.
            seen.clear()
        seen.append((now, done))
        while len(seen) > 2 and now - seen[1][0] >= _RATE_SECONDS:
            seen.popleft()
        started, first = seen[0]
        return (done - first) / max(1e-9, now - started)


class ProgressDisplay:
    """Shows what a run does, how far it is, how fast, and how much time is left.

    Use it as a context manager; the bar disappears at the end.
    """

    def __init__(self, console: Console | None = None) -> None:
        """Show no bar without a console, or if the console is not a terminal."""
        self._bar: Bar | None = None
        self._row: TaskID | None = None
        if console is not None and console.is_terminal and logger.isEnabledFor(logging.INFO):
            self._bar = Bar(
                *(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}")),
                console=console,
                transient=True,
            )
        self._task = ""
        self._printed = 0.0
        self._rate = Rate()
        self._stage = ("", 0)

    def __enter__(self) -> "ProgressDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        self._hide_bar()

    def prepared(self, dataset: str, done: int, total: int) -> None:
        """Show how many samples of a dataset are prepared."""
        self._update(f"prepare {dataset}", done, total, "samples", "")

    def harvested(self, done: int, total: int) -> None:
        """Show how many parts of a corpus are harvested."""
        self._update("harvest", done, total, "parts", "")

    def answered(self, done: int, total: int) -> None:
        """Show how many questions are answered."""
        self._update("evaluate", done, total, "answers", "")

    def stage_started(
        self, stage: str, num_steps: int, *, num_saved: int = 0, on_workers: bool = True
    ) -> None:
        """Say that a stage is about to train, on workers of Ray or in this process.

        Args:
            num_saved: The steps of its newest checkpoint, from which it resumes.
            on_workers: Whether it trains on workers of Ray.
        """
        self._stage = (stage, num_steps)
        steps = f"{num_steps} steps" + (f", {num_saved} of them in a checkpoint" * bool(num_saved))
        what = "starting the workers" if on_workers else "training in this process"
        logger.info("train %s: %s; %s", stage, steps, what)

    def trained(self, records: list[StepRecord]) -> None:
        """Show the last step that was trained."""
        name, num_steps = self._stage
        last = records[-1]
        detail = f"  {progress_text(last)}"
        self._update(f"train {name}", int(last["step"]), num_steps, "steps", detail)

    def stage_finished(self, stage: str, result: ExportManifest) -> None:
        """Log the result of a stage that was exported."""
        counts = ", ".join(
            f"{part} {facts.num_trained:,} of {facts.num_trained + facts.num_frozen:,}"
            for part, facts in result.parts.items()
        )
        logger.info(
            "train %s: done, loss %.3f -> %.3f in %.0f s; parameters trained: %s",
            stage,
            result.loss_first,
            result.loss_last,
            result.seconds,
            counts,
        )

    def _update(self, task: str, done: int, total: int, unit: str, detail: str) -> None:
        now = time.monotonic()
        if task != self._task:
            self._hide_bar()
            self._task, self._printed = task, 0.0
            self._rate.forget()
        rate = self._rate.update(done)
        timing = f"{rate:,.1f} {unit}/s  left {_clock((total - done) / rate)}" if rate else ""
        text = f"{done}/{total}{detail}  {timing}".rstrip()
        if done >= total:  # the last line of a task stays
            self._hide_bar()
        elif self._bar is not None:
            self._show_bar(done, total, text)
            return
        elif now - self._printed < _SECONDS_BETWEEN_LINES:
            return
        self._printed = now
        logger.info("%s  %s", task, text)

    def _show_bar(self, done: int, total: int, text: str) -> None:
        assert self._bar is not None
        if self._row is None:
            self._row = self._bar.add_task(self._task, total=total, text=text)
            self._bar.start()
        self._bar.update(self._row, completed=done, text=text)

    def _hide_bar(self) -> None:
        if self._bar is not None and self._row is not None:
            self._bar.stop()
            self._bar.remove_task(self._row)
            self._row = None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
