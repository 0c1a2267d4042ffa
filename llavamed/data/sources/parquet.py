"""Read Parquet files of images with dialogues or questions, as hubs and data lakes store them.

The listing only holds places, `{"file", "group", "row"}`. Workers read a whole row group at a time
and keep the last one, since the rows of a shard are consecutive. So a worker holds one row group in
memory.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import repeat
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from llavamed.config.sources import Parquet
from llavamed.data.record import Record
from llavamed.data.sources.archives import open_packed
from llavamed.data.sources.files import absent, damaged, find_files, load_from_folder
from llavamed.data.sources.pictures import IMAGE_KEYS, embedded_picture, reference_of
from llavamed.data.sources.records import DIALOGUE_KEYS, PAIRS, ROW_KEYS, dialogue
from llavamed.errors import DamagedFileError, DataError, SampleError
from llavamed.storage.location import Location, locate

_T = TypeVar("_T")

_LARGEST_FOOTER = 2**31 - 1
PIECE_BYTES = 1 << 30
"""Uncompressed bytes to read at once; Arrow reads at most 2 GiB of nested columns at once."""
_ADVICE_FOR_ONE = "name the right one in the dataset's read"
_ADVICE = (
    "name the one with dialogues in turns_column, or rename those of questions and answers; "
    "captions are answers, and need a column question, for example of 'Describe the image.'"
)
_PLACE = re.compile(r"(.*)#(\d+)/(\d+)/(\d+)", re.DOTALL)
"""Reference to an image inside a file, as file#group/row/position; any other reference is a name.
"""


class ParquetFiles:
    """Rows of Parquet files by their places, and the images in them.

    Args:
        path: URI of a file, a folder or a pattern, a place with one, or the files themselves.
        images: Names that the column of images may have; the first that has any is used.
        required: Groups of column names to read; at least one of each group must be present.
        optional: Columns to read if present.
        listed: Small columns whose values are listed with the places, if present.
        image_folder: The folder that image names refer to, or its URI.
    """

    def __init__(
        self,
        path: str | Location | Sequence[Location],
        *,
        images: tuple[str, ...],
        required: tuple[tuple[str, ...], ...],
        optional: tuple[str, ...] = (),
        listed: tuple[str, ...] = (),
        image_folder: str | Location | None = None,
    ) -> None:
        place = locate(path) if isinstance(path, str) else path
        self._path = path
        self._fs = (place if isinstance(place, Location) else place[0]).fs
        self._images = images
        self._required = required
        self._listed = listed
        self._columns = {*images, *optional, *(name for names in required for name in names)}
        self._image_folder = image_folder
        self._group: tuple[tuple[str, int], pa.Table] | None = None
        """The row group that is held: its file and number, and its table."""
        self._labels: dict[str, list[str]] = {}
        """The names of labels in the columns of that row group."""
        self._unread: tuple[str, ...] = ()
        """The columns of its file that are not read."""

    @cached_property
    def _folder(self) -> Location | None:
        """The folder of images, or the inside of its archive. Raises: DataError."""
        folder = self._image_folder
        if folder is None:
            return None
        return open_packed(locate(folder) if isinstance(folder, str) else folder)

    def count(self) -> int:
        """Return the number of rows of all files, from their footers. Raises: DataError."""
        return sum(metadata.num_rows for _, metadata, _ in self._footers())

    def columns(self) -> set[str]:
        """Return the names of the columns of all files. Raises: DataError."""
        return {name for _, metadata, _ in self._footers() for name in _names(metadata)}

    def content_hash(self) -> str:
        """Return the SHA-256 of the files' sizes and footers, which hold the bounds of each column.

        Equal files hash equally wherever they are. The same rows from another writer hash
        differently, and a change that alters no size and no bound is not noticed.
        """
        digest = hashlib.sha256()
        for _, _, footer in self._footers():
            digest.update(footer)
        return digest.hexdigest()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the places of all rows, with the values of the listed columns.

        Raises:
            DataError: A file is damaged or there is none.
        """
        for location, metadata, _ in self._footers():
            there = _names(metadata)
            listed = [name for name in self._listed if name in there]
            notes: Iterator[dict[str, Any]] = repeat({})
            if listed:
                table = _read(location, partial(_read_columns, columns=listed))
                labels = _labels(table.schema)
                notes = (
                    {name: _named(value, labels.get(name)) for name, value in values.items()}
                    for values in table.to_pylist()
                )
            for group in range(metadata.num_row_groups):
                for row in range(metadata.row_group(group).num_rows):
                    place = {"file": location.path, "group": group, "row": row}
                    yield {"id": f"{location.name}#{group}/{row}", **next(notes), **place}

    def read(self, row: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Read a row: its columns except images, and references to its images.

        Raises:
            DataError: The file is damaged.
        """
        table, number = self._read_group(row["file"], row["group"]), row["row"]
        values = {
            name: _named(table[name][number].as_py(), self._labels.get(name))
            for name in table.column_names
            if name not in self._images
        }
        place = f"{row['file']}#{row['group']}/{number}"
        return values, [f"{place}/{position}" for position in range(len(self._cell(table, number)))]

    def load_image(self, reference: str) -> bytes:
        """Read an image by its place, or by the name stored there.

        Raises:
            SampleError: `missing_image` or `unsafe_path`.
            DataError: The file is damaged.
        """
        image: Any = reference
        if place := _PLACE.fullmatch(reference):
            file, group, row, position = place.groups()
            image = self._cell(self._read_group(file, int(group)), int(row))[int(position)]
        if isinstance(image, dict):
            image = image.get("path") if image.get("bytes") is None else image["bytes"]
        if isinstance(image, bytes):
            return image
        if not isinstance(image, str):
            raise SampleError("missing_image", f"{reference}: neither bytes nor a name")
        if (picture := embedded_picture(reference_of(image))) is not None:
            return picture
        if self._folder is None:
            raise SampleError("missing_image", f"{image}: a name, and image_folder is not set")
        return load_from_folder(self._folder, image)

    def _cell(self, table: pa.Table, row: int) -> list[Any]:
        """Return the images of a row, from the first column that holds any."""
        for _, cell in self._filled(table, row):
            return cell if isinstance(cell, list) else [cell]
        return []

    def _filled(self, table: pa.Table, row: int) -> Iterator[tuple[str, Any]]:
        """Yield the columns that hold images of a row, and what they hold."""
        for name in self._images:
            if name in table.column_names and (cell := table[name][row].as_py()):
                yield name, cell

    def _footers(self) -> Iterator[tuple[Location, Any, bytes]]:
        """Yield each file with its parsed footer, and with its size and footer as bytes."""
        files = self._path
        if isinstance(files, str | Location):
            files = find_files(files, ".parquet")
        for location in files:
            metadata, footer = _read(location, _footer)
            columns = _names(metadata)
            for names in self._required:
                if not set(names) & set(columns):
                    raise DataError(
                        f"path={location}: no column {' or '.join(names)}; its columns are "
                        f"{', '.join(columns)}: {_ADVICE if names[1:] else _ADVICE_FOR_ONE}"
                    )
            yield location, metadata, footer

    def _read_group(self, path: str, group: int) -> pa.Table:
        """Return a row group of a file, and hold it until another one is asked for."""
        if self._group is None or self._group[0] != (path, group):
            self._group = None  # free the last one before the next is read
            table = _read(Location(self._fs, path), partial(self._columns_of, group))
            self._group = (path, group), table
            self._labels = _labels(table.schema)
        return self._group[1]

    def _columns_of(self, group: int, file: BinaryIO) -> pa.Table:
        parquet = _open(file)
        there = parquet.schema_arrow.names
        columns = [name for name in there if name in self._columns]
        self._unread = tuple(name for name in there if name not in self._columns)
        return _read_pieces(parquet, group, columns)


class ParquetSource(ParquetFiles):
    """Samples of Parquet files of any origin."""

    def __init__(self, read: Parquet) -> None:
        self._id = read.id_column
        self._turns = read.turns_column
        chosen = (read.id_column, read.images_column)
        dialogues = (read.turns_column,) if read.turns_column else (*DIALOGUE_KEYS, *PAIRS)
        super().__init__(
            read.path,
            images=(read.images_column,) if read.images_column else IMAGE_KEYS,
            required=(dialogues, *((name,) for name in chosen if name)),
            optional=ROW_KEYS,
            image_folder=read.image_folder,
        )
        self._licence = read.licence

    def parse(self, row: dict[str, Any]) -> Record:
        """Interpret one row.

        Raises:
            SampleError: The turns are unreadable.
        """
        values, images = self.read(row)
        if self._turns:
            others = {*DIALOGUE_KEYS, *PAIRS} - {self._turns}
            values = {name: value for name, value in values.items() if name not in others}
            values["turns"] = values.pop(self._turns)
        if self._id:
            values["id"] = values.pop(self._id)
        record = dialogue(values, images, id=row["id"], licence=self._licence)
        table = self._read_group(row["file"], row["group"])
        several = sum(name in table.column_names for name in self._images) > 1
        unused = [name for name, _ in self._filled(table, row["row"])][1:] if several else []
        return replace(record, unread_keys=(*record.unread_keys, *unused, *self._unread))


def _read_pieces(parquet: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
    """Read columns of a row group in pieces of as many rows as Arrow can read at once.

    Raises:
        ArrowNotImplementedError: A single row holds more nested bytes than that.
    """
    metadata = parquet.metadata.row_group(group)
    size = metadata.num_rows
    if metadata.total_byte_size > PIECE_BYTES:
        size = max(1, size * PIECE_BYTES // metadata.total_byte_size)
    while True:
        try:
            if size >= metadata.num_rows:
                return parquet.read_row_group(group, columns=columns)
            pieces = parquet.iter_batches(size, row_groups=[group], columns=columns)
            return pa.Table.from_batches(pieces)
        except pa.ArrowNotImplementedError:  # rows differ in size, or decode to far more bytes
            if size == 1:
                raise
            size //= 2


def _names(metadata: Any) -> list[str]:
    """Return the names of the columns."""
    return list(metadata.schema.to_arrow_schema().names)


def _labels(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names of columns of labels, which Hugging Face stores as numbers."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"].items()
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {
        name: feature["names"]
        for name, feature in features
        if isinstance(feature, dict) and isinstance(feature.get("names"), list)
    }


def _named(value: Any, names: list[str] | None) -> Any:
    """Return the name of a label; -1 is that of none."""
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def _read_columns(file: BinaryIO, *, columns: list[str]) -> pa.Table:
    return _open(file).read(columns=columns)


def _open(file: BinaryIO) -> pq.ParquetFile:
    """Open a file in Arrow without the default limit of 100 MB on the size of its footer."""
    return pq.ParquetFile(
        file,
        page_checksum_verification=True,
        thrift_string_size_limit=_LARGEST_FOOTER,
        thrift_container_size_limit=_LARGEST_FOOTER,
    )


def _footer(file: BinaryIO) -> tuple[Any, bytes]:
    """Return the parsed footer, and the file's size and footer as bytes."""
    metadata = _open(file).metadata
    size = file.seek(0, 2)
    file.seek(size - 8 - metadata.serialized_size)
    return metadata, size.to_bytes(8) + file.read(metadata.serialized_size)


def _read(location: Location, read: Callable[[BinaryIO], _T]) -> _T:
    """Read a Parquet file. Raises: DataError."""
    try:
        return location.read_parquet(read)
    except DamagedFileError as error:
        raise damaged(location, "Parquet", error.reason) from error
    except FileNotFoundError as error:
        raise absent(location) from error
