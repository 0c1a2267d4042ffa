"""Restoring a stage from the newest checkpoint that is whole.

`checkpoints/step-000100/` below the stage's folder holds every rank's files, the records of all
steps, and the manifest, which lists the files with their hashes. `checkpoint.save` writes it last,
so a folder without one is a save that never finished. A checkpoint that is damaged is passed over
for the one before it; all ranks decide together.

A checkpoint of another layout, so of another number of workers or ZeRO stage, is converted: rank 0
brings the state into a form that any layout loads, and publishes it in `universal/` below the
checkpoint for as long as it is loaded.
"""

import hashlib
import io
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from llavamed.errors import CheckpointError, DamagedFileError
from llavamed.storage.fingerprint import differences
from llavamed.storage.location import MANIFEST, Location
from llavamed.storage.manifest import CheckpointManifest, FileFacts, read
from llavamed.storage.scratch import scratch_errors, scratch_folder
from llavamed.train.collectives import together
from llavamed.train.context import Record
from llavamed.train.engine import Engine, to_universal
from llavamed.train.history import HISTORY, to_records
from llavamed.train.job import StageJob

logger = logging.getLogger(__name__)

UNIVERSAL = "universal"
RANDOM = "random_of_rank_{}_.pt"
_OF_A_RANK = re.compile(r"(?:pp|of)_rank_(\d+)_")
_CHUNK_BYTES = 16 << 20
"""Part of a file that is in memory while it is copied."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that was complete and cannot be read as it was written."""


@dataclass(frozen=True)
class Restored:
    """What a stage goes on from."""

    manifest: CheckpointManifest
    history: list[Record]
    """Records of all steps that were taken."""
    has_random_state: bool
    """Whether every rank got back its own random numbers."""


def hash_files(folder: Path) -> dict[str, FileFacts]:
    """Return size and SHA-256 of every file below a folder, by relative path."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            facts = FileFacts(bytes=path.stat().st_size, sha256=digest)
            files[path.relative_to(folder).as_posix()] = facts
    return files


def publish(folder: Path, place: Location) -> dict[str, FileFacts]:
    """Copy a local folder to its place. Returns its files, as `hash_files` does.

    Raises:
        StorageError: It cannot be written.
    """
    files = hash_files(folder)
    place.upload(folder)
    return files


def complete_checkpoints(folder: Location) -> list[str]:
    """Return the names of the checkpoints that were saved to their end, oldest first."""
    return [name for name in folder.children() if (folder / name / MANIFEST).exists()]


def read_checkpoint(place: Location) -> CheckpointManifest:
    """Read the manifest of a checkpoint that this program has saved.

    Raises:
        DamagedCheckpointError: It is absent, or not as it was written.
        CheckpointError: Another version of this program has saved it.
        StorageError: It cannot be read.
    """
    try:
        return read(CheckpointManifest, place)
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{place / MANIFEST}: is missing") from error
    except DamagedFileError as error:
        raise DamagedCheckpointError(str(error)) from error


def newest_checkpoint(folder: Location) -> CheckpointManifest | None:
    """Return the manifest of the newest checkpoint that can be read, or None.

    Raises:
        CheckpointError: Another version of this program has saved it.
    """
    for name in reversed(complete_checkpoints(folder)):
        try:
            return read_checkpoint(folder / name)
        except DamagedCheckpointError:
            continue  # found again, and told, when it is loaded
    return None


def restore_checkpoint(folder: Location, engine: Engine, job: StageJob) -> Restored | None:
    """Restore the newest checkpoint that is whole; every rank must call it, and all get the same.

    Args:
        folder: The stage's `checkpoints` folder.
        engine: Whose state it becomes, in any layout.
        job: The stage, whose settings the checkpoint must have been saved with.

    Returns:
        What the stage goes on from, or None when it has saved nothing yet.

    Raises:
        CheckpointError: It belongs to another config or program, or all are damaged.
        StorageError: The storage cannot be read; nothing says that a checkpoint is damaged.
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


def seed_random_state(seed: int, *, step: int, rank: int) -> None:
    """Give a rank random numbers of its own from a step on: the same in every run."""
    words = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]))


