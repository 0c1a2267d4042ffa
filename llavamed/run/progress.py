"""What a person sees while a run goes on: lines, so that a log can hold them."""

import time
from typing import Any

from rich.console import Console

from llavamed.train.context import Record

_SECONDS_BETWEEN_LINES = 2.0


class Progress:
    """Prints a line now and then: what, how far, how fast, how long still."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._task = ""
        self._started = 0.0
        self._first = 0
        self._printed = 0.0
        self._stage = ("", 0)

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def prepared(self, dataset: str, done: int, total: int) -> None:
        """Samples of a dataset were prepared."""
        self._line(f"prepare {dataset}", done, total, "samples", "")

    def answered(self, done: int, total: int) -> None:
        """Questions were answered."""
        self._line("evaluate", done, total, "answers", "")

    def stage_started(self, stage: str, num_steps: int) -> None:
        """A stage is about to train."""
        self._stage = (stage, num_steps)
        self.say(f"train {stage}: {num_steps} steps; starting the workers")

    def trained(self, records: list[Record]) -> None:
        """Steps were trained."""
        name, num_steps = self._stage
        last = records[-1]
        detail = f"  loss {last['loss']:.3f}  {last['tokens_per_second']:,.0f} tokens/s"
        if "mfu" in last:
            detail += f"  {last['mfu']:.1%} MFU"
        self._line(f"train {name}", int(last["step"]), num_steps, "steps", detail)

    def stage_finished(self, stage: str, result: dict[str, Any]) -> None:
        """A stage was exported."""
        counts = ", ".join(
            f"{part} {trained:,} of {trained + frozen:,}"
            for part, (trained, frozen) in result["parts"].items()
        )
        self.say(
            f"train {stage}: done, loss {result['loss_first']:.3f} -> {result['loss_last']:.3f} "
            f"in {result['seconds']:.0f} s; parameters trained: {counts}"
        )

    def _line(self, task: str, done: int, total: int, unit: str, detail: str) -> None:
        now = time.monotonic()
        if task != self._task:
            self._task, self._started, self._first = task, now, done
            self._printed = 0.0
        if now - self._printed < _SECONDS_BETWEEN_LINES and done < total:
            return
        self._printed = now
        rate = (done - self._first) / max(1e-9, now - self._started)
        timing = f"{rate:,.1f} {unit}/s  left {_clock((total - done) / rate)}" if rate else ""
        self.say(f"{task}  {done}/{total}{detail}  {timing}".rstrip())


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
