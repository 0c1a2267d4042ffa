"""The records of a stage's steps as columns: a fifth of their size as JSON, and the same again."""

import pyarrow as pa

from llavamed.train.context import Record


def to_table(records: list[Record]) -> pa.Table:
    """A column a metric, a row a step; null where a step's record does not have the metric."""
    names = list(dict.fromkeys(name for record in records for name in record))
    return pa.table({name: [record.get(name) for record in records] for name in names})


def to_records(table: pa.Table) -> list[Record]:
    """What `to_table` was given."""
    rows = table.to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in rows]
