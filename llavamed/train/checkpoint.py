"""Checkpoints: what a stage resumes from. Exports, what others load, are `llavamed.model.export`.

`checkpoints/step-000100/` below the stage's folder: every rank writes its own files, then rank 0
the manifest, which lists them all with their hashes. A folder without one is a save that never
finished.
"""

import hashlib
import re
import tempfile
from pathlib import Path
from typing import Any

import torch.distributed as dist

from llavamed.errors import CheckpointError
from llavamed.storage import MANIFEST, Location
from llavamed.train.engine import Engine

SCHEMA_VERSION = 1
_OF_A_RANK = re.compile(r"pp_rank_(\d+)_")


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
    """
    place = folder / f"step-{step:06d}"
    rank, world_size = dist.get_rank(), dist.get_world_size()
    with tempfile.TemporaryDirectory() as scratch:
        engine.save(Path(scratch))
        place.upload(Path(scratch))
        files: list[dict[str, Any]] = [{} for _ in range(world_size)]
        dist.all_gather_object(files, hash_files(Path(scratch)))  # also waits for every upload
    if rank == 0:
        merged = {name: entry for part in files for name, entry in part.items()}
        (place / MANIFEST).write_json(
            facts
            | {
                "schema_version": SCHEMA_VERSION,
                "step": step,
                "world_size": world_size,
                "files": merged,
            }
        )
        _collect(folder, num_to_keep)
    dist.barrier()


def latest_checkpoint(folder: Location) -> tuple[Location, dict[str, Any]] | None:
    """The newest complete checkpoint and its manifest."""
    for name in reversed(folder.children()):
        if (folder / name / MANIFEST).exists():
            return folder / name, (folder / name / MANIFEST).read_json()
    return None


def load_checkpoint(
    place: Location, manifest: dict[str, Any], engine: Engine, *, fingerprint: str
) -> None:
    """Restore the state of a checkpoint; every rank must call it.

    Raises:
        CheckpointError: It belongs to another config or number of workers, or a file is damaged.
    """
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise CheckpointError(
            f"{place}: schema_version={manifest['schema_version']}, this program reads "
            f"{SCHEMA_VERSION}; resume with the program that saved it, or delete it"
        )
    if manifest["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{place}: was saved with other settings or data (fingerprint "
            f"{manifest['fingerprint']}, "
            f"now {fingerprint}); use the settings it was saved with, another run "
            "name, or delete it"
        )
    world_size = dist.get_world_size()
    if manifest["world_size"] != world_size:
        raise CheckpointError(
            f"{place}: was saved by {manifest['world_size']} workers, there are {world_size} now; "
            "set scaling.num_workers to the first number"
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, entry in manifest["files"].items():
            owner = _OF_A_RANK.search(name)
            if owner is None or int(owner.group(1)) == dist.get_rank():
                _fetch(place / name, folder / name, entry["sha256"])
        engine.load(folder)


def _fetch(source: Location, target: Path, sha256: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        data = source.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{source}: is missing; delete this checkpoint") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointError(
            f"{source}: differs from its manifest, it is damaged; delete this checkpoint to resume "
            "from the one before"
        )
    target.write_bytes(data)


def _collect(folder: Location, num_to_keep: int) -> None:
    """Delete all but the newest complete checkpoints; partial ones are never the newest."""
    complete = [name for name in folder.children() if (folder / name / MANIFEST).exists()]
    for name in set(folder.children()) - set(complete[-num_to_keep:]):
        (
            folder / name / MANIFEST
        ).remove()  # first, so that a half-deleted one is not taken for whole
        (folder / name).remove()
