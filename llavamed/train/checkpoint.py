"""Checkpoints: what a stage resumes from. Exports, what others load, are `llavamed.model.export`.

`checkpoints/step-000100/` below the stage's folder: every rank writes its own files, then rank 0
the manifest, which lists them all with their hashes. A folder without one is a save that never
finished. One that is damaged is passed over for the one before it; all ranks decide together.

Another number of workers than saved it can resume: rank 0 converts the state to a form that is
shared out anew, and publishes it in `universal/` below the checkpoint for as long as it is loaded.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from llavamed.config.load import fingerprint
from llavamed.errors import CheckpointError, LlavaMedError, StorageError
from llavamed.storage import MANIFEST, Location, locate
from llavamed.train.engine import Engine, to_universal

SCHEMA_VERSION = 2
UNIVERSAL = "universal"
_RANDOM = "random_of_rank_{}_.pt"
_OF_A_RANK = re.compile(r"(?:pp|of)_rank_(\d+)_")

T = TypeVar("T")
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


def complete_checkpoints(folder: Location) -> list[str]:
    """Names of the checkpoints that were saved to their end, oldest first."""
    return [name for name in folder.children() if (folder / name / MANIFEST).exists()]


def save_checkpoint(
    folder: Location, engine: Engine, *, step: int, facts: dict[str, Any], num_to_keep: int
) -> None:
    """Save the state after `step` steps; every rank must call it.

    Args:
        folder: The stage's `checkpoints` folder.
        engine: Whose state is saved.
        step: Optimizer steps done.
        facts: What the manifest holds beside the files: stage, position, history, ...
        num_to_keep: Older checkpoints are deleted once this one is complete.

    Raises:
        CheckpointError: The storage takes no more; names the checkpoint to go on from.
    """
    place, is_first = folder / f"step-{step:06d}", dist.get_rank() == 0
    try:
        _together(place.remove, is_first)  # a damaged one of this step, by any number of workers
        with tempfile.TemporaryDirectory() as scratch:
            engine.save(Path(scratch))
            _save_random_state(Path(scratch))
            parts = _together(lambda: _publish(Path(scratch), place))
        manifest = facts | {
            "schema_version": SCHEMA_VERSION,
            "step": step,
            "world_size": dist.get_world_size(),
            "files": {name: entry for part in parts for name, entry in part.items()},
        }
        sealed = manifest | {"seal": fingerprint(manifest)}
        _together(lambda: (place / MANIFEST).write_json(sealed), is_first)
        _together(lambda: _collect(folder, place.name, num_to_keep), is_first)
    except StorageError as error:
        raise CheckpointError(
            f"{place}: cannot be saved: {error}; training stops here, {_last_good(folder)}; cure "
            "that and start the same command again to go on from there"
        ) from error


def restore_checkpoint(
    folder: Location, engine: Engine, *, stage_fingerprint: str, warn: Callable[[str], None]
) -> Manifest | None:
    """Restore the newest checkpoint that is whole; every rank must call it, and all get the same.

    Args:
        folder: The stage's `checkpoints` folder.
        engine: Whose state it becomes, on any number of workers.
        stage_fingerprint: What the checkpoint must have been saved with.
        warn: Told by rank 0 which checkpoints are damaged and which one is used instead.

    Returns:
        The checkpoint's manifest, or none when the stage has saved none yet.

    Raises:
        CheckpointError: It belongs to another config or program, or all are damaged.
        StorageError: The storage cannot be read; nothing says that a checkpoint is damaged.
    """
    is_first = dist.get_rank() == 0
    (names,) = _together(lambda: complete_checkpoints(folder), is_first)
    damage: list[str] = []
    for name in reversed(names):
        place = folder / name
        try:
            manifest = _load(place, engine, stage_fingerprint)
        except Damaged as error:
            damage.append(str(error))
            continue
        if damage and is_first:
            warn(f"{'; '.join(damage)}; resuming from the checkpoint before, {place}")
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


def _load(place: Location, engine: Engine, stage_fingerprint: str) -> Manifest:
    """Restore one checkpoint on every rank. What it raises, it raises on every rank."""
    rank, local_rank = dist.get_rank(), int(os.environ["LOCAL_RANK"])
    (manifest,) = _together(lambda: _read_manifest(place, stage_fingerprint), rank == 0)
    is_same_world = manifest["world_size"] == dist.get_world_size()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if is_same_world or not engine.is_shared_out:
            _together(lambda: _fetch(place, manifest["files"], folder, rank=rank))
            engine.load(folder)
            if is_same_world:
                _restore_random_state(folder)
            return manifest
        _together(engine.check_universal)
        (files,) = _together(lambda: _convert(place, manifest["files"]), rank == 0)
        # Every rank reads a part of every file, so the ranks of a machine share one copy.
        _together(lambda: _fetch(place / UNIVERSAL, files, folder), local_rank == 0)
        copies = _together(lambda: folder)
        engine.load(copies[rank - local_rank], is_universal=True)
        _together(lambda: None)  # a copy stays until all have read it
    _together((place / UNIVERSAL).remove, rank == 0)
    return manifest


def _convert(place: Location, files: dict[str, Any]) -> dict[str, Any]:
    """Publish a checkpoint's state as one for any number of workers; gives its files."""
    with tempfile.TemporaryDirectory() as scratch:
        saved, universal = Path(scratch, "saved"), Path(scratch, UNIVERSAL)
        _fetch(place, files, saved)
        to_universal(saved, universal)
        (place / UNIVERSAL).remove()  # what an attempt that died here has left
        return _publish(universal, place / UNIVERSAL)


