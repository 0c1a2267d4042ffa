"""The columns of Parquet files as hub sets have them."""

import pyarrow as pa
import pytest

from llavamed.config.sources import Parquet
from llavamed.data.sources import fetch_image, open_source
from llavamed.errors import SampleError
from llavamed.processor.turns import Turn
from llavamed.storage.location import locate


def parquet(folder, rows, schema=None, **settings):
    locate(f"{folder}/x.parquet").write_table(pa.Table.from_pylist(rows, schema))
    source = open_source(Parquet(source="parquet", path=f"{folder}/x.parquet", **settings))
    return source, [source.parse(row) for row in source.rows()]


def test_questions_and_answers_are_columns_as_any_hub_set_has_them(tmp_path):
    rows = [
        {"image": {"bytes": b"one", "path": None}, "question": "Is it?", "answer": "yes", "qid": 1},
        {"image": {"bytes": b"two", "path": None}, "question": "What?", "answer": "A.", "qid": 2},
    ]
    source, records = parquet(tmp_path, rows)
    assert [record.turns for record in records] == [
        (Turn("user", "<image>\nIs it?"), Turn("assistant", "yes")),
        (Turn("user", "<image>\nWhat?"), Turn("assistant", "A.")),
    ]
    assert [record.answer_type for record in records] == ["CLOSED", "OPEN"]
    assert [record.id for record in records] == ["1", "2"]
    assert [source.load_image(record.images[0]) for record in records] == [b"one", b"two"]


def test_a_column_of_systems_and_of_weights_is_read_and_others_are_named(tmp_path):
    talk = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A."}]
    rows = [
        {"messages": talk, "system": "Be brief.", "weight": None, "split": "train", "x": 1},
        {"messages": talk, "system": None, "weight": 0, "split": "train", "x": 1},
    ]
    _, (first, second) = parquet(tmp_path, rows)
    assert first.turns[0] == Turn("system", "Be brief.")
    assert [turn.trained for turn in first.turns] == [True] * 3
    assert [turn.trained for turn in second.turns] == [False] * 2
    assert first.unread_keys == second.unread_keys == ("split", "x")


def test_a_column_of_films_refuses_the_rows_that_have_one(tmp_path):
    talk = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A."}]
    rows = [{"messages": talk, "videos": None}, {"messages": talk, "videos": ["a.mp4"]}]
    locate(f"{tmp_path}/x.parquet").write_table(pa.Table.from_pylist(rows))
    source = open_source(Parquet(source="parquet", path=f"{tmp_path}/x.parquet"))
    first, second = source.rows()
    assert source.parse(first).turns[0] == Turn("user", "What?")
    with pytest.raises(SampleError) as caught:
        source.parse(second)
    assert caught.value.reason == "unsupported_key"


def test_images_are_taken_from_the_column_that_holds_one(tmp_path):
    talk = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "A."}]
    rows = [
        {"image": None, "images": [b"one"], "messages": talk},
        {"image": b"two", "images": [], "messages": talk},
    ]
    source, records = parquet(tmp_path, rows)
    images = [[source.load_image(image) for image in record.images] for record in records]
    assert images == [[b"one"], [b"two"]]


def test_a_second_column_of_images_is_named(tmp_path):
    talk = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "A."}]
    rows = [
        {"image": b"one", "images": [b"two"], "image_path": "", "messages": talk},
        {"image": b"one", "images": [], "image_path": "1.jpg", "messages": talk},
    ]
    source, (first, second) = parquet(tmp_path, rows)
    assert source.load_image(first.images[0]) == source.load_image(second.images[0]) == b"one"
    assert (first.unread_keys, second.unread_keys) == (("images",), ("image_path",))


def test_pictures_within_the_parts_of_a_parquet_file_are_read(tmp_path):
    part = pa.struct(
        [
            ("type", pa.string()),
            ("text", pa.string()),
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ]
    )
    turn = pa.struct([("role", pa.string()), ("content", pa.list_(part))])
    asked = [
        {"type": "image", "text": None, "image": {"bytes": b"one", "path": None}},
        {"type": "image", "text": None, "image": {"bytes": None, "path": "b.png"}},
        {"type": "text", "text": "What?", "image": None},
    ]
    answered = [{"type": "text", "text": "A.", "image": None}]
    rows = [
        {
            "messages": [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": answered},
            ]
        }
    ]
    (tmp_path / "b.png").write_bytes(b"two")
    schema = pa.schema([("messages", pa.list_(turn))])
    source, (record,) = parquet(tmp_path, rows, schema, image_folder=str(tmp_path))
    assert record.turns == (Turn("user", "<image>\n<image>\nWhat?"), Turn("assistant", "A."))
    assert [fetch_image(source, image) for image in record.images] == [b"one", b"two"]
