"""Save checkpoints while training continues.

Training only waits for a copy of the state to host memory. A thread writes the copy to scratch,
hashes and uploads it. Once the files of every rank are uploaded, rank 0 writes the manifest, which
completes the checkpoint, and deletes the checkpoints that are not kept. There is at most one save
at a time: the next save and the end of the stage wait for it.
"""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from llavamed.errors import CheckpointError, DamagedCheckpointError, StorageError
from llavamed.storage.location import MANIFEST, Location, locate
from llavamed.storage.manifest import CheckpointManifest, FileFacts, write
from llavamed.storage.scratch import scratch_folder
from llavamed.train.checkpoint.files import publish
from llavamed.train.checkpoint.listing import read_checkpoint
from llavamed.train.checkpoint.random_state import RANDOM, random_state
from llavamed.train.checkpoint.retention import Saved, names_to_keep
from llavamed.train.collectives import together
from llavamed.train.engine import TrainingEngine
from llavamed.train.history import write_history
from llavamed.train.job import StageJob
from llavamed.train.metrics import StepRecord

UPLOAD_TIMEOUT = timedelta(hours=2)
"""The longest time a rank waits for the uploads of others; a dead rank is noticed at once."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Saver:
    """Saves the checkpoints of a stage; every rank has one and makes the same calls.

    The error of a save is raised on all ranks by the call that waits for it. Leaving the context of
    the saver waits too; if it is left by another error, the error of the save only becomes a
    warning.
    """

    def __init__(
        self, job: StageJob, engine: TrainingEngine, *, num_saved_steps: int, started: float
    ) -> None:
        """Create the saver; every rank must do so.

        Args:
            num_saved_steps: The steps of the checkpoint that the stage was resumed from, or 0.
            started: When the stage began, by `time.monotonic`, as if it had never stopped.
        """
        self._job, self._engine = job, engine
        self._folder = locate(job.checkpoints)
        self._num_saved_steps, self._started = num_saved_steps, started
        self._saved_at = time.monotonic()
        # The thread has its own group, so that its collectives do not mix with those of training.
        self._group = dist.new_group(backend="gloo", timeout=UPLOAD_TIMEOUT)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self._saving: Future[None] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self.wait()
            elif self._saving is not None:
                failed = self._saving.exception()
                if failed is not None and dist.get_rank() == 0:
                    logger.warning("%s", failed)
        finally:
            self._thread.shutdown()

    @property
    def age_seconds(self) -> float:
        """Seconds of training that are lost if the stage ends now, as no checkpoint holds them."""
        return time.monotonic() - self._saved_at

    def save(self, history: list[StepRecord]) -> None:
        """Save the state after the steps of `history`; return once it is copied.

        Raises:
            CheckpointError: The previous save failed because the storage cannot be written. The
                message names the checkpoint to continue from.
            LeaseError: Another attempt has taken over, and the previous save was not completed.
        """
        seconds = time.monotonic() - self._started
        self.wait()
        copied_at = time.monotonic()
        files = self._engine.snapshot()
        files[RANDOM.format(dist.get_rank())] = random_state()
        recent = history[-self._job.config.checkpoint.every_steps :]
        manifest = CheckpointManifest(
            stage=self._job.stage.name,
            fingerprint=self._job.fingerprint,
            settings=self._job.settings,
            step=len(history),
            seconds=seconds,
            loss=float(np.mean([record["loss"] for record in recent])),
            layout=self._engine.layout,
            files={},
        )
        self._saving = self._thread.submit(self._publish, files, list(history), manifest, copied_at)

    def wait(self) -> None:
        """Wait until the last save is complete.

        Raises:
            CheckpointError: The save failed.
            LeaseError: Another attempt has taken over.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _publish(
        self,
        files: dict[str, Any],
        history: list[StepRecord],
        manifest: CheckpointManifest,
        copied_at: float,
    ) -> None:
        """Turn the copy in memory into a complete checkpoint; this runs in the thread."""
        place, is_first = self._folder / f"step-{len(history):06d}", dist.get_rank() == 0
        with self._named(f"{place}: cannot be saved"):
            self._together(lambda: self._clear(place), is_first)
            uploaded = self._together(lambda: _upload(files, history if is_first else None, place))
            entries = {name: facts for part in uploaded for name, facts in part.items()}
            complete = manifest.replace(files=entries)
            self._together(lambda: self._complete(place, complete), is_first)
        self._num_saved_steps = len(history)
        self._saved_at = copied_at
        with self._named(f"{self._folder}: checkpoints not to be kept cannot be deleted"):
            self._together(lambda: self._collect(place.name), is_first)

    def _together(self, action: Callable[[], T], is_mine: bool = True) -> list[T]:
        return together(action, is_mine, group=self._group)

    def _clear(self, place: Location) -> None:
        """Delete a damaged or partial checkpoint, saved by any number of workers, from its
        place."""
        self._job.check_lease()
        place.remove()

    def _complete(self, place: Location, manifest: CheckpointManifest) -> None:
        self._job.check_lease()
        write(place, manifest)

    def _collect(self, newest: str) -> None:
        """Delete all checkpoints that are not kept, including partial and damaged ones.

        A checkpoint later than the newest is damaged, because it was skipped.
        """
        saved, names = [], self._folder.children()
        for name in names:
            try:
                manifest = read_checkpoint(self._folder / name)
            except DamagedCheckpointError:
                continue
            if name <= newest:
                saved.append(Saved(name, manifest.seconds, manifest.loss))
        for name in set(names) - names_to_keep(saved, self._job.config.checkpoint):
            # Delete the manifest first, so that a half-deleted checkpoint is not complete.
            (self._folder / name / MANIFEST).remove()
            (self._folder / name).remove()

    @contextmanager
    def _named(self, failure: str) -> Iterator[None]:
        """Raise CheckpointError, which says what failed and where to continue, if storage fails."""
        try:
            yield
        except StorageError as error:
            steps = self._num_saved_steps
            last_good = f"the last complete checkpoint is step-{steps:06d}"
            raise CheckpointError(
                f"{failure}: {error}; training stops here, "
                f"{last_good if steps else 'none was saved before'}; fix this and start the same "
                "command again to go on from there"
            ) from error


def _upload(
    files: dict[str, Any], history: list[StepRecord] | None, place: Location
) -> dict[str, FileFacts]:
    """Write a rank's files to scratch and upload them. Raises: StorageError.

    Returns:
        Their sizes and hashes, as `publish` returns them.
    """
    with scratch_folder() as scratch:
        for path, state in files.items():
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, scratch / path)
        if history is not None:
            write_history(locate(str(scratch)), history)
        return publish(scratch, place)