def _publish(folder: Path, place: Location) -> dict[str, Any]:
    files = hash_files(folder)
    place.upload(folder)
    return files


def _fetch(
    place: Location, files: dict[str, Any], folder: Path, *, rank: int | None = None
) -> None:
    """Copy a checkpoint's files, all or those that a rank reads. Raises: Damaged, StorageError."""
    for name, entry in files.items():
        owner = _OF_A_RANK.search(name)
        if rank is not None and owner is not None and int(owner.group(1)) != rank:
            continue
        try:
            data = (place / name).read_bytes()
        except FileNotFoundError as error:
            raise Damaged(f"{place / name}: is missing") from error
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise Damaged(f"{place / name}: differs from its manifest, it is damaged")
        locate(str(folder / name)).write_bytes(data)


def _read_manifest(place: Location, stage_fingerprint: str) -> Manifest:
    """The manifest of a checkpoint that this program and these settings have saved."""
    file = place / MANIFEST
    try:
        manifest: Manifest = json.loads(file.read_bytes())
        version, seal = manifest["schema_version"], manifest.pop("seal", None)
    except (FileNotFoundError, ValueError, TypeError, KeyError) as error:
        raise Damaged(f"{file}: is no manifest, it is damaged") from error
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{place}: schema_version={version}, this program reads {SCHEMA_VERSION}; resume with "
            "the program that saved it, or delete it"
        )
    if seal != fingerprint(manifest):
        raise Damaged(f"{file}: differs from its seal, it is damaged")
    if manifest["fingerprint"] != stage_fingerprint:
        raise CheckpointError(
            f"{place}: was saved with other settings or data (fingerprint "
            f"{manifest['fingerprint']}, now {stage_fingerprint}); use the settings it was saved "
            "with, another run name, or delete it"
        )
    return manifest


def _save_random_state(folder: Path) -> None:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    torch.save(state, folder / _RANDOM.format(dist.get_rank()))


def _restore_random_state(folder: Path) -> None:
    state = torch.load(folder / _RANDOM.format(dist.get_rank()))
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _collect(folder: Location, saved: str, num_to_keep: int) -> None:
    """Delete all but the newest complete checkpoints up to the one just saved.

    A later one is damaged, for it was passed over; partial ones are never the newest.
    """
    complete = [name for name in complete_checkpoints(folder) if name <= saved]
    for name in set(folder.children()) - set(complete[-num_to_keep:]):
        # The manifest first, so that a half-deleted one is not taken for whole.
        (folder / name / MANIFEST).remove()
        (folder / name).remove()


def _last_good(folder: Location) -> str:
    try:
        names = complete_checkpoints(folder)
    except StorageError:
        return f"what was saved before lies in {folder}"
    return f"the last complete checkpoint is {names[-1]}" if names else "none was saved before"


def _together(action: Callable[[], T], is_mine: bool = True) -> list[T]:
    """Do something on this rank, or nothing; every rank must call it.

    Returns:
        What the action gave on each rank that did it, in their order.

    Raises:
        LlavaMedError: What it raised on any rank, raised on all: none is left waiting.
    """
    mine: list[T] = []
    error: LlavaMedError | None = None
    if is_mine:
        try:
            mine = [action()]
        except LlavaMedError as found:
            error = found
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, (mine, error))
    for _, met in told:
        if met is not None:
            raise met
    return [result for results, _ in told for result in results]
