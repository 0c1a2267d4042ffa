"""Stream the rows of a CSV file, whose first line names the columns.

Cells are separated by commas, semicolons or tabs, whichever the first line has most of. Spaces
after them are left out if the first line has one there. A cell that is empty counts as absent, and
a row of empty cells as none. A row that cannot be read is one that `parse` rejects, with its line.
"""

import csv
from collections.abc import Iterator
from typing import Any

from llavamed.data.sources.files import damaged
from llavamed.data.sources.text_files import open_text, undecoded
from llavamed.errors import DataError
from llavamed.storage.location import Location

MALFORMED = "malformed"
"""Key of a row that could not be read; its value says why and where."""
MAX_CELL = 1 << 28
"""Maximum number of characters of a cell, which may hold a whole picture."""
_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")


def is_csv(location: Location) -> bool:
    """Return whether a file is one of CSV, by its name."""
    return location.name.lower().endswith(_SUFFIXES)


def stream_csv(location: Location, needed: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV file by the names of their columns, in lower case.

    Args:
        needed: Names of columns of which it must have one.

    Raises:
        DataError: The file is absent or no CSV, or has none of the needed columns.
    """
    with open_text(location) as text:
        first = text.stream.readline()
        header: list[str] = next(_reader([first], first), [])
        names = [name.strip().lower() for name in header]
        if not any(names):
            raise damaged(location, "CSV", "the file is empty")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"path={location}: two columns are named {twice[0]!r}; rename one")
        if not set(names) & set(needed):
            raise DataError(
                f"path={location}: no column question; its columns are {', '.join(names)}; name "
                "those of question and answer so in the first line, or add them, for example with "
                "'Describe the image.' as the question about each report"
            )
        reader = _reader(text.stream, first)
        try:
            for cells in reader:
                if any(map(str.strip, cells)):
                    yield _row(names, cells, reader.line_num + 1)
        except csv.Error as error:
            fact = f"{error}, near line {reader.line_num + 1:,}"
            raise damaged(location, "CSV", fact) from error


def _reader(lines: Any, first: str) -> Any:
    csv.field_size_limit(MAX_CELL)
    mark = max(",;\t", key=first.count)
    return csv.reader(lines, delimiter=mark, skipinitialspace=f"{mark} " in first, strict=True)


def _row(names: list[str], cells: list[str], line: int) -> dict[str, Any]:
    if len(cells) != len(names):
        fact = f"{len(cells)} cells, {len(names)} columns, at line {line:,}"
        return {MALFORMED: fact}
    if (byte := undecoded("".join(cells))) is not None:
        return {MALFORMED: f"{byte!r} at line {line:,} is not UTF-8; save the file as UTF-8"}
    return {name: cell for name, cell in zip(names, cells, strict=True) if cell.strip()}
