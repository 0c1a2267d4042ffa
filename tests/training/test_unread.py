"""What of a sample nobody reads, and names that cannot be written down."""

import io
import json
import tarfile

import pytest

from llavamed.config.load import parse_config
from llavamed.data.prepare.shards import Chunk, ShardWriter
from llavamed.data.sources import open_source
from llavamed.processor.image_files import PAGES, TRANSPARENCY
from tests.support.image_files import encoded, photo


@pytest.fixture
def prepare(tiny_config, processor_folder, tmp_path):
    """Write one shard of a source; gives its report."""

    def call(**read):
        tree = tiny_config.model_dump(mode="json") | {"storage": str(tmp_path)}
        tree["data"]["datasets"]["mine"] = {"read": read}
        config = parse_config(tree)
        rows = list(open_source(config.data.datasets["mine"].read).rows())
        return ShardWriter(config, str(processor_folder)).write(Chunk("mine", 0, 0, rows))

    return call


def dialogue(number, images):
    question = "<image>" * len(images) + "What is this?"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "A lung."}]
    return {"id": str(number), "image": images, "conversations": turns}


def write_tar(path, **members):
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_what_is_not_read_of_pictures_is_counted_by_samples(prepare, tmp_path):
    picture = photo(20, 20)
    see_through = picture.convert("RGBA")
    see_through.putalpha(picture.convert("L"))
    files = {
        "plain.png": encoded(picture),
        "alpha.png": encoded(see_through),
        "pages.tif": encoded(picture, "TIFF", save_all=True, append_images=[picture]),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    named = [["plain.png"], ["alpha.png", "alpha.png"], ["alpha.png", "pages.tif"]]
    rows = [dialogue(number, names) for number, names in enumerate(named)]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    report = prepare(source="llava_json", path=f"{tmp_path}/x.json", image_folder=str(tmp_path))
    assert report.tables.index.num_rows == 3
    assert report.unread_keys == {TRANSPARENCY: 2, PAGES: 1}


def test_members_of_an_archive_that_are_not_read_are_counted(prepare, tmp_path):
    picture, members = encoded(photo(20, 20), "JPEG"), {}
    for number in range(3):
        members |= {f"{number}.jfif": picture, f"{number}.txt": b"A lung.", f"{number}.cls": b"1"}
    write_tar(tmp_path / "x.tar", **members)
    report = prepare(source="webdataset", path=f"{tmp_path}/x.tar")
    assert report.tables.index.num_rows == 3
    assert report.unread_keys == {"cls members": 3}


def test_half_a_character_in_a_name_is_written_into_the_quarantine(prepare, tmp_path):
    write_tar(tmp_path / "x.tar", **{"caf\udce9.txt": b"{}", "\udce9\udce9.json": b"{}"})
    quarantine = prepare(source="webdataset", path=f"{tmp_path}/x.tar").tables.quarantine
    assert quarantine["reason"].to_pylist() == ["not_unicode", "no_conversations"]
