"""Read WebDataset: tar shards in which the members of a sample are consecutive and share a name.

`tar_samples` decides which members form a sample. Images keep the order of the archive. The text is
a dialogue in `.json` or a caption in `.txt`, which becomes the answer to a question. A `.json`
without a dialogue may still hold notes about the sample. Members with other endings are reported as
not read.

Nothing is extracted and no name is used as a path: rows hold offsets, and workers read those bytes.
"""

import hashlib
import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

from llavamed.config.sources import WebDataset
from llavamed.data.record import Record
from llavamed.data.sources.files import absent, damaged, find_files, open_file
from llavamed.data.sources.json_text import read_json
from llavamed.data.sources.records import DIALOGUE_KEYS, dialogue, make_record
from llavamed.data.sources.tar_samples import IMAGES, LINK, TEXTS, Member, group_samples, read_name
from llavamed.data.sources.text_files import GZIP
from llavamed.errors import DataError, SampleError
from llavamed.processor.turns import IMAGE_PLACEHOLDER, Turn
from llavamed.storage.location import Location, locate

_DAMAGE = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)

DETAILED_WORDS = 30
"""Captions with at least this many words answer a question that asks for detail. Source: LLaVA-Med,
section 3."""

_BRIEF = (
    "What does this figure show, in a few words?",
    "Sum the figure up in a sentence or two.",
    "Which short caption fits this figure?",
    "Tell me only the main point of this figure.",
)
_DETAILED = (
    "What does this figure show? Leave nothing important out.",
    "Go through this figure and report what is seen in it.",
    "Which full caption fits this figure?",
    "Explain this figure to a colleague who cannot see it.",
)


