"""What the quarantine says of a row, whatever its source."""

import base64
import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.config.data import Dataset
from llavamed.config.load import parse_config
from llavamed.data.prepare.job import complete_dataset
from llavamed.data.prepare.shards import Chunk, ShardWriter
from llavamed.data.prepared.dataset import open_prepared
from llavamed.data.record import MAX_DETAIL, QUARANTINE_SCHEMA, quarantine_row, shorten
from llavamed.data.sources import open_source
from llavamed.errors import DataError, SampleError, StorageError
from llavamed.processor.image_files import to_png
from llavamed.storage.location import locate
from tests.support.manifests import dataset_manifest

DIALOGUE = [{"from": "human", "value": "What is this?"}, {"from": "gpt", "value": "A lung."}]


@pytest.fixture
def write(tiny_config, processor_folder, tmp_path):
    """Write one shard of rows of a `llava_json` dataset; gives its report and settings."""

    def call(rows):
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        tree = tiny_config.model_dump(mode="json") | {"storage": str(tmp_path)}
        read = {"source": "llava_json", "path": f"{tmp_path}/rows.json", "image_folder": "none"}
        tree["data"]["datasets"] = {"mine": {"read": read}} | tree["data"]["datasets"]
        config = parse_config(tree)
        listed = list(open_source(config.data.datasets["mine"].read).rows())
        report = ShardWriter(config, str(processor_folder)).write(Chunk("mine", 0, 0, listed))
        return report, config.data.datasets["mine"]

    return call


def test_the_quarantine_names_a_row_whatever_its_source(tiny_config, processor_folder, tmp_path):
    row = {"question": "Where?", "answer": "Here", "image_name": "a.jpg", "answer_type": "OPEN"}
    rows = [row | {"qid": 1}, row | {"qid": 2, "answer": None}]
    (tmp_path / "trainset.json").write_text(json.dumps(rows))
    turns = [
        {"from": "human", "value": "<image>\nWhat is this?"},
        {"from": "gpt", "value": "A lung."},
    ]
    table = pa.Table.from_pylist([{"id": "a", "image": b"x", "turns": turns}, {"turns": None}])
    pq.write_table(table, tmp_path / "x.parquet")
    reads = {"vqa_rad": str(tmp_path), "parquet": str(tmp_path / "x.parquet")}
    named = []
    for source, path in reads.items():
        tree = tiny_config.model_dump(mode="json") | {"storage": str(tmp_path)}
        tree["data"]["datasets"]["mine"] = {"read": {"source": source, "path": path}}
        config = parse_config(tree)
        rows = list(open_source(config.data.datasets["mine"].read).rows())
        report = ShardWriter(config, str(processor_folder)).write(Chunk("mine", 0, 0, rows))
        named += [(bad["id"], bad["reason"]) for bad in report.tables.quarantine.to_pylist()]
    assert named == [
        ("vqa-rad-train-1", "missing_image"),
        ("vqa-rad-train-2", "missing_key"),
        ("a", "corrupt_image"),
        ("x.parquet#0/1", "no_conversations"),
    ]


@given(text=st.text(st.characters(), max_size=3 * MAX_DETAIL))
def test_a_text_of_the_quarantine_is_short_and_can_be_stored(text):
    short = shorten(text)
    assert len(short) <= MAX_DETAIL
    short.encode()
    if len(text) <= MAX_DETAIL and text.isascii():
        assert short == text
    row = quarantine_row("s", 1, text, SampleError("why", text))
    pa.Table.from_pylist([row], QUARANTINE_SCHEMA)


def test_a_picture_as_text_does_not_lie_in_the_quarantine(write):
    megabytes = "A" * 3_000_000
    rows = [
        {"id": megabytes, "conversations": [{"from": "gpt", "value": [megabytes]}]},
        {"id": "b", "image": f"data:image/png;base64,{megabytes}!", "conversations": DIALOGUE},
        {"id": "c", "image": megabytes, "conversations": [{"from": "gpt", "value": 3}]},
    ]
    report, _ = write(rows)
    bad = report.tables.quarantine.to_pylist()
    assert [row["row"] for row in bad] == [0, 1, 2]
    assert all(len(row["detail"]) <= MAX_DETAIL and len(row["id"]) <= MAX_DETAIL for row in bad)
    assert "(3,000,000 characters)" in bad[0]["id"]


def test_a_picture_within_a_row_is_stored(write):
    picture = base64.b64encode(to_png(np.zeros((8, 8, 3), np.uint8))).decode()
    turns = [{"from": "human", "value": "<image>What?"}, DIALOGUE[1]]
    rows = [
        {"id": "a", "image": f"data:image/png;base64,{picture}", "conversations": turns},
        {"id": "b", "images": [{"bytes": picture, "path": None}], "conversations": turns},
    ]
    report, _ = write(rows)
    assert report.tables.quarantine.num_rows == 0
    assert report.tables.index["num_images"].to_pylist() == [1, 1]


