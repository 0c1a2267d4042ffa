"""Keep the record of a run in progress, and show it to the user."""

import logging
import threading
import time
from datetime import UTC, datetime
from typing import Any, Literal

from llavamed.config.run import RunConfig
from llavamed.errors import LeaseError, LlavaMedError, StorageError
from llavamed.run.curriculum import StagePlan
from llavamed.run.forecast import flops_left, seconds_to_end
from llavamed.run.progress import ProgressDisplay, Rate
from llavamed.storage.lease import Lease
from llavamed.storage.manifest import ExportManifest, write
from llavamed.storage.run_progress import RunProgress, Spending, StageProgress, find_progress
from llavamed.train.job import Workers
from llavamed.train.metrics import StepRecord

WRITE_SECONDS = 5.0
"""Seconds between two writes of the file."""

logger = logging.getLogger(__name__)


class RunRecord:
    """Keeps `progress.json` of a run while it is entered, and counts the GPU seconds of stages.

    A storage that does not answer does not stop the run: the file is written again seconds later.
    """

    def __init__(
        self, config: RunConfig, plans: list[StagePlan], lease: Lease, display: ProgressDisplay
    ) -> None:
        self._prices = config.gpu_prices
        self._scaling = config.scaling
        self._lease = lease.without_retries()
        self._display = display
        before = find_progress(lease.folder)
        known = {stage.name: _at_rest(stage) for stage in before.stages} if before else {}
        names = [plan.stage.name for plan in plans]
        self._stages = {name: known.get(name, StageProgress(name=name)) for name in names}
        self._now = RunProgress(
            name=config.name,
            attempt=lease.attempt,
            started_at=lease.since,
            updated_at=lease.since,
            currency=config.gpu_prices.currency,
            prices_date=config.gpu_prices.date,
            stages=(),
        )
        self._rate = Rate()
        self._flops_per_second: float | None = None
        self._charged = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._writer = threading.Thread(target=self._keep_writing, name="record", daemon=True)
        self._is_written = True

    def __enter__(self) -> "RunRecord":
        self.write()
        self._writer.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._ended.set()
        self._writer.join()
        if isinstance(error, LeaseError):
            return  # by now the file belongs to another attempt
        state: Literal["finished", "failed", "interrupted"] = "finished"
        reason = ""
        if error is not None:
            state = "failed" if isinstance(error, Exception) else "interrupted"
            ours = isinstance(error, LlavaMedError)
            reason = str(error) if ours else type(error).__name__
        self._change(state=state, reason=reason, seconds_left=None)
        self._release_workers()
        self.write()

    def prepared(self, dataset: str, done: int, total: int) -> None:
        """Note how many samples of a dataset are prepared."""
        self._display.prepared(dataset, done, total)
        self._change(task="prepare", step=done, steps=total)
        self._rate.forget()

    def planned(self, stage: str, flops: float | None) -> None:
        """Note how many floating point operations the training of a stage takes, if known."""
        self._change_stage(stage, flops=flops)

    def stage_started(
        self, stage: str, num_steps: int, *, num_saved: int = 0, on_workers: bool = True
    ) -> None:
        """Note that a stage is about to train, as `ProgressDisplay.stage_started` says it."""
        self._display.stage_started(stage, num_steps, num_saved=num_saved, on_workers=on_workers)
        self._rate.forget()
        self._change_stage(stage, state="training", steps=num_steps)
        self._change(
            task="train",
            stage=stage,
            step=self._stages[stage].step,
            steps=num_steps,
            seconds_left=None,
        )

    def workers_started(self, workers: Workers) -> None:
        """Note the workers of a stage; their GPU seconds count from now on."""
        accelerator = workers.accelerator or self._scaling.accelerator_type
        if workers.num_gpus and accelerator not in self._prices.hourly:
            logger.warning(
                "gpu_prices.hourly: has no price for %s, so the cost is unknown; add one",
                accelerator or "the GPU",
            )
        self._hold_workers(workers.number, workers.num_gpus, accelerator)

    def trained(self, records: list[StepRecord]) -> None:
        """Note the last of the steps that were trained."""
        self._display.trained(records)
        stage, last = self._now.stage, records[-1]
        assert stage is not None, "a stage has started"
        step = int(last["step"])
        self._change_stage(stage, step=step)
        self._change(
            loss=last.get("loss"),
            tokens_per_second=last.get("tokens_per_second"),
            mfu=last.get("mfu"),
            **self._count(step, self._now.steps),
        )
        work = flops_left(self._stages[stage])
        if work and self._now.seconds_left:
            self._flops_per_second = work / self._now.seconds_left

    def stage_trained(self, stage: str, result: ExportManifest) -> None:
        """Note that this attempt has trained and exported a stage."""
        self._display.stage_finished(stage, result)
        self.stage_finished(stage, result)

    def stage_finished(self, stage: str, result: ExportManifest) -> None:
        """Note that nothing is left to do for a stage, whichever attempt did it."""
        self._release_workers()
        self._change_stage(stage, state="finished", step=result.steps, steps=result.steps)
        self._change(seconds_left=None)
        self.write()

    def evaluation_started(self, stage: str) -> None:
        """Note that a stage is about to be evaluated; its GPU seconds count from now on."""
        self._rate.forget()
        self._change_stage(stage, state="evaluating")
        self._change(task="evaluate", stage=stage, step=0, steps=None, seconds_left=None)
        number = self._scaling.most_workers
        accelerator = self._now.accelerator or self._scaling.accelerator_type
        self._hold_workers(number, number if self._scaling.use_gpu else 0, accelerator)

    def answered(self, done: int, total: int) -> None:
        """Note how many questions are answered."""
        self._display.answered(done, total)
        self._change(**self._count(done, total))

    def spent(self, stage: str) -> Spending:
        """Return what a stage has cost so far, in all attempts."""
        with self._lock:
            return self._stages[stage].training + self._stages[stage].evaluation

    def _count(self, done: int, total: int | None) -> dict[str, Any]:
        rate = self._rate.update(done)
        left = (total - done) / rate if rate and total is not None else None
        return {"step": done, "steps": total, "seconds_left": left}

    def _hold_workers(self, number: int, num_gpus: int, accelerator: str | None) -> None:
        with self._lock:
            self._charge()
        self._change(num_workers=number, num_gpus=num_gpus, accelerator=accelerator)

    def _release_workers(self) -> None:
        with self._lock:
            self._charge()
        self._change(num_workers=0, num_gpus=0)

    def _charge(self) -> None:
        """Add the time since the last charge to the stage whose workers hold GPUs."""
        now = time.monotonic()
        gpu_seconds = (now - self._charged) * self._now.num_gpus
        self._charged = now
        if not gpu_seconds or self._now.stage is None:
            return
        stage = self._stages[self._now.stage]
        new = Spending(
            gpu_seconds=gpu_seconds, cost=self._prices.cost(self._now.accelerator, gpu_seconds)
        )
        kind = "evaluation" if self._now.task == "evaluate" else "training"
        self._stages[stage.name] = stage.replace(**{kind: getattr(stage, kind) + new})

    def _change(self, **changes: Any) -> None:
        with self._lock:
            self._now = self._now.replace(**changes)

    def _change_stage(self, stage: str, **changes: Any) -> None:
        with self._lock:
            self._stages[stage] = self._stages[stage].replace(**changes)

    def _keep_writing(self) -> None:
        while not self._ended.wait(WRITE_SECONDS):
            self.write()

    def write(self) -> None:
        """Write the file now."""
        with self._lock:
            self._charge()
            stages = tuple(self._stages.values())
            spent = sum((each.training + each.evaluation for each in stages), Spending())
            now = self._now.replace(
                updated_at=datetime.now(UTC).isoformat(timespec="seconds"),
                stages=stages,
                spent=spent,
            )
            now = self._now = now.replace(**self._estimate(now))
        try:
            self._lease.check()
            write(self._lease.folder, now)
            self._is_written = True
        except LeaseError:
            return  # whatever publishes next finds out
        except StorageError as error:
            if self._is_written:
                logger.warning("%s is not written, and is tried again: %s", now.FILE, error)
            self._is_written = False

    def _estimate(self, now: RunProgress) -> dict[str, float | None]:
        left, cost = seconds_to_end(now, self._flops_per_second), None
        if left is not None:
            rest = self._prices.cost(now.accelerator, left * now.num_gpus)
            cost = (now.spent + Spending(cost=rest)).cost
        return {"run_seconds_left": left, "cost_at_end": cost}


def _at_rest(stage: StageProgress) -> StageProgress:
    """Return a stage as it was before an attempt worked on it."""
    return stage if stage.state == "finished" else stage.replace(state="waiting")
