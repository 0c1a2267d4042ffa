"""Records of steps as columns: the same records again, in a fraction of the bytes."""

import json
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llavamed.storage.location import locate
from llavamed.train.history import to_records, to_table
from llavamed.train.metrics import StepRecord

RECORDS = st.lists(
    st.fixed_dictionaries(
        {"step": st.integers(1, 2**53), "loss": st.floats(allow_nan=False)},
        optional={"mfu": st.floats(allow_nan=False), "memory_bytes": st.integers(0, 2**53)},
    )
)


@given(RECORDS)
def test_columns_give_the_same_records(records: list[StepRecord]) -> None:
    assert to_records(to_table(records)) == records
    types = [[type(value) for _, value in sorted(record.items())] for record in records]
    again = to_records(to_table(records))
    assert [[type(value) for _, value in sorted(record.items())] for record in again] == types


def test_a_step_takes_a_fifth_of_its_bytes_as_json(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    names = ("loss", "grad_norm", "grad_norm.projector", "tokens_per_second", "step_seconds")
    records = [
        {
            "step": step,
            **{name: float(random.random()) for name in names},
            **dict.fromkeys(("learning_rate", "learning_rate.projector"), 1e-3 / step),
            "num_tokens": int(random.integers(1000, 4000)),
            "memory_bytes": 10**9,
        }
        for step in range(1, 5001)
    ]
    place = locate(str(tmp_path / "history.parquet"))
    place.write_table(to_table(records))
    assert to_records(place.read_table()) == records
    assert len(place.read_bytes()) < 0.2 * len(json.dumps(records, indent=2))
