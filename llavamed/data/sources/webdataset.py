"""WebDataset: tar shards in which the members of a sample follow each other and share a name.

A member's name is split at the first dot behind its folder: `a/7.jpg` and `a/7.json` are the image
and the text of sample `a/7`. Images are told by their ending and keep the archive's order. The text
is a dialogue in `.json`, or a caption in `.txt`, about which a question is asked; a `.json` without
a dialogue may still say what the sample is. Members of another form are of no sample.

Nothing is extracted and no name is used as a path: rows hold offsets, and workers read those bytes.
"""

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any

from llavamed.config.sources import WebDataset
from llavamed.data.record import Record
from llavamed.data.sources.captions import caption_turns
from llavamed.data.sources.files import absent, damaged, find_files, open_file
from llavamed.data.sources.records import DIALOGUE_KEYS, describe, dialogue, read_json
from llavamed.errors import SampleError
from llavamed.storage.location import Location, locate

_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_IMAGES = {"jpg", "jpeg", "png", "gif", "bmp", "tif", "tiff", "webp"}
_TEXTS = {"json", "txt"}
_DAMAGE = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)


class WebDatasetSource:
    """Samples of tar shards, read by ranges."""

    def __init__(self, read: WebDataset) -> None:
        self._path = read.path
        self._fs = locate(read.path).fs
        self._licence = read.licence

    def count(self) -> int:
        """Samples of all shards. Raises: DataError."""
        return self._survey[0]

    def content_hash(self) -> str:
        """SHA-256 of the names and sizes of all members and of the texts. Raises: DataError."""
        return self._survey[1]

    @cached_property
    def _survey(self) -> tuple[int, str]:
        """Number of samples and hash, in one walk."""
        digest, number = hashlib.sha256(), 0
        for location in find_files(self._path, ".tar"):
            for _ in _samples(location, digest):
                number += 1
        return number, digest.hexdigest()

    def rows(self) -> Iterator[dict[str, Any]]:
        """The places of all samples. Raises: DataError, when a shard is damaged or none there."""
        for location in find_files(self._path, ".tar"):
            yield from _samples(location)

    def parse(self, row: dict[str, Any]) -> Record:
        """Understand one sample.

        Raises:
            SampleError: `no_conversations`, `not_json`, `not_unicode`, or for unreadable turns.
        """
        images = [f"{row['file']}#{start}+{size}" for start, size in row["images"]]
        values = read_json(self._fetch(row, "json")) if "json" in row else {}
        if not isinstance(values, dict):
            raise SampleError("not_json", f"a {type(values).__name__} and no mapping")
        if "txt" not in row or set(values) & set(DIALOGUE_KEYS):
            return dialogue(values, images, id=row["id"], licence=self._licence)
        try:
            caption = self._fetch(row, "txt").decode()
        except UnicodeDecodeError as error:
            raise SampleError(
                "not_unicode", f"{error.object[error.start : error.end]!r}"
            ) from error
        turns = caption_turns(row["id"], caption, len(images))
        return describe(values, images, turns, id=row["id"], licence=self._licence)

    def load_image(self, reference: str) -> bytes:
        """An image by its place. Raises: DataError, when the shard is no longer that long."""
        path, _, place = reference.rpartition("#")
        start, size = map(int, place.split("+"))
        return self._read(path, start, size)

    def _fetch(self, row: dict[str, Any], kind: str) -> bytes:
        return self._read(row["file"], *row[kind])

    def _read(self, path: str, start: int, size: int) -> bytes:
        location = Location(self._fs, path)
        if size == 0:
            return b""  # no server knows a range of nothing
        try:
            data = location.read_bytes(start, start + size)
        except FileNotFoundError as error:
            raise absent(location) from error
        if len(data) != size:
            raise damaged(location, "a tar archive", f"it ends before byte {start + size:,}")
        return data


def _samples(location: Location, digest: Any = None) -> Iterator[dict[str, Any]]:
    """The samples of a shard by their places."""
    members = _members(location, digest)
    for key, group in groupby(members, key=itemgetter(0)):
        row: dict[str, Any] = {"id": key, "file": location.path, "images": []}
        for _, kind, start, size in group:
            if kind in _IMAGES:
                row["images"].append([start, size])
            else:
                row[kind] = [start, size]
        yield row


def _members(location: Location, digest: Any) -> Iterator[tuple[str, str, int, int]]:
    """Key, kind, offset and size of the members that belong to samples.

    Raises:
        DataError: The archive is damaged, compressed or cut off.
    """
    with open_file(location) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # it would keep all
                    if member.size < 0:
                        raise tarfile.ReadError(f"a member of {member.size} bytes")
                    parts = _NAME.fullmatch(member.name)
                    kind = parts[2].rpartition(".")[2].lower() if parts else ""
                    if parts and _is_file(member) and kind in _IMAGES | _TEXTS:
                        if digest is not None:
                            _update(digest, member, file if kind in _TEXTS else None)
                        yield parts[1], kind, member.offset_data, member.size
                file.seek(archive.offset)
                if not (end := file.read(tarfile.BLOCKSIZE)) or end.strip(b"\0"):
                    # tarfile takes a header it cannot read for the end of the archive
                    raise tarfile.ReadError(f"no member and no end at byte {archive.offset:,}")
        except _DAMAGE as error:
            raise damaged(location, "a tar archive", error) from error


def _is_file(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()


def _update(digest: Any, member: tarfile.TarInfo, file: Any) -> None:
    head = json.dumps([member.name, member.size])
    digest.update(head.encode())
    if file is not None:
        file.seek(member.offset_data)
        digest.update(file.read(member.size))
