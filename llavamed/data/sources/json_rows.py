"""Stream the rows of JSON files: a list, JSON lines, or concatenated objects.

A file is read in pieces; only one row and one piece are in memory. A broken line becomes a row that
`parse` rejects, because the next line shows where to continue. Nothing shows this in a list or in
a file that ends within a row, so these are refused as a whole. A row in which a key has two values
is rejected, too. Errors name the line, the byte and the text there.
"""

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from llavamed.data.sources.archives import ZIP, open_folder, open_packed
from llavamed.data.sources.files import damaged, hash_file, load_image_file
from llavamed.data.sources.json_text import Pairs, contradiction
from llavamed.data.sources.text_files import Text, open_text
from llavamed.errors import DataError
from llavamed.storage.location import Location

BROKEN = "broken"
"""Key of a row that could not be read; its value says why and where."""

_PIECE = 1 << 16
_BLANKS = re.compile(r"[ \t\n\r]*")
_HALVES = re.compile("[\ud800-\udfff]")
_NEXT_ROW = re.compile(r"\n[ \t]*(?=\{)")
_LONGEST_WORD = 64
"""An error within this many characters of the end of a piece may only mean that more must be read.
"""
_CUT_OFF = "the file ends in the middle of it"
_EXCERPT = 40


class JsonFolder:
    """A folder with a JSON file of rows and a folder of images, each under one of several names.

    The folder, or its folder of images, may be packed as a zip archive. Both are looked up at the
    first read, ignoring case and punctuation, since downloads turn spaces into underscores. If no
    name matches, errors show the first one.
    """

    def __init__(self, uri: str, files: Sequence[str], images: Sequence[str]) -> None:
        self._uri = uri
        self._file_names, self._image_names = files, images

    @cached_property
    def _folder(self) -> Location:
        return open_folder(self._uri)

    @cached_property
    def file(self) -> Location:
        """The file of rows."""
        return find_child(self._folder, self._file_names)

    @cached_property
    def images(self) -> Location:
        """The folder of images, or the inside of its archive. Raises: DataError."""
        return open_packed(find_child(self._folder, self._image_names))

    def count(self) -> int:
        """Return the number of rows that are listed. Raises: DataError."""
        return sum(1 for _ in self.rows())

    def content_hash(self) -> str:
        """Return the SHA-256 of the file. Raises: DataError."""
        return hash_file(self.file)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the file.

        Raises:
            DataError: The file is absent or damaged, or the images are still packed.
        """
        _ = self.images  # fail before the first row if the archive cannot be read
        return stream_json(self.file)

    def load_image(self, reference: str) -> bytes:
        """Read an image by its name below the folder.

        Raises:
            SampleError: `missing_image` or `unsafe_path`.
        """
        return load_image_file(self.images, reference)


def find_child(folder: Location, names: Sequence[str]) -> Location:
    """Return the child of a folder that has one of these names, or the place of the first."""
    wanted = [_letters(name) for name in names]
    children = (name.removesuffix(ZIP) for name in folder.children())
    there = {_letters(name): name for name in children}
    name = next((there[name] for name in wanted if name in there), names[0])
    return folder / name


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def stream_json(location: Location) -> Iterator[dict[str, Any]]:
    """Yield the items of a JSON list, of JSON lines or of concatenated objects, one by one.

    An item that is not a mapping becomes `{"item": ...}` and a broken line `{BROKEN: reason}`,
    which `parse` rejects. NaN and infinities, which JSON does not have, are read as null.

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
        raise window.damage(
            window.at, "neither a comma nor the end of the list" if window.peek() else ""
        )
    window.at += 1
    window.skip_blanks()
    if window.peek():
        raise window.damage(window.at, "more text after the end of the list")


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
    """The value at a position of the window is not JSON."""

    def __init__(self, at: int, fact: str) -> None:
        super().__init__(fact)
        self.at = at
        self.fact = fact


