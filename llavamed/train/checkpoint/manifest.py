"""Checkpoints: what a stage resumes from. Exports, what others load, are `llavamed.model.export`.

`checkpoints/step-000100/` below the stage's folder: every rank's files, the records of all steps,
and the manifest, which lists them all with their hashes. `train/saver.py` writes it last, so a
folder without one is a save that never finished. A checkpoint that is damaged is passed over for
the one before it; all ranks decide together.

Another number of workers than saved it can resume: rank 0 converts the state to a form that is
shared out anew, and publishes it in `universal/` below the checkpoint for as long as it is loaded.
"""

import hashlib
import io
import json
import logging
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from llavamed.config.load import fingerprint
from llavamed.errors import CheckpointError
from llavamed.storage.location import MANIFEST, Location, locate
from llavamed.train.collectives import together
from llavamed.train.engine import Engine, to_universal
from llavamed.train.history import to_records

SCHEMA_VERSION = 3
HISTORY = "history.parquet"
UNIVERSAL = "universal"
RANDOM = "random_of_rank_{}_.pt"
_OF_A_RANK = re.compile(r"(?:pp|of)_rank_(\d+)_")

logger = logging.getLogger(__name__)
Manifest = dict[str, Any]


class Damaged(CheckpointError):
    """A checkpoint that was complete and cannot be read as it was written."""


def hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below a folder, by relative path."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.relative_to(folder).as_posix()] = {
                "bytes": path.stat().st_size,
                "sha256": digest,
            }
    return files


def publish(folder: Path, place: Location) -> dict[str, dict[str, Any]]:
    """Copy a local folder to its place. Gives its files, as `hash_files` does.

    Raises:
        StorageError: It cannot be written.
    """
    files = hash_files(folder)
    place.upload(folder)
    return files


def complete_checkpoints(folder: Location) -> list[str]:
    """Names of the checkpoints that were saved to their end, oldest first."""
    return [name for name in folder.children() if (folder / name / MANIFEST).exists()]


def write_manifest(place: Location, facts: dict[str, Any], files: dict[str, Any]) -> None:
    """Complete a checkpoint: its manifest, sealed, of what it holds and of the files of all ranks.

    Raises:
        StorageError: It cannot be written.
    """
    manifest = facts | {
        "schema_version": SCHEMA_VERSION,
        "world_size": dist.get_world_size(),
        "files": files,
    }
    (place / MANIFEST).write_json(manifest | {"checksum": fingerprint(manifest)})


def read_manifest(place: Location) -> Manifest:
    """The manifest of a checkpoint that this program has saved.

    Raises:
        Damaged: It is absent, or not as it was written.
        CheckpointError: Another version of this program has saved it.
        StorageError: It cannot be read.
    """
    file = place / MANIFEST
    try:
        manifest: Manifest = json.loads(file.read_bytes())
        version, checksum = manifest["schema_version"], manifest.pop("checksum", None)
    except (FileNotFoundError, ValueError, TypeError, KeyError) as error:
        raise Damaged(f"{file}: is no manifest, it is damaged") from error
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{place}: schema_version={version}, this program reads {SCHEMA_VERSION}; resume with "
            "the program that saved it, or delete it"
        )
    if checksum != fingerprint(manifest):
        raise Damaged(f"{file}: differs from its checksum, it is damaged")
    return manifest


def check_settings(folder: Location, stage_fingerprint: str) -> None:
    """Find out whether the checkpoint a stage would resume from was saved with these settings.

    Raises:
        CheckpointError: It was not, or another version of this program has saved it.
    """
    for name in reversed(complete_checkpoints(folder)):
        with suppress(Damaged):  # as is found again, and told, when it is loaded
            _read_own_manifest(folder / name, stage_fingerprint)
            return


