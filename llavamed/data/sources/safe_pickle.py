"""Read pickles of plain data (lists, mappings, texts, numbers) without running any code.

A pickle is a program that may call anything it can name. Here it can name nothing. Its sizes are
checked before it runs, since the file itself says how much memory to allocate.
"""

import io
import pickle
import pickletools
from collections.abc import Iterator
from typing import Any, NoReturn

from llavamed.data.sources.files import damaged, open_file
from llavamed.errors import DataError
from llavamed.storage.location import Location

MAX_BYTES = 64 << 20
"""The largest pickle to read, in bytes; the published ones have a few million."""

_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_DAMAGE = (
    pickle.UnpicklingError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
)


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes, location: Location, encoding: str) -> None:
        super().__init__(io.BytesIO(data), encoding=encoding)
        self._location = location

    def find_class(self, module: str, name: str) -> NoReturn:
        raise _refused(self._location, f"{module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _refused(self._location, "an object outside the file")


def read_safe_pickle(location: Location) -> Any:
    """Return the content of a pickle. Texts of Python 2 are read as UTF-8, or otherwise as Latin-1.

    Raises:
        DataError: The file is absent, damaged or too large, or asks for anything but plain data.
    """
    with open_file(location) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise DataError(
            f"path={location}: a pickle of more than {MAX_BYTES:,} bytes is not read; download "
            "the file again"
        )
    try:
        _check_sizes(data, location)
        try:
            return _PlainUnpickler(data, location, "utf-8").load()
        except UnicodeDecodeError:
            return _PlainUnpickler(data, location, "latin-1").load()
    except _DAMAGE as error:
        raise damaged(location, "a pickle of plain data", error) from error


def _check_sizes(data: bytes, location: Location) -> None:
    """Raise an error if the memo has gaps, which would be allocated, or an extension code is used.

    Walking through the operations also finds every text that claims to be longer than the file.

    Raises:
        ValueError: The pickle is damaged.
        DataError: It asks for a class by its extension code.
    """
    for number, (name, argument) in enumerate(_operations(io.BytesIO(data))):
        if name in {"PUT", "BINPUT", "LONG_BINPUT"} and argument > number:
            raise ValueError(f"its memo has a place {argument} after {number} operations")
        if name.startswith("EXT"):
            raise _refused(location, f"the class of extension code {argument}")


def _operations(file: io.BytesIO) -> Iterator[tuple[str, Any]]:
    """Yield each operation with its argument, as `pickletools.genops`, for texts of Python 2 too.

    These texts need not be ASCII and end with their line.
    """
    while code := file.read(1):
        opcode = _OPCODES.get(code.decode("latin-1"))
        if opcode is None:
            raise ValueError(f"there is no operation {code!r}")
        if opcode.name == "STRING":
            yield opcode.name, file.readline()
        else:
            yield opcode.name, opcode.arg.reader(file) if opcode.arg else None
        if opcode.name == "STOP":
            return
    raise ValueError("it ends without a stop")


def _refused(location: Location, name: str) -> DataError:
    return DataError(
        f"path={location}: the pickle asks for {name}, and only plain lists, mappings, texts and "
        "numbers are read; do not trust this file, download it again from its publisher"
    )