def random_state() -> dict[str, torch.Tensor]:
    """Where this rank's random numbers stand."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _load(place: Location, engine: Engine, job: StageJob) -> Restored:
    """Restore one checkpoint on every rank. What it raises, it raises on every rank."""
    rank, local_rank = dist.get_rank(), int(os.environ["LOCAL_RANK"])
    (manifest,) = together(lambda: _read_own_manifest(place, job), rank == 0)
    (history,) = together(lambda: _read_history(place, manifest.files[HISTORY]), rank == 0)
    files = {name: facts for name, facts in manifest.files.items() if name != HISTORY}
    has_random_state = manifest.layout.world_size == dist.get_world_size()
    with scratch_folder() as folder:
        if engine.loads(manifest.layout):
            together(lambda: _fetch(place, files, folder, rank=rank))
            engine.load(folder)
        else:
            together(lambda: engine.check_universal(manifest.layout))
            envelope = engine.envelope()
            (converted,) = together(lambda: _convert(place, files, envelope), rank == 0)
            # Every rank reads a part of every file, so the ranks of a machine share one copy.
            together(lambda: _fetch(place / UNIVERSAL, converted, folder), local_rank == 0)
            copies = together(lambda: folder)
            engine.load(copies[rank - local_rank], is_universal=True)
            together(lambda: None)  # a copy stays until all have read it
            together((place / UNIVERSAL).remove, rank == 0)
        if has_random_state:
            name = RANDOM.format(rank)
            together(lambda: _fetch(place, {name: files[name]}, folder))
            _restore_random_state(folder / name)
    return Restored(manifest, history, has_random_state)


def _convert(
    place: Location, files: dict[str, FileFacts], envelope: dict[str, Any]
) -> dict[str, FileFacts]:
    """Publish a checkpoint's state as one that the engine of the envelope loads.

    Returns:
        Its files.
    """
    with scratch_folder() as scratch:
        saved, universal = scratch / "saved", scratch / UNIVERSAL
        _fetch(place, files, saved)
        to_universal(saved, universal, envelope)
        (place / UNIVERSAL).remove()  # what an attempt that died here has left
        return publish(universal, place / UNIVERSAL)


def _fetch(
    place: Location, files: dict[str, FileFacts], folder: Path, *, rank: int | None = None
) -> None:
    """Copy a checkpoint's files, all or those that a rank reads.

    Raises:
        DamagedCheckpointError: A file is missing or not as it was written.
        StorageError: A file cannot be read.
    """
    for name, facts in files.items():
        owner = _OF_A_RANK.search(name)
        if rank is not None and owner is not None and int(owner.group(1)) != rank:
            continue
        _copy(place / name, facts, folder / name)


def _copy(file: Location, facts: FileFacts, target: Path) -> None:
    """Copy a file piece by piece and compare its hash on the way."""
    digest = hashlib.sha256()
    try:
        with file.open(cache_type="none") as source, scratch_errors():
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as copy:
                while piece := source.read(_CHUNK_BYTES):
                    digest.update(piece)
                    copy.write(piece)
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{file}: is missing") from error
    _compare(file, facts, digest.hexdigest())


def _compare(file: Location, facts: FileFacts, found: str) -> None:
    if found != facts.sha256:
        raise DamagedCheckpointError(f"{file}: differs from its manifest, it is damaged")


def _read_history(place: Location, facts: FileFacts) -> list[Record]:
    file = place / HISTORY
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{file}: is missing") from error
    _compare(file, facts, hashlib.sha256(data).hexdigest())
    return to_records(pq.ParquetFile(io.BytesIO(data)).read())


def _read_own_manifest(place: Location, job: StageJob) -> CheckpointManifest:
    """Read the manifest of a checkpoint that the settings of the job have saved too."""
    manifest = read_checkpoint(place)
    if manifest.fingerprint != job.fingerprint:
        differing = "; ".join(differences(manifest.settings, job.settings))
        raise CheckpointError(
            f"{place}: was saved with other settings: {differing}; use the settings it was saved "
            "with, another run name, or delete it"
        )
    return manifest


def _restore_random_state(file: Path) -> None:
    state = torch.load(file)
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
