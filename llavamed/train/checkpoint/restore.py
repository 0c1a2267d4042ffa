"""Restore a stage from its newest intact checkpoint.

`checkpoints/step-000100/` below the stage's folder holds every rank's files, the records of all
steps, and the manifest, which lists the files with their hashes. `checkpoint.save` writes the
manifest last, so a folder without one is an unfinished save. A damaged checkpoint is skipped for
the one before it; all ranks decide together.

A checkpoint of another layout (another number of workers or ZeRO stage) is converted: rank 0
converts the state to a form that any layout loads, and publishes it in `universal/` below the
checkpoint while it is being loaded.
"""

import hashlib
import io
import logging
import os
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
import torch.distributed as dist

from llavamed.errors import CheckpointError, DamagedCheckpointError
from llavamed.storage.location import Location
from llavamed.storage.manifest import CheckpointManifest, FileFacts
from llavamed.storage.scratch import scratch_folder
from llavamed.train.checkpoint.files import check_hash, fetch, publish
from llavamed.train.checkpoint.listing import complete_checkpoints, read_checkpoint
from llavamed.train.checkpoint.random_state import RANDOM, restore_random_state
from llavamed.train.collectives import together
from llavamed.train.engine import TrainingEngine, to_universal
from llavamed.train.history import HISTORY, to_records
from llavamed.train.job import StageJob
from llavamed.train.metrics import StepRecord

logger = logging.getLogger(__name__)

UNIVERSAL = "universal"


@dataclass(frozen=True)
class Restored:
    """The state from which a stage continues."""

    manifest: CheckpointManifest
    history: list[StepRecord]
    """The records of all steps taken."""
    has_random_state: bool
    """Whether every rank got back its own random state."""


def restore_checkpoint(folder: Location, engine: TrainingEngine, job: StageJob) -> Restored | None:
    """Restore the newest intact checkpoint; every rank must call it, and all restore the same.

    Args:
        folder: The `checkpoints` folder of the stage.
        job: The stage, with the settings that the checkpoint must have been saved with.

    Returns:
        The state from which the stage continues, or None if it has not saved any.

    Raises:
        CheckpointError: The checkpoint belongs to another config or program, or all are damaged.
        StorageError: The storage cannot be read, so no checkpoint counts as damaged.
    """
    is_first = dist.get_rank() == 0
    (names,) = together(lambda: complete_checkpoints(folder), is_first)
    damage: list[str] = []
    for name in reversed(names):
        place = folder / name
        try:
            restored = _load(place, engine, job)
        except DamagedCheckpointError as error:
            damage.append(str(error))
            continue
        if damage and is_first:
            logger.warning("%s; resuming from the checkpoint before, %s", "; ".join(damage), place)
        return restored
    if damage:
        raise CheckpointError(
            f"{'; '.join(damage)}; no checkpoint is left to resume from; delete {folder} to train "
            "the stage from its start"
        )
    return None


def _load(place: Location, engine: TrainingEngine, job: StageJob) -> Restored:
    """Restore one checkpoint on every rank, or raise the same error on every rank."""
    rank, local_rank = dist.get_rank(), int(os.environ["LOCAL_RANK"])
    (manifest,) = together(lambda: _read_own_manifest(place, job), rank == 0)
    (history,) = together(lambda: _read_history(place, manifest.files[HISTORY]), rank == 0)
    files = {name: facts for name, facts in manifest.files.items() if name != HISTORY}
    has_random_state = manifest.layout.world_size == dist.get_world_size()
    with scratch_folder() as folder:
        if engine.loads(manifest.layout):
            together(lambda: fetch(place, files, folder, rank=rank))
            engine.load(folder)
        else:
            together(lambda: engine.check_universal(manifest.layout))
            envelope = engine.envelope(manifest.step)
            (converted,) = together(lambda: _convert(place, files, envelope), rank == 0)
            # Every rank reads a part of every file, so the ranks of a machine share one copy.
            together(lambda: fetch(place / UNIVERSAL, converted, folder), local_rank == 0)
            copies = together(lambda: folder)
            engine.load(copies[rank - local_rank], is_universal=True)
            together(lambda: None)  # keep the copy until all ranks have read it
            together((place / UNIVERSAL).remove, rank == 0)
        if has_random_state:
            name = RANDOM.format(rank)
            together(lambda: fetch(place, {name: files[name]}, folder))
            restore_random_state(folder / name)
    return Restored(manifest, history, has_random_state)


def _convert(
    place: Location, files: dict[str, FileFacts], envelope: dict[str, Any]
) -> dict[str, FileFacts]:
    """Convert the state of a checkpoint for the engine of the envelope, and publish it.

    Returns:
        Its files, as `publish` returns them.
    """
    with scratch_folder() as scratch:
        saved, universal = scratch / "saved", scratch / UNIVERSAL
        fetch(place, files, saved)
        to_universal(saved, universal, envelope)
        (place / UNIVERSAL).remove()  # left behind by an attempt that died here
        return publish(universal, place / UNIVERSAL)


def _read_history(place: Location, facts: FileFacts) -> list[StepRecord]:
    file = place / HISTORY
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{file}: is missing") from error
    check_hash(file, facts, hashlib.sha256(data).hexdigest())
    return to_records(pq.ParquetFile(io.BytesIO(data)).read())


def _read_own_manifest(place: Location, job: StageJob) -> CheckpointManifest:
    """Read the manifest of a checkpoint, which must have been saved with the settings of the job.

    Raises:
        CheckpointError: It was saved with other settings, or cannot be read.
    """
    manifest = read_checkpoint(place)
    if manifest.fingerprint != job.fingerprint:
        differing = "; ".join(manifest.settings.differences(job.settings))
        raise CheckpointError(
            f"{place}: was saved with other settings: {differing}; use the settings it was saved "
            "with, another run name, or delete it"
        )
    return manifest
