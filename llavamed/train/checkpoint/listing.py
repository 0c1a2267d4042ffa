"""List the checkpoints of a stage by their manifests alone; the driver needs nothing heavier."""

from llavamed.errors import DamagedCheckpointError, DamagedFileError
from llavamed.storage.location import MANIFEST, Location
from llavamed.storage.manifest import CheckpointManifest, read


def complete_checkpoints(folder: Location) -> list[str]:
    """Return the names of the checkpoints whose save has finished, oldest first."""
    return [name for name in folder.children() if (folder / name / MANIFEST).exists()]


def read_checkpoint(place: Location) -> CheckpointManifest:
    """Read the manifest of a checkpoint.

    Raises:
        DamagedCheckpointError: The manifest is absent or damaged.
        CheckpointError: Another version of this program has saved it.
        StorageError: The manifest cannot be read.
    """
    try:
        return read(CheckpointManifest, place)
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{place / MANIFEST}: is missing") from error
    except DamagedFileError as error:
        raise DamagedCheckpointError(str(error)) from error


def newest_checkpoint(folder: Location) -> CheckpointManifest | None:
    """Return the manifest of the newest readable checkpoint, or None.

    Raises:
        CheckpointError: Another version of this program has saved it.
    """
    for name in reversed(complete_checkpoints(folder)):
        try:
            return read_checkpoint(folder / name)
        except DamagedCheckpointError:
            continue  # loading will find and report it
    return None