class WebDatasetSource:
    """Samples of tar shards, read by byte ranges."""

    def __init__(self, read: WebDataset) -> None:
        self._path = read.path
        self._fs = locate(read.path).fs
        self._licence = read.licence

    def count(self) -> int:
        """Return the number of samples of all shards. Raises: DataError."""
        return self._survey[0]

    def content_hash(self) -> str:
        """Return the SHA-256 of the names and sizes of all members and of the texts.

        Raises:
            DataError: A shard is damaged or there is none.
        """
        return self._survey[1]

    @cached_property
    def _survey(self) -> tuple[int, str]:
        """The number of samples and the hash, from one pass over the shards."""
        digest, number = hashlib.sha256(), 0
        for location in find_files(self._path, ".tar"):
            for _ in _samples(location, digest):
                number += 1
        return number, digest.hexdigest()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the places of all samples. Raises: DataError."""
        for location in find_files(self._path, ".tar"):
            yield from _samples(location)

    def parse(self, row: dict[str, Any]) -> Record:
        """Interpret one sample.

        Raises:
            SampleError: `several_texts`, `no_conversations`, `not_json`, `not_unicode`, or any
                reason of unreadable turns.
        """
        if "second" in row:
            raise SampleError("several_texts", f"two members ending in .{row['second']}, not one")
        if not {"json", "txt"} & set(row):
            raise SampleError(
                "no_conversations",
                "no .json or .txt stands next to the picture; members of one name must follow one "
                "another, as `tar --sort=name` packs them",
            )
        images = [f"{row['file']}#{start}+{size}" for start, size in row["images"]]
        values = read_json(self._fetch(row, "json")) if "json" in row else {}
        if not isinstance(values, dict):
            raise SampleError("not_json", f"a {type(values).__name__}, not a mapping")
        unread = [f"{kind} members" for kind in row.get("unread", ())]
        if "txt" not in row or set(values) & set(DIALOGUE_KEYS):
            unread += ["txt members"] * ("txt" in row)
            record = dialogue(values, images, id=row["id"], licence=self._licence)
        else:
            # A caption without an image gets a placeholder, so that `check_record` refuses it.
            turns = caption_turns(row["id"], self._caption(row), max(1, len(images)))
            record = make_record(values, images, turns, id=row["id"], licence=self._licence)
        return replace(record, unread_keys=(*record.unread_keys, *unread))

    def load_image(self, reference: str) -> bytes:
        """Read an image by its place.

        Raises:
            DataError: The shard is absent or shorter than listed.
        """
        path, _, place = reference.rpartition("#")
        start, size = map(int, place.split("+"))
        return self._read(path, start, size)

    def _caption(self, row: dict[str, Any]) -> str:
        try:
            return self._fetch(row, "txt").decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SampleError(
                "not_unicode", f"{error.object[error.start : error.end]!r}"
            ) from error

    def _fetch(self, row: dict[str, Any], kind: str) -> bytes:
        return self._read(row["file"], *row[kind])

    def _read(self, path: str, start: int, size: int) -> bytes:
        location = Location(self._fs, path)
        if size == 0:
            return b""  # servers reject an empty range
        try:
            data = location.read_bytes(start, start + size)
        except FileNotFoundError as error:
            raise absent(location) from error
        if len(data) != size:
            raise damaged(location, "a tar archive", f"it ends before byte {start + size:,}")
        return data


def caption_turns(id: str, caption: str, num_images: int) -> tuple[Turn, Turn]:
    """Return a question about the figure, and the caption as its answer.

    The question, and whether the images come before or after it, follow from the `id` alone; both
    places are equally frequent.
    """
    questions = _DETAILED if len(caption.split()) >= DETAILED_WORDS else _BRIEF
    choice, is_first = divmod(zlib.crc32(id.encode(errors="replace")), 2)
    asked = questions[choice % len(questions)]
    images = [IMAGE_PLACEHOLDER] * num_images
    lines = [*images, asked] if is_first else [asked, *images]
    return Turn("user", "\n".join(lines)), Turn("assistant", caption.strip())


MASKS = frozenset(
    {"annotation", "depth", "heatmap", "label", "labels", "mask", "masks", "seg", "segmentation"}
)
"""Words in the name of an image, as `7.mask.png`, that say that it marks what another one shows."""


def _samples(location: Location, digest: Any = None) -> Iterator[dict[str, Any]]:
    """Yield the samples of a shard by their places; `unread` are endings that are not read.

    Members that belong to no sample are reported with the sample before them.

    Raises:
        DataError: The archive is damaged, compressed or cut off, or no member can be read.
    """
    row: dict[str, Any] | None = None
    stray: set[str] = set()
    for key, members in group_samples(_members(location, digest)):
        unread = {member.kind for member in members if not member.is_read}
        if not any(member.is_read for member in members):
            stray |= unread
            continue
        if row is not None:
            yield row | {"unread": sorted(stray.union(row["unread"]))}
            stray = set()
        row = {"id": key, "file": location.path, "images": [], "unread": unread}
        for member in members:
            place = [member.start, member.size]
            words = member.stem.removeprefix(key).lower().split(".")
            if member.kind in IMAGES and not MASKS.isdisjoint(words):
                unread.add(f"{words[-1]}.{member.kind}")
            elif member.kind in IMAGES:
                row["images"].append(place)
            elif member.kind in row:
                row["second"] = member.kind
            elif member.is_read:
                row[member.kind] = place
    if row is not None:
        yield row | {"unread": sorted(stray.union(row["unread"]))}
    elif stray:
        raise DataError(
            f"path={location}: no member of it is read, there are only {', '.join(sorted(stray))}; "
            "images and texts are recognized by their endings, such as .jpg and .json"
        )


def _members(location: Location, digest: Any) -> Iterator[Member]:
    """Yield the members of a shard by their names and places.

    Raises:
        DataError: The archive is damaged, compressed or cut off.
    """
    with open_file(location) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (info := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # otherwise it keeps all
                    if info.size < 0:
                        raise tarfile.ReadError(f"a member of {info.size} bytes")
                    name = read_name(info.name)
                    if name is None or info.isdir():
                        continue
                    stem, kind = name
                    if not info.isreg() or info.issparse():
                        kind = LINK
                    member = Member(stem, kind, info.offset_data, info.size)
                    if digest is not None and member.is_read:
                        _update(digest, info, file if kind in TEXTS else None)
                    yield member
                file.seek(archive.offset)
                if not (end := file.read(tarfile.BLOCKSIZE)) or end.strip(b"\0"):
                    # tarfile treats an unreadable header as the end of the archive
                    raise tarfile.ReadError(f"no member and no end at byte {archive.offset:,}")
        except _DAMAGE as error:
            file.seek(0)
            if file.read(2) == GZIP:
                raise DataError(
                    f"path={location}: is compressed by gzip, and members are read in place; "
                    "unpack it with gunzip"
                ) from error
            raise damaged(location, "a tar archive", error) from error


def _update(digest: Any, member: tarfile.TarInfo, file: Any) -> None:
    """Add the name and the size of a member to a hash, and its bytes if a file is given."""
    head = json.dumps([member.name, member.size])
    digest.update(head.encode())
    if file is not None:
        file.seek(member.offset_data)
        digest.update(file.read(member.size))
