"""Train a stage with Ray Train: start workers, receive their reports, and decide when to stop.

Ray's controller loads this module too, so that transformers and DeepSpeed, which take seconds to
load, are imported only in the functions that train.
"""

import logging
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypedDict

import pyarrow.fs as pafs
import ray
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, ScalingConfig, UserCallback
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.queue import Empty, Queue

from llavamed.errors import LlavaMedError, TrainingError
from llavamed.parallel.failures import explain_failure, find_our_error
from llavamed.parallel.logs import log_record, queue_beside_driver, send_logs
from llavamed.run.resources import log_what_is_missing
from llavamed.run.worker_messages import Died, Failed, Message, Started, Steps
from llavamed.storage.location import Location
from llavamed.train.job import StageJob, Workers
from llavamed.train.metrics import StepRecord
from llavamed.train.prometheus import WorkerMetrics

logger = logging.getLogger(__name__)


def fit(
    job: StageJob,
    folder: Location,
    on_started: Callable[[Workers], None],
    on_records: Callable[[list[StepRecord]], None],
) -> bool:
    """Train a stage on its workers until its export is in storage, or a machine is taken away.

    Args:
        folder: Folder for Ray's own files.
        on_started: Called, in a thread of this process, when workers run, also after a restart.
        on_records: Called, in a thread of this process, with the records that rank 0 reports.

    Returns:
        Whether the export is there; if not, all steps are in a checkpoint.

    Raises:
        TrainingError: Workers died more often than `max_failures`.
        LlavaMedError: An error of ours in a worker.
    """
    if job.config.scaling.launcher == "local":
        return _train_here(job, on_started, on_records)
    queue = queue_beside_driver()
    listener = _Listener(queue, on_started, on_records, job.config.max_failures)
    trainer = _trainer(job, folder, queue)
    try:
        # The listener empties its queue at the end, so the workers must have stopped by then.
        with listener, trainer, log_what_is_missing(job.config.scaling, listener.has_heard):
            return bool(trainer.fit().return_value)
    except (TrainingFailedError, RayError) as error:
        raise listener.fatal or _explain(job, error) from error
    finally:
        queue.shutdown(force=True)


def _explain(job: StageJob, error: Exception) -> LlavaMedError:
    """Return the error of ours that ended the stage, or else why its workers died too often."""
    ours = find_our_error(error)
    if ours is not None:
        return ours
    failures, reason = job.config.max_failures, explain_failure(error, _memory_hint(job))
    return TrainingError(
        f"max_failures={failures}: workers of stage {job.stage.name} failed {failures + 1} times, "
        f"the last time because {reason}; start the same command again to go on from the last "
        "checkpoint"
    )


def _memory_hint(job: StageJob) -> str:
    """Return what to do about workers that run out of memory."""
    sizes = "max_tokens" if job.stage.packing else "micro_batch_size"
    return (
        f"place fewer of scaling.num_workers on a machine, or set stages.{job.stage.name}.{sizes} "
        "lower under another name"
    )


class _Trainer(TorchTrainer):
    """Ray Train's trainer, as a context that ends its workers at once when Ctrl-C leaves it.

    Ray's own handler of Ctrl-C would also end this process, with the exit code of a success.
    """

    _controller: Any = None

    def __enter__(self) -> "_Trainer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        if interrupted and self._controller is not None:
            ray.kill(self._controller)  # and with it, its workers

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller


def _trainer(job: StageJob, folder: Location, queue: Queue) -> _Trainer:
    """Return Ray Train's trainer of a stage, whose workers put their messages into the queue."""
    scaling = job.config.scaling
    filesystem = None if folder.is_local else pafs.PyFileSystem(pafs.FSSpecHandler(folder.fs))
    return _Trainer(
        _train_worker,
        train_loop_config=dict(_WorkerSettings(job=job, queue=queue)),
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=scaling.num_workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker=scaling.resources_per_worker,
            accelerator_type=scaling.accelerator_type,
        ),
        run_config=RayRunConfig(
            # Ray would restore the state of a run of the same name; ours is in our checkpoints.
            name=f"{job.stage.name}-{uuid.uuid4().hex[:8]}",
            storage_path=folder.path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=job.config.max_failures),
            callbacks=[_OnErrors(queue, _memory_hint(job))],
        ),
    )


def _train_here(
    job: StageJob,
    on_started: Callable[[Workers], None],
    on_records: Callable[[list[StepRecord]], None],
) -> bool:
    """Train the stage in this process."""
    from llavamed.train.context import local_context
    from llavamed.train.worker import train_stage

    with local_context(on_records) as context:
        on_started(context.workers())
        return train_stage(job, context)


class _WorkerSettings(TypedDict):
    """What Ray Train hands to each worker."""

    job: StageJob
    queue: Queue


def _train_worker(settings: _WorkerSettings) -> bool:
    """Train the stage on one worker; Ray Train calls it on each."""
    from llavamed.train.context import ray_context
    from llavamed.train.worker import train_stage

    job, queue = settings["job"], settings["queue"]
    context = ray_context(lambda records: queue.put(Steps(records)))
    queue.put(Started(context.rank, context.workers()))
    metrics = WorkerMetrics(job.config.name, job.stage.name, context.rank)
    with send_logs(queue):
        return train_stage(job, replace(context, observe=metrics.observe))


class _OnErrors(UserCallback):
    """Ends the fit at an error of ours, which every new worker would raise again.

    Any other error is reported to the driver, because Ray starts all workers again without a word.
    """

    def __init__(self, queue: Queue, memory_hint: str) -> None:
        self._queue, self._memory_hint = queue, memory_hint

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the error of ours that ended a worker, if any; Ray's controller calls this."""
        for error in worker_exceptions.values():
            ours = find_our_error(error)
            if ours is not None:
                self._queue.put(Failed(ours))
                raise ours
        first = next(iter(worker_exceptions.values()))
        self._queue.put(Died(explain_failure(first, self._memory_hint)))


class _Listener:
    """Passes on what workers put into the queue, in a thread that runs within its context."""

    def __init__(
        self,
        queue: Queue,
        on_started: Callable[[Workers], None],
        on_records: Callable[[list[StepRecord]], None],
        max_failures: int,
    ) -> None:
        self._queue = queue
        self._on_started, self._on_records = on_started, on_records
        self._max_failures, self._failures = max_failures, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="listener", daemon=True)
        self.fatal: LlavaMedError | None = None
        self.has_heard = threading.Event()

    def __enter__(self) -> "_Listener":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _listen(self) -> None:
        while True:
            try:
                message: Message = self._queue.get(timeout=0.5)
            except Empty:
                if self._stop.is_set():
                    return
            except RayActorError:  # the queue is gone with the node or the process that ends here
                if self._stop.wait(0.5):
                    return
            else:
                self._take(message)

    def _take(self, message: Message) -> None:
        self.has_heard.set()
        match message:
            case Started(rank, workers):
                logger.debug("worker %d runs", rank)
                if rank == 0:
                    self._on_started(workers)
            case Steps(records):
                self._on_records(records)
            case Failed(error):
                self.fatal = error
            case Died(reason):
                self._failures += 1
                if self._failures <= self._max_failures:  # otherwise the error of the stage says it
                    logger.warning(
                        "%s; the workers start again, from the last checkpoint (failure %d, "
                        "max_failures=%d)",
                        reason,
                        self._failures,
                        self._max_failures,
                    )
            case logging.LogRecord():
                log_record(message)