class _Window:
    """A piece of a text, and the position up to which it has been read."""

    def __init__(self, location: Location, text: Text) -> None:
        self.at = 0
        self._location = location
        self._text = text
        self._piece = ""
        self._is_last = False
        self._bytes = text.num_mark_bytes
        self._lines = 0
        self._contradictions: list[str] = []
        self._decoder = json.JSONDecoder(
            parse_constant=lambda _: None, object_pairs_hook=self._mapping
        )

    def peek(self) -> str:
        """Return the next character, or "" at the end of the text."""
        while self.at == len(self._piece) and not self._is_last:
            self._read_on()
        return self._piece[self.at : self.at + 1]

    def skip_blanks(self) -> None:
        """Skip to the next character that is not whitespace."""
        while self.peek():
            self.at = _BLANKS.match(self._piece, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self._piece):
                return

    def skip_to_next_row(self) -> None:
        """Skip to the next line that begins with a brace, or to the end."""
        while (found := _NEXT_ROW.search(self._piece, self.at)) is None and not self._is_last:
            self.at = max(self.at, len(self._piece) - _LONGEST_WORD)
            self._read_on()
        self.at = len(self._piece) if found is None else found.end()

    def read_value(self) -> Any:
        """Read the value at the current position and move past it.

        One in which a key has two values becomes `{BROKEN: reason}`; Python would keep the second.

        Raises:
            _BrokenError: There is no valid value.
        """
        while True:
            self._contradictions.clear()
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
                # A number may continue, or have an exponent, in the next piece.
                is_whole = self._piece[end - 1] == "}" or end < len(self._piece) - _LONGEST_WORD
                if is_whole or self._is_last:
                    self._check_text(end)
                    if self._contradictions:
                        fact = self._contradictions[0]
                        name = value.get("id") if isinstance(value, dict) else None
                        value = {"id": name, BROKEN: self.describe(self.at, fact)}
                    self.at = end
                    return value
            self._read_on()

    def _mapping(self, pairs: Pairs) -> dict[str, Any]:
        if fact := contradiction(pairs):
            self._contradictions.append(fact)
        return dict(pairs)

    def _broken(self, error: json.JSONDecodeError) -> _BrokenError:
        rest = self._piece[error.pos :].strip()
        is_row = self._piece.startswith("{", self.at)
        has_end = rest and not (is_row and "\n" not in rest and not rest.endswith("}"))
        is_cut = self._is_last and not has_end
        if is_cut or error.msg.startswith("Unterminated string"):
            return _BrokenError(self.at, _CUT_OFF)
        return _BrokenError(error.pos, error.msg)

    def _check_text(self, end: int) -> None:
        """Raise _BrokenError if the value holds bytes that are invalid in the file's encoding."""
        value = self._piece[self.at : end]
        if not value.isascii() and (half := _HALVES.search(value)):
            found = half[0].encode("utf-8", "surrogatepass")
            if self._text.encoding == "utf-8":
                found = half[0].encode("utf-8", "surrogateescape")
            fact = f"{found!r} is not {self._text.encoding.upper()}; save the file as UTF-8"
            raise _BrokenError(self.at + half.start(), fact)

    def _read_on(self) -> None:
        """Read more text, at least as much as is kept, and drop what has been read."""
        done, kept = self._piece[: self.at], self._piece[self.at :]
        self._bytes += self._text.num_bytes(done)
        self._lines += done.count("\n")
        more = self._text.stream.read(max(_PIECE, len(kept)))
        self._piece, self.at, self._is_last = kept + more, 0, not more

    def describe(self, at: int, fact: str) -> str:
        """Describe what is wrong at a position of the window, with line, byte and context."""
        before = self._piece[:at]
        line = self._lines + before.count("\n") + 1
        byte = self._bytes + self._text.num_bytes(before)
        excerpt = self._piece[max(0, at - _EXCERPT) : at + _EXCERPT]
        near = excerpt.encode("utf-8", "backslashreplace").decode()
        return f"{fact} at line {line:,}, byte {byte:,}, near {near!r}"

    def damage(self, at: int, fact: str) -> DataError:
        """Return the error for a file that cannot be read as a whole."""
        return damaged(self._location, "JSON", self.describe(at, fact or _CUT_OFF))
