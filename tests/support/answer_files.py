"""Write answers as a file that an evaluation reads."""

from collections.abc import Iterable, Iterator
from itertools import islice

from llavamed.evaluate.answers import Answer, to_table, write_tables
from llavamed.storage.location import Location


def write_answers(folder: Location, answers: Iterable[Answer], rows_per_group: int = 1024) -> int:
    """Write `answers.parquet` into a folder and return the number of rows."""

    def groups() -> Iterator[list[Answer]]:
        rows = iter(answers)
        while group := list(islice(rows, rows_per_group)):
            yield group

    return write_tables(folder, map(to_table, groups()))