def restore_checkpoint(
    folder: Location, engine: Engine, *, stage_fingerprint: str
) -> Manifest | None:
    """Restore the newest checkpoint that is whole; every rank must call it, and all get the same.

    Args:
        folder: The stage's `checkpoints` folder.
        engine: Whose state it becomes, on any number of workers.
        stage_fingerprint: What the checkpoint must have been saved with.

    Returns:
        The checkpoint's manifest, or none when the stage has saved none yet.

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
            manifest = _load(place, engine, stage_fingerprint)
        except Damaged as error:
            damage.append(str(error))
            continue
        if damage and is_first:
            logger.warning("%s; resuming from the checkpoint before, %s", "; ".join(damage), place)
        return manifest
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


def _load(place: Location, engine: Engine, stage_fingerprint: str) -> Manifest:
    """Restore one checkpoint on every rank. What it raises, it raises on every rank."""
    rank, local_rank = dist.get_rank(), int(os.environ["LOCAL_RANK"])
    (manifest,) = together(lambda: _read_own_manifest(place, stage_fingerprint), rank == 0)
    entry = manifest["files"].pop(HISTORY)
    (table,) = together(lambda: _read_history(place, entry), rank == 0)
    manifest["history"] = to_records(table)
    is_same_world = manifest["world_size"] == dist.get_world_size()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if is_same_world or not engine.is_shared_out:
            together(lambda: _fetch(place, manifest["files"], folder, rank=rank))
            engine.load(folder)
            if is_same_world:
                _restore_random_state(folder)
            return manifest
        together(engine.check_universal)
        (files,) = together(lambda: _convert(place, manifest["files"]), rank == 0)
        # Every rank reads a part of every file, so the ranks of a machine share one copy.
        together(lambda: _fetch(place / UNIVERSAL, files, folder), local_rank == 0)
        copies = together(lambda: folder)
        engine.load(copies[rank - local_rank], is_universal=True)
        together(lambda: None)  # a copy stays until all have read it
    together((place / UNIVERSAL).remove, rank == 0)
    return manifest


def _convert(place: Location, files: dict[str, Any]) -> dict[str, Any]:
    """Publish a checkpoint's state as one for any number of workers; gives its files."""
    with tempfile.TemporaryDirectory() as scratch:
        saved, universal = Path(scratch, "saved"), Path(scratch, UNIVERSAL)
        _fetch(place, files, saved)
        to_universal(saved, universal)
        (place / UNIVERSAL).remove()  # what an attempt that died here has left
        return publish(universal, place / UNIVERSAL)


def _fetch(
    place: Location, files: dict[str, Any], folder: Path, *, rank: int | None = None
) -> None:
    """Copy a checkpoint's files, all or those that a rank reads. Raises: Damaged, StorageError."""
    for name, entry in files.items():
        owner = _OF_A_RANK.search(name)
        if rank is not None and owner is not None and int(owner.group(1)) != rank:
            continue
        locate(str(folder / name)).write_bytes(_read_whole(place / name, entry))


def _read_whole(file: Location, entry: dict[str, Any]) -> bytes:
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise Damaged(f"{file}: is missing") from error
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise Damaged(f"{file}: differs from its manifest, it is damaged")
    return data


def _read_history(place: Location, entry: dict[str, Any]) -> pa.Table:
    data = _read_whole(place / HISTORY, entry)
    return pq.ParquetFile(io.BytesIO(data)).read()


def _read_own_manifest(place: Location, stage_fingerprint: str) -> Manifest:
    """The manifest of a checkpoint that these settings have saved too."""
    manifest = read_manifest(place)
    if manifest["fingerprint"] != stage_fingerprint:
        raise CheckpointError(
            f"{place}: was saved with other settings or data (fingerprint "
            f"{manifest['fingerprint']}, now {stage_fingerprint}); use the settings it was saved "
            "with, another run name, or delete it"
        )
    return manifest


def _restore_random_state(folder: Path) -> None:
    state = torch.load(folder / RANDOM.format(dist.get_rank()))
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
