"""Read the tables of VLMEvalKit: tab-separated files whose cells hold the pictures in base64.

The columns are `index`, `question`, `answer`, the options `A`, `B` and so on, `image` or
`image_path`, and notes such as `category`, `hint` and `split`. A cell of `image` is one picture, a
list of several, or the `index` of an earlier row that has the same picture.

Files are of many gigabytes, so a picture is listed by its place in the file and read when it is
needed; memory does not grow with the pictures.
"""

import io
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from llavamed.data.sources.files import damaged, find_files, load_image_file, open_file
from llavamed.data.sources.pictures import embedded_picture
from llavamed.data.sources.text_files import undecoded
from llavamed.errors import DataError, SampleError
from llavamed.storage.location import Location

_NEEDED = ("index", "question", "answer")
_GZIP = b"\x1f\x8b"
_EMBEDDED, _NAMED = "image", "image_path"
_CELL = re.compile(rb'(?:"([^"]*(?:""[^"]*)*)"|([^\t\r\n]*))(\t|\r?\n|\Z)')
_SHORT = 64
"""A cell of at most this many bytes is the index of another row, not a picture."""
_BASE64 = re.compile(rb"[A-Za-z0-9+/=]{65,}")
_NAMES = re.compile(r"[^\[\]'\",]+")
_PLACE = re.compile(r"(\d+)\+(\d+)@(.*)", re.DOTALL)
"""Reference to a picture inside a file, as start+size@file."""
_LARGEST_ROW = 1 << 28


class TsvFiles:
    """The rows of tab-separated files."""

    def __init__(self, path: str) -> None:
        self._path = path

    @cached_property
    def _files(self) -> list[Location]:
        return find_files(self._path, ".tsv")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the cells of all rows, with references to their pictures as `images`.

        Raises:
            DataError: A file is absent or is no such table.
        """
        for file in self._files:
            prefix = f"{file.name.removesuffix('.tsv')}-" if len(self._files) > 1 else ""
            for row in _rows(file):
                yield {**row, "id": f"{prefix}{row.get('index', '')}", "file": file.path}

    def read(self, row: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Return the cells of a row and references to its pictures.

        Raises:
            SampleError: `malformed_row`, if it has more or fewer cells than there are columns; or
                `not_unicode`.
        """
        for name, cell in row.items():
            if isinstance(cell, str) and (found := undecoded(cell)):
                raise SampleError("not_unicode", f"{name} has {found!r}, which is not UTF-8")
        if "cells" in row:
            raise SampleError("malformed_row", f"{row['cells']} cells, {row['columns']} columns")
        return row, row["images"]

    def load_image(self, reference: str) -> bytes:
        """Read a picture by its place, or by its name next to the table.

        Raises:
            SampleError: `missing_image`, `unsafe_path` or `corrupt_image`.
        """
        first = self._files[0]
        if place := _PLACE.fullmatch(reference):
            start, size = int(place[1]), int(place[2])
            text = Location(first.fs, place[3]).read_bytes(start, start + size)
            return embedded_picture(f"data:;base64,{text.decode('ascii', 'replace')}") or b""
        folder = first.path.rpartition("/")[0]
        return load_image_file(Location(first.fs, folder), reference)


def _rows(file: Location) -> Iterator[dict[str, Any]]:
    records = _records(file)
    _, head = next(records, (0, b""))
    if head.startswith(_GZIP) or b"\0" in head:
        raise DataError(
            f"path={file}: is compressed or UTF-16; unpack it, and save it as UTF-8 where it is not"
        )
    columns = [cell.decode("utf-8-sig", "replace") for _, cell in _cells(head)]
    missing = [name for name in _NEEDED if name not in columns]
    if missing or not {_EMBEDDED, _NAMED} & set(columns):
        lacking = ", ".join(missing) or f"{_EMBEDDED} or {_NAMED}"
        raise damaged(file, "a table of questions", f"it has no column {lacking}")
    pictures: dict[str, list[str]] = {}
    for start, record in records:
        cells = _cells(record)
        there = dict(zip(columns, cells, strict=False))
        place, embedded = there.pop(_EMBEDDED, ((0, 0), b""))
        row: dict[str, Any] = {
            name: cell.decode("utf-8", "surrogateescape") for name, (_, cell) in there.items()
        }
        if len(cells) != len(columns):
            yield row | {"cells": len(cells), "columns": len(columns)}
            continue
        if len(embedded) > _SHORT:
            found = (each.span() for each in _BASE64.finditer(record, *place))
            images = [f"{start + one}+{end - one}@{file.path}" for one, end in found]
        elif embedded:
            images = pictures.get(embedded.decode("utf-8", "replace"), [])
        else:
            images = [name.strip() for name in _NAMES.findall(row.get(_NAMED, ""))]
        images = pictures[row["index"]] = [each for each in images if each]
        yield row | {"images": images}


def _records(file: Location) -> Iterator[tuple[int, bytes]]:
    """Yield the records of a table, which go on where a quoted cell has a line break.

    Raises:
        DataError: The file is absent, or a quotation mark is not closed.
    """
    start, size, is_open = 0, 0, False
    lines: list[bytes] = []
    with open_file(file) as raw:
        for line in io.BufferedReader(raw, 1 << 20):
            lines.append(line)
            size += len(line)
            is_open ^= line.count(b'"') % 2 == 1
            if not is_open:
                record = b"".join(lines)
                if record.strip():
                    yield start, record
                start, size, lines = start + size, 0, []
            elif size > _LARGEST_ROW:
                break
    if lines:
        raise damaged(file, "a table", f"a quotation mark of the row at byte {start:,} is open")


def _cells(record: bytes) -> list[tuple[tuple[int, int], bytes]]:
    """Return the cells of a record, each with where it begins and ends in it."""
    found = []
    at = 0
    while cell := _CELL.match(record, at):
        is_quoted = cell[1] is not None
        text = cell[1].replace(b'""', b'"') if is_quoted else cell[2]
        found.append((cell.span(1 if is_quoted else 2), text))
        at = cell.end()
        if cell[3] != b"\t":
            return found
    return [*found, ((at, len(record)), record[at:])]  # a cell goes on after its quotation mark
