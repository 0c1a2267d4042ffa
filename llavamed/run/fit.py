"""Ray Train's part of a stage: the trainer, what its workers report, when it gives up."""

import logging
import logging.handlers
import signal
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyarrow.fs as pafs
import ray
from ray.exceptions import RayActorError
from ray.train import FailureConfig, ScalingConfig, UserCallback
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from llavamed.errors import LlavaMedError, TrainingError
from llavamed.storage.location import Location
from llavamed.train.context import Record, ray_context
from llavamed.train.job import StageJob
from llavamed.train.metrics import WorkerMetrics
from llavamed.train.worker import train_stage


@dataclass(frozen=True)
class Steps:
    """Records of steps that were taken, from rank 0."""

    records: list[Record]


@dataclass(frozen=True)
class Failed:
    """An error of ours that ends the stage, from Ray's controller."""

    error: LlavaMedError


Message = Steps | Failed | logging.LogRecord
"""What reaches the driver while a stage is trained; a log record comes from any worker."""


def fit(
    job: StageJob,
    folder: Location,
    on_records: Callable[[list[Record]], None],
) -> bool:
    """Train a stage on its workers until its export lies in storage, or a machine is taken away.

    Args:
        job: What to train.
        folder: Where Ray keeps its own account of the run.
        on_records: Called, in a thread of this process, with the records that rank 0 reports.

    Returns:
        Whether the export is there; if not, all steps lie in a checkpoint.

    Raises:
        TrainingError: Workers died more often than `max_failures`, or the user pressed Ctrl-C.
        LlavaMedError: What one of ours raised in a worker.
    """
    before = signal.getsignal(signal.SIGINT)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Beside the driver: with any other machine it could be lost, and every retry would miss it.
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    listener = _Listener(queue, on_records)
    try:
        with listener:
            return bool(_trainer(job, folder, queue).fit().return_value)
    except SystemExit as stop:  # how Ray Train answers Ctrl-C
        raise TrainingError(
            f"stage={job.stage.name}: interrupted; start the same command again to go on from the "
            "last checkpoint"
        ) from stop
    except TrainingFailedError as error:
        failures = job.config.max_failures
        if listener.fatal is not None:
            raise listener.fatal from error
        last = str(error).strip().splitlines()[-1]
        raise TrainingError(
            f"max_failures={failures}: workers of stage {job.stage.name} failed {failures + 1} "
            f"times, the last time with {last!r}; start the same command again to go on from the "
            "last checkpoint"
        ) from error
    finally:
        signal.signal(signal.SIGINT, before)  # Ray Train leaves its own behind
        queue.shutdown(force=True)


def _trainer(job: StageJob, folder: Location, queue: Queue) -> TorchTrainer:
    scaling = job.config.scaling
    filesystem = None if folder.is_local else pafs.PyFileSystem(pafs.FSSpecHandler(folder.fs))
    return TorchTrainer(
        _train_worker,
        train_loop_config={"job": job, "queue": queue},
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=scaling.num_workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker=scaling.resources_per_worker,
            accelerator_type=scaling.accelerator_type,
        ),
        run_config=RayRunConfig(
            # Ray would restore the state of a run of the same name; ours lies in our checkpoints.
            name=f"{job.stage.name}-{uuid.uuid4().hex[:8]}",
            storage_path=folder.path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=job.config.max_failures),
            callbacks=[_StopOnOurErrors(queue)],
        ),
    )


def _train_worker(settings: dict[str, Any]) -> bool:
    """Train the stage on one worker; Ray Train calls it on each."""
    queue: Queue = settings["queue"]
    job: StageJob = settings["job"]
    _send_logs(queue)
    context = ray_context(lambda records: queue.put(Steps(records)))
    metrics = WorkerMetrics(job.config.name, job.stage.name, context.rank)
    return train_stage(job, replace(context, observe=metrics.observe))


def _send_logs(queue: Queue) -> None:
    """Send what this process warns of to the driver, which shows it."""
    ours = logging.getLogger("llavamed")
    handler = logging.handlers.QueueHandler(queue)
    handler.setLevel(logging.WARNING)
    ours.addHandler(handler)


class _StopOnOurErrors(UserCallback):
    """Ends the fit at an error of ours: it would come again, however often a worker is replaced."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray's controller, by keyword, when workers failed."""
        for error in worker_exceptions.values():
            cause = getattr(error, "_base_exc", error)
            if isinstance(cause, LlavaMedError):
                self._queue.put(Failed(cause))
                raise cause


class _Listener:
    """Passes on what workers put into the queue, in a thread, for as long as it is entered."""

    def __init__(self, queue: Queue, on_records: Callable[[list[Record]], None]) -> None:
        self._queue, self._on_records = queue, on_records
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="listener", daemon=True)
        self.fatal: LlavaMedError | None = None

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
        match message:
            case Steps(records):
                self._on_records(records)
            case Failed(error):
                self.fatal = error
            case logging.LogRecord():
                logging.getLogger(message.name).handle(message)
