"""Rows of JSON files: of a list, of lines, or of objects that follow each other.

A file is read in pieces and holds no more than one row and a piece in memory. A broken row of lines
is a row like any other, which its reader refuses, since the next line tells where to go on. In a
list nothing does, and a file that ends within a row was cut off: both are refused as a whole, with
the line, the byte and what stands there.
"""

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from llavamed.data.sources.files import FileOfRows, damaged, hash_file, load_image_file
from llavamed.data.sources.text_files import Text, open_text
from llavamed.errors import DataError
from llavamed.storage.location import Location

BROKEN = "broken"
"""Key of a row that could not be read; its value says why, and where."""

_PIECE = 1 << 16
_BLANKS = re.compile(r"[ \t\n\r]*")
_HALVES = re.compile("[\ud800-\udfff]")
_NEXT_ROW = re.compile(r"\n[ \t]*(?=\{)")
_LONGEST_WORD = 64
"""Characters before the end of a piece in which an error may only mean that more is to come."""
_CUT_OFF = "the file ends in the middle of it"
_EXCERPT = 40


class JsonFile(FileOfRows):
    """A JSON file of rows and a folder of images that they name."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the file. Raises: DataError."""
        return stream_json(self._file)


class JsonFolder:
    """A folder with a JSON file of rows and one of images, each of which has one of some names.

    They are looked for at the first read. Signs and case of a name do not count, since downloads
    change blanks into underscores; where none is there, the first name is the absent one.
    """

    def __init__(self, folder: Location, files: Sequence[str], images: Sequence[str]) -> None:
        self._folder = folder
        self._file_names, self._image_names = files, images

    @cached_property
    def file(self) -> Location:
        """The file of rows."""
        return _find_child(self._folder, self._file_names)

    @cached_property
    def images(self) -> Location:
        """The folder of images."""
        return _find_child(self._folder, self._image_names)

    def count(self) -> int:
        """Rows that are listed. Raises: DataError."""
        return sum(1 for _ in self.rows())

    def content_hash(self) -> str:
        """SHA-256 of the file. Raises: DataError."""
        return hash_file(self.file)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the file. Raises: DataError."""
        return stream_json(self.file)

    def load_image(self, reference: str) -> bytes:
        """An image by its name below the folder. Raises: SampleError."""
        return load_image_file(self.images, reference)


def _find_child(folder: Location, names: Sequence[str]) -> Location:
    wanted = [_letters(name) for name in names]
    there = {_letters(name): name for name in folder.children()}
    name = next((there[name] for name in wanted if name in there), names[0])
    return folder / name


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def stream_json(location: Location) -> Iterator[dict[str, Any]]:
    """Items of a JSON list, of JSON lines, or of objects one behind the other, one by one.

    What is no mapping comes as `{"item": ...}`, and a broken line as `{BROKEN: reason}`, for the
    reader of rows to refuse. NaN and the infinities, which JSON does not have, are read as null.

    Raises:
        DataError: The file is absent, empty, cut off, or neither a list nor lines.
    """
    with open_text(location) as text:
        window = _Window(location, text)
        window.skip_blanks()
        match window.peek():
            case "":
                raise damaged(location, "JSON", "the file is empty")
            case "[":
                rows = _items_of_list(window)
            case "{":
                rows = _items_of_lines(window)
            case _:
                fact = "it begins with neither a bracket nor a brace"
                raise window.damage(window.at, fact)
        for item in rows:
            yield item if isinstance(item, dict) else {"item": item}


def _items_of_list(window: "_Window") -> Iterator[Any]:
    window.at += 1
    window.skip_blanks()
    if window.peek() != "]":
        while True:
            try:
                yield window.read_value()
            except _BrokenError as error:
                raise window.damage(error.at, error.fact) from error
            window.skip_blanks()
            if window.peek() != ",":
                break
            window.at += 1
            window.skip_blanks()
    if window.peek() != "]":
        raise window.damage(window.at, "no comma and no end of the list" if window.peek() else "")
    window.at += 1
    window.skip_blanks()
    if window.peek():
        raise window.damage(window.at, "more behind the end of the list")


def _items_of_lines(window: "_Window") -> Iterator[Any]:
    while window.peek():
        try:
            item = window.read_value()
        except _BrokenError as error:
            if error.fact == _CUT_OFF:
                raise window.damage(error.at, error.fact) from error
            item = {BROKEN: window.describe(error.at, error.fact)}
            window.skip_to_next_row()
        yield item
        window.skip_blanks()


class _BrokenError(Exception):
    """A value at this place of the window is no JSON."""

    def __init__(self, at: int, fact: str) -> None:
        super().__init__(fact)
        self.at = at
        self.fact = fact


class _Window:
    """A piece of a text, and the place in it up to which it is read."""

    def __init__(self, location: Location, text: Text) -> None:
        self.at = 0
        self._location = location
        self._text = text
        self._piece = ""
        self._is_last = False
        self._bytes = text.num_mark_bytes
        self._lines = 0
        self._decoder = json.JSONDecoder(parse_constant=lambda _: None)

    def peek(self) -> str:
        """The next character, or none at the end of the text."""
        while self.at == len(self._piece) and not self._is_last:
            self._read_on()
        return self._piece[self.at : self.at + 1]

    def skip_blanks(self) -> None:
        """Go to the next character that is not blank."""
        while self.peek():
            self.at = _BLANKS.match(self._piece, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self._piece):
                return

    def skip_to_next_row(self) -> None:
        """Go to the next line that begins with a brace, or to the end."""
        while (found := _NEXT_ROW.search(self._piece, self.at)) is None and not self._is_last:
            self.at = max(self.at, len(self._piece) - _LONGEST_WORD)
            self._read_on()
        self.at = len(self._piece) if found is None else found.end()

    def read_value(self) -> Any:
        """Read the value that begins here, and go behind it. Raises: _BrokenError."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._piece, self.at)
            except json.JSONDecodeError as error:
                is_open = error.msg.startswith("Unterminated string")
                is_open = is_open or error.pos >= len(self._piece) - _LONGEST_WORD
                if self._is_last or not is_open:
                    raise self._broken(error) from error
            except (RecursionError, ValueError) as error:  # nested too deeply; a number too long
                raise _BrokenError(self.at, str(error)) from error
            else:
                # A number may go on, or have an exponent, behind the end of the piece.
                is_whole = self._piece[end - 1] == "}" or end < len(self._piece) - _LONGEST_WORD
                if is_whole or self._is_last:
                    self._check_text(end)
                    self.at = end
                    return value
            self._read_on()

    def _broken(self, error: json.JSONDecodeError) -> _BrokenError:
        rest = self._piece[error.pos :].strip()
        is_row = self._piece.startswith("{", self.at)
        has_end = rest and not (is_row and "\n" not in rest and not rest.endswith("}"))
        is_cut = self._is_last and not has_end
        if is_cut or error.msg.startswith("Unterminated string"):
            return _BrokenError(self.at, _CUT_OFF)
        return _BrokenError(error.pos, error.msg)

    def _check_text(self, end: int) -> None:
        """Refuse what was no text of the encoding and stands in a value that is JSON."""
        value = self._piece[self.at : end]
        if not value.isascii() and (half := _HALVES.search(value)):
            found = half[0].encode("utf-8", "surrogatepass")
            if self._text.encoding == "utf-8":
                found = half[0].encode("utf-8", "surrogateescape")
            fact = f"{found!r} is no {self._text.encoding.upper()}; save the file as UTF-8"
            raise _BrokenError(self.at + half.start(), fact)

    def _read_on(self) -> None:
        """Take in more text, as much as there is already, and let go of what was read."""
        done, kept = self._piece[: self.at], self._piece[self.at :]
        self._bytes += self._text.num_bytes(done)
        self._lines += done.count("\n")
        more = self._text.stream.read(max(_PIECE, len(kept)))
        self._piece, self.at, self._is_last = kept + more, 0, not more

    def describe(self, at: int, fact: str) -> str:
        """Say what is wrong at a place of the window, with its line, byte and surroundings."""
        before = self._piece[:at]
        line = self._lines + before.count("\n") + 1
        byte = self._bytes + self._text.num_bytes(before)
        excerpt = self._piece[max(0, at - _EXCERPT) : at + _EXCERPT]
        near = excerpt.encode("utf-8", "backslashreplace").decode()
        return f"{fact} at line {line:,}, byte {byte:,}, near {near!r}"

    def damage(self, at: int, fact: str) -> DataError:
        """The error that says the whole file cannot be read."""
        return damaged(self._location, "JSON", self.describe(at, fact or _CUT_OFF))
