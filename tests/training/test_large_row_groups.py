"""Shards are written so that Arrow can read them again."""

import numpy as np
import pytest

from llavamed.data.prepare import shards
from llavamed.errors import DataError
from tests.support.small_datasets import make_row


def test_a_row_group_that_nobody_could_read_is_never_written(monkeypatch):
    random = np.random.default_rng(0)
    rows = [make_row(random, number, 1) | {"pixels": [bytes(100)]} for number in range(8)]
    monkeypatch.setattr(shards, "MAX_GROUP_BYTES", 400)
    assert shards.shard_table(rows, 4).num_rows == 8
    advice = "800 bytes of images, and Arrow reads 400 at once; set it to 2, or data.store_images"
    with pytest.raises(DataError, match=f"data.row_group_size=8: 8 samples hold {advice} to pix"):
        shards.shard_table(rows, 8)
    assert shards.shard_table(rows, 2).num_rows == 8, "the advice is accepted"
