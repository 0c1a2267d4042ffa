"""Write and read manifests of any kind.

A kind is a typed model with a version of its own. `write` adds a checksum, and `read` returns the
model or says which version it found and which it needs.
"""

from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from llavamed.errors import DamagedFileError, LlavaMedError
from llavamed.storage.fingerprint import fingerprint
from llavamed.storage.location import MANIFEST, Location, to_json

_VERSION = "schema_version"
_CHECKSUM = "checksum"


class Facts(BaseModel):
    """Part of a manifest."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, ser_json_inf_nan="constants", use_attribute_docstrings=True
    )

    def replace(self, **changes: Any) -> Self:
        """Return the same facts with some changed."""
        return type(self).model_validate(self.model_dump() | changes)


class Manifest(Facts):
    """A manifest of one kind, with what a reader needs to know of the kind."""

    VERSION: ClassVar[int]
    FILE: ClassVar[str] = MANIFEST
    """Name of the file below the folder that it describes."""
    ERROR: ClassVar[type[LlavaMedError]]
    """Raised for a manifest of another version."""
    HINT: ClassVar[str]
    """What to do about another version."""


M = TypeVar("M", bound=Manifest)


def write(folder: Location, manifest: Manifest, *, name: str | None = None) -> None:
    """Write a manifest into a folder, whole or not at all. Raises: StorageError.

    Args:
        folder: What it describes.
        name: Name of the file; by default that of the kind.
    """
    (folder / (name or manifest.FILE)).write_bytes(dump(manifest))


def dump(manifest: Manifest) -> bytes:
    """Return a manifest as `write` stores it; equal manifests give equal bytes."""
    body = {_VERSION: manifest.VERSION} | manifest.model_dump(mode="json")
    return to_json(body | {_CHECKSUM: fingerprint(body)})


def read(kind: type[M], folder: Location, *, name: str | None = None) -> M:
    """Read the manifest of a folder.

    Args:
        kind: Which manifest the folder should have.
        folder: What it describes.
        name: Name of the file; by default that of the kind.

    Raises:
        FileNotFoundError: There is none, so the folder is not complete.
        DamagedFileError: It is not as it was written.
        LlavaMedError: The kind's own error: another version of this program wrote it.
        StorageError: It cannot be read.
    """
    file = folder / (name or kind.FILE)
    body = file.read_json()
    if not isinstance(body, dict):
        raise DamagedFileError(f"{file}: is not a manifest; it is damaged", "not a manifest")
    version = body.pop(_VERSION, None)
    if version != kind.VERSION:
        found = "none" if version is None else version
        raise kind.ERROR(
            f"{file}: {_VERSION}={found}: this program reads {kind.VERSION}; {kind.HINT}"
        )
    checksum = body.pop(_CHECKSUM, None)
    if checksum != fingerprint({_VERSION: version} | body):
        reason = "differs from its checksum"
        raise DamagedFileError(f"{file}: {reason}; it is damaged", reason)
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, fault["loc"])) for fault in error.errors())
        raise kind.ERROR(
            f"{file}: {keys}: not what {_VERSION}={version} holds; {kind.HINT}"
        ) from error


def find(kind: type[M], folder: Location) -> M | None:
    """Read the manifest of a folder, or return None where the folder is not complete.

    Raises:
        LlavaMedError: As `read` does.
    """
    try:
        return read(kind, folder)
    except FileNotFoundError:
        return None
