"""Open text files that may be compressed and may have a byte order mark.

Compression and encoding are detected from the first bytes and never from the name. Text is read in
pieces, so the size of a file does not matter.
"""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from llavamed.data.sources.files import damaged, open_file
from llavamed.errors import DataError
from llavamed.storage.location import Location

GZIP = b"\x1f\x8b"
_ARCHIVES = {
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7z",
}
_WORKBOOKS = (".xlsx", ".xlsm", ".ods")
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, because its mark begins with that of UTF-16
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_GUESSES = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_HEAD = 64
_UNDECODED = re.compile("[\udc80-\udcff]")
"""What bytes that are invalid UTF-8 become, one by one."""


@dataclass(frozen=True)
class Text:
    """An open text file. Bytes that are invalid in its encoding are read as lone surrogates."""

    stream: TextIO
    encoding: str
    num_mark_bytes: int
    """The length of the byte order mark, which is not part of the text."""

    def num_bytes(self, text: str) -> int:
        """Return how many bytes a piece of text takes in the decompressed file."""
        return len(text.encode(self.encoding, _on_error(self.encoding)))


@contextmanager
def open_text(location: Location) -> Iterator[Text]:
    """Open a text file in UTF-8, UTF-16 or UTF-32, optionally compressed by gzip.

    Raises:
        DataError: The file is absent, a workbook, compressed in another way, or its compression is
            damaged.
    """
    with open_file(location) as file:
        head = file.read(_HEAD)
        file.seek(0)
        if location.name.lower().endswith(_WORKBOOKS):
            raise DataError(
                f"path={location}: is a workbook; save its sheet as CSV in UTF-8, and name this"
            )
        for start, name in _ARCHIVES.items():
            if head.startswith(start):
                raise DataError(
                    f"path={location}: is compressed by {name}, and only gzip is read; unpack it"
                )
        if not head.startswith(GZIP):
            yield _decode(file, head)
            return
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                head = unpacked.read(_HEAD)
                unpacked.seek(0)
                yield _decode(unpacked, head)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise damaged(location, "whole gzip", error) from error


def undecoded(text: str) -> bytes | None:
    """Return the first byte of a text that is invalid UTF-8, or None if all are valid."""
    half = _UNDECODED.search(text)
    return half[0].encode("utf-8", "surrogateescape") if half else None


def _decode(file: io.BufferedIOBase, head: bytes) -> Text:
    mark, encoding = next(
        ((mark, name) for mark, name in _MARKS.items() if head.startswith(mark)), (b"", "utf-8")
    )
    if not mark:
        # JSON and CSV begin with an ASCII character, so the zeros around it show the encoding.
        encoding = next((name for name in _GUESSES if _is_ascii(head, name)), encoding)
    file.seek(len(mark))
    stream = io.TextIOWrapper(file, encoding, errors=_on_error(encoding), newline="")  # type: ignore[type-var]
    return Text(stream, encoding, len(mark))


def _is_ascii(head: bytes, encoding: str) -> bool:
    """Return whether the first bytes are an ASCII character in a wide encoding."""
    width = 4 if "32" in encoding else 2
    letter = head[:width]
    place = 0 if encoding.endswith("le") else width - 1
    others = letter[:place] + letter[place + 1 :]
    return len(letter) == width and 0 < letter[place] < 128 and not any(others)


def _on_error(encoding: str) -> str:
    return "surrogateescape" if encoding == "utf-8" else "surrogatepass"