def test_a_picture_of_one_pixel_stands_for_none(write):
    turns = [{"from": "human", "value": "<image>What?"}, DIALOGUE[1]]
    rows = [
        {
            "id": f"{size}",
            "image": {"bytes": base64.b64encode(to_png(np.zeros((*size, 3), np.uint8))).decode()},
            "conversations": turns,
        }
        for size in ((1, 1), (1, 2))
    ]
    report, _ = write(rows)
    [bad] = report.tables.quarantine.to_pylist()
    assert (bad["id"], bad["reason"]) == ("(1, 1)", "corrupt_image")
    assert bad["detail"] == "1x1 pixels, which stand for a missing picture"


@pytest.mark.parametrize(
    ("error", "is_quarantined"),
    [
        (TypeError("a template\nwants more"), True),
        (OverflowError("too much"), True),
        (StorageError("the server is away"), False),
        (DataError("the file is damaged"), False),
        (OSError("no more files"), False),
        (MemoryError(), False),
    ],
    ids=repr,
)
def test_a_sample_that_fails_for_a_reason_of_its_own_is_quarantined(
    error, is_quarantined, write, monkeypatch
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("llavamed.data.prepare.shards.encode", fail)
    rows = [{"id": "a", "conversations": DIALOGUE}]
    if is_quarantined:
        (bad,) = write(rows)[0].tables.quarantine.to_pylist()
        assert (bad["id"], bad["reason"]) == ("a", "failed")
        assert bad["detail"] == f"{type(error).__name__}: {error}"
    else:
        with pytest.raises(type(error)):
            write(rows)


def test_unread_keys_and_missing_names_are_said_once(write, tmp_path, caplog):
    rows = [{"id": name, "conversations": DIALOGUE, "note": "x"} for name in ("a", "a", "b", None)]
    rows[0]["more"] = 1
    report, settings = write(rows)
    assert report.unread_keys == {"note": 4, "more": 1}
    place = locate(str(tmp_path / "mine"))
    with caplog.at_level(logging.WARNING):
        complete_dataset(place, dataset_manifest(), [report, report], settings)
    assert caplog.messages == [
        "prepare mine: not used, with the number of samples: note (8), more (2)",
        "prepare mine: 2 samples have no id, and 4 the id of an earlier one",
    ]
    facts = open_prepared(place).manifest
    assert facts.unread_keys == {"note": 8, "more": 2}
    assert (facts.num_unnamed, facts.num_repeated_names) == (2, 4)


def test_texts_that_are_read_otherwise_than_written_are_told(write, tmp_path, caplog):
    greeting = {"from": "gpt", "value": "Hello."}
    cut = {"from": "gpt", "value": "A lung.</s> And </s> a heart."}
    blank = {"from": "system", "value": " "}
    rows = [
        {"id": "a", "conversations": [greeting, *DIALOGUE]},
        {"id": "b", "conversations": [DIALOGUE[0], cut]},
        {"id": "c", "conversations": DIALOGUE, "system": ""},
        {"id": "d", "conversations": [blank, *DIALOGUE]},
        {"id": "e", "conversations": [blank | {"value": "Be brief."}, *DIALOGUE]},
    ]
    report, settings = write(rows)
    with caplog.at_level(logging.WARNING):
        complete_dataset(locate(str(tmp_path / "mine")), dataset_manifest(), [report], settings)
    assert caplog.messages == [
        "prepare mine: not used, with the number of samples: an answer before the first question "
        "(1), the template's own system prompt, which a blank system turn replaces (1)",
        "prepare mine: texts that spell tokens which end an answer or mark a turn, and are read as "
        "these, with the number of samples: </s> (1)",
    ]


@pytest.mark.parametrize(
    ("num_bad", "num_good", "bound", "advice"),
    [
        (2, 8, 0.2, None),
        (29, 71, 0.29, None),
        (3, 8, 0.2, "then correct the source or raise the fraction$"),
        (2, 0, 1.0, "--quarantined --config FILE`, then correct the source$"),
        (1, 1, 1.0, None),
    ],
)
def test_a_bound_is_exceeded_by_more_and_not_by_as_much(
    num_bad, num_good, bound, advice, write, tmp_path
):
    good = [{"id": f"g{n}", "conversations": DIALOGUE} for n in range(num_good)]
    report, settings = write([{"id": "bad"}] * num_bad + good)
    settings = Dataset(read=settings.read, max_bad_fraction=bound)
    place = locate(str(tmp_path / "mine"))
    if advice is None:
        complete_dataset(place, dataset_manifest(), [report], settings)
        assert open_prepared(place).num_samples == num_good
    else:
        count = rf"{num_bad} of {num_bad + num_good} samples are unusable \({num_bad} no_conv"
        with pytest.raises(DataError, match=f"max_bad_fraction={bound}: {count}.*{advice}"):
            complete_dataset(place, dataset_manifest(), [report], settings)
