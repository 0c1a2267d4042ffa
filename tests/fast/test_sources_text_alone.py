"""A row without an image is a sample of text alone in every format that holds dialogues."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llavamed.config.sources import LlavaJson, Parquet, Read, Scans, WebDataset
from llavamed.data.record import check_record
from llavamed.data.sources import open_source
from llavamed.errors import SampleError

TURNS = [{"from": "human", "value": "What is a lung?"}, {"from": "gpt", "value": "An organ."}]
ROW = {"id": "1", "conversations": TURNS}
MARKED = {"id": "1", "conversations": [{**TURNS[0], "value": "<image>\nWhere?"}, TURNS[1]]}


def as_json(folder: Path, row: dict) -> Read:
    (folder / "rows.json").write_text(json.dumps([row]))
    path = str(folder / "rows.json")
    return LlavaJson(source="llava_json", path=path, image_folder=str(folder))


def as_scans(folder: Path, row: dict) -> Read:
    as_json(folder, row)
    return Scans(source="scans", path=str(folder / "rows.json"), image_folder=str(folder))


def as_parquet(folder: Path, row: dict) -> Read:
    pq.write_table(pa.Table.from_pylist([row]), folder / "rows.parquet")
    return Parquet(source="parquet", path=str(folder / "rows.parquet"))


def as_parquet_with_images(folder: Path, row: dict) -> Read:
    images = pa.array([[]], pa.list_(pa.binary()))
    table = pa.Table.from_pylist([row]).append_column("images", images)
    pq.write_table(table, folder / "rows.parquet")
    return Parquet(source="parquet", path=str(folder / "rows.parquet"))


def as_tar(folder: Path, row: dict) -> Read:
    data = json.dumps(row).encode()
    with tarfile.open(folder / "rows.tar", "w") as archive:
        member = tarfile.TarInfo("1.json")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return WebDataset(source="webdataset", path=str(folder / "rows.tar"))


FORMATS = [as_json, as_scans, as_parquet, as_parquet_with_images, as_tar]


@pytest.mark.parametrize("write", FORMATS)
def test_a_row_without_an_image_is_a_sample(write, tmp_path):
    source = open_source(write(tmp_path, ROW))
    (row,) = source.rows()
    record = source.parse(row)
    check_record(record)
    assert record.images == ()
    assert [turn.text for turn in record.turns] == ["What is a lung?", "An organ."]


@pytest.mark.parametrize("write", FORMATS)
def test_a_mark_without_its_image_is_refused(write, tmp_path):
    source = open_source(write(tmp_path, MARKED))
    (row,) = source.rows()
    with pytest.raises(SampleError, match="placeholder_mismatch: 1 <image> in the text, 0 images"):
        check_record(source.parse(row))


@pytest.mark.parametrize("name", ["1.png", "scans/7.DCM", "head.nii.gz "])
@pytest.mark.parametrize("write", [as_json, as_scans, as_tar])
def test_a_picture_under_a_key_that_is_not_read_is_no_text_alone(write, name, tmp_path):
    """A model would be trained without the pictures that its user believes it sees."""
    source = open_source(write(tmp_path, ROW | {"note": name}))
    (row,) = source.rows()
    with pytest.raises(SampleError, match=r"missing_image: note is '.*', and only image is read"):
        source.parse(row)
