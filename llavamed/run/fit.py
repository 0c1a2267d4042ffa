"""Ray Train's part of a stage: the trainer, what its workers report, when it gives up."""

import signal
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow.fs as pafs
import ray
from ray.exceptions import RayActorError
from ray.train import FailureConfig, ScalingConfig, UserCallback
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.metrics import Counter, Gauge, Histogram
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from llavamed.errors import LlavaMedError, TrainingError
from llavamed.storage.location import Location
from llavamed.train.context import Record, ray_context
from llavamed.train.job import StageJob
from llavamed.train.worker import train_stage

_OF_A_STEP = {
    "step": "Optimizer steps done",
    "loss": "Mean over the supervised tokens of the global step",
    "learning_rate": "Of the last step",
    "grad_norm": "Before clipping",
    "tokens_per_second": "Of all workers together",
    "mfu": "Model-FLOPs utilisation, where the peak of the GPU is known",
}
"""What is the same on every worker, told by rank 0; by key of a record."""
_OF_A_WORKER = {
    "data_wait_seconds": "Wait for the batches of the last step",
    "memory_bytes": "At the peak: allocated on the GPU, or of the process where there is none",
    "memory_reserved_bytes": "At the peak: taken from the GPU",
}
_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0]


def fit(
    job: StageJob,
    folder: Location,
    on_records: Callable[[list[Record]], None],
    on_warning: Callable[[str], None],
) -> bool:
    """Train a stage on its workers until its export lies in storage, or a machine is taken away.

    Args:
        job: What to train.
        folder: Where Ray keeps its own account of the run.
        on_records: Told, in a thread of this process, what the workers report.
        on_warning: Told there what they warn of.

    Returns:
        Whether the export is there; if not, all steps lie in a checkpoint.

    Raises:
        TrainingError: A worker met an error of ours, or died more often than `max_failures`, or the
            user pressed Ctrl-C.
    """
    before = signal.getsignal(signal.SIGINT)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Beside the driver: with any other machine it could be lost, and every retry would miss it.
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    listener = _Listener(queue, on_records, on_warning)
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
        last = str(error).strip().splitlines()[-1]
        raise TrainingError(
            listener.fatal
            or f"max_failures={failures}: workers of stage {job.stage.name} failed {failures + 1} "
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
    """What Ray Train runs on each worker."""
    put = settings["queue"].put
    job: StageJob = settings["job"]
    context = ray_context(put, lambda text: put(UserWarning(text)))
    metrics = _Metrics(job.config.name, job.stage.name, context.rank)
    return train_stage(job, replace(context, observe=metrics.observe))


class _Metrics:
    """Tells Ray's metrics agent of each step of this worker, for Prometheus to fetch."""

    def __init__(self, run: str, stage: str, rank: int) -> None:
        tags = {"run": run, "stage": stage, "rank": str(rank)}
        described = _OF_A_WORKER | (_OF_A_STEP if rank == 0 else {})

        def tagged(make: Any, name: str, description: str, **settings: Any) -> Any:
            keys = tuple(tags)
            metric = make(f"llavamed_{name}", description=description, tag_keys=keys, **settings)
            metric.set_default_tags(tags)
            return metric

        self._gauges = {key: tagged(Gauge, key, text) for key, text in described.items()}
        text = "Seconds of an optimizer step"
        self._seconds = tagged(Histogram, "step_seconds", text, boundaries=_SECONDS)
        text = "Tokens of samples, of all workers"
        self._tokens = tagged(Counter, "tokens", text) if rank == 0 else None

    def observe(self, record: Record) -> None:
        """A step was taken."""
        for key, gauge in self._gauges.items():
            if key in record:
                gauge.set(record[key])
        self._seconds.observe(record["step_seconds"])
        if self._tokens is not None and record["num_tokens"]:
            self._tokens.inc(record["num_tokens"])


class _StopOnOurErrors(UserCallback):
    """Ends the fit at an error of ours: it would come again, however often a worker is replaced."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray's controller, by keyword, when workers failed."""
        for error in worker_exceptions.values():
            cause = getattr(error, "_base_exc", error)
            if isinstance(cause, LlavaMedError):
                self._queue.put(str(cause))
                raise cause


class _Listener:
    """Passes on what workers put into the queue, in a thread, for as long as it is entered."""

    def __init__(
        self,
        queue: Queue,
        on_records: Callable[[list[Record]], None],
        on_warning: Callable[[str], None],
    ) -> None:
        self._queue, self._on_records, self._on_warning = queue, on_records, on_warning
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="listener", daemon=True)
        self.fatal: str | None = None

    def __enter__(self) -> "_Listener":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _listen(self) -> None:
        while True:
            try:
                told: list[Record] | UserWarning | str = self._queue.get(timeout=0.5)
            except Empty:
                if self._stop.is_set():
                    return
            except RayActorError:  # the queue is gone with the node or the process that ends here
                if self._stop.wait(0.5):
                    return
            else:
                if isinstance(told, str):
                    self.fatal = told
                elif isinstance(told, UserWarning):
                    self._on_warning(str(told))
                else:
                    self._on_records(told)
