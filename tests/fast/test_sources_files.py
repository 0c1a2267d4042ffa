import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.config.sources import Parquet, PathVqa
from llavamed.data.sources import open_source
from llavamed.data.sources.files import find_files
from llavamed.errors import DamagedFileError, DataError, SampleError, StorageError
from llavamed.storage.location import locate

NAMES = ["a/7.tar", "a/8.tar", "a/9.tar", "a/10.tar", "b[1].tar", "c.tar.part", "_d.tar", ".e.tar"]


@pytest.fixture(scope="module", params=["local", "s3"])
def place(request, tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("files"))
    if request.param == "s3":
        uri = request.getfixturevalue("s3_uri") + "/files"
    for name in NAMES:
        (locate(uri) / name).write_bytes(b"")
    return locate(uri)


FOUND = {
    "a/7.tar": ["a/7.tar"],
    "c.tar.part": ["c.tar.part"],
    "a": ["a/10.tar", "a/7.tar", "a/8.tar", "a/9.tar"],
    "a/": ["a/10.tar", "a/7.tar", "a/8.tar", "a/9.tar"],
    "": ["a/10.tar", "a/7.tar", "a/8.tar", "a/9.tar", "b[1].tar"],
    "a/*.tar": ["a/10.tar", "a/7.tar", "a/8.tar", "a/9.tar"],
    "*": ["b[1].tar"],
    "a/[78].tar": ["a/7.tar", "a/8.tar"],
    "a/{8..10}.tar": ["a/8.tar", "a/9.tar", "a/10.tar"],
    "b[1].tar": ["b[1].tar"],
}


@pytest.mark.parametrize("pattern", FOUND, ids=lambda pattern: pattern or "folder")
def test_a_path_stands_for_files(pattern, place):
    uri = f"{place}/{pattern}" if pattern else str(place)
    assert [str(file) for file in find_files(uri, ".tar")] == [
        f"{place}/{name}" for name in FOUND[pattern]
    ]


@pytest.mark.parametrize("pattern", ["x.tar", "x", "x*", "a/{9..11}.tar", "a/{09..10}.tar"])
def test_a_path_without_files_is_named(pattern, place):
    with pytest.raises(
        DataError, match=r"path=.*: no \*\.tar file there; check the dataset's path"
    ):
        find_files(f"{place}/{pattern}", ".tar")


def test_a_dataset_saved_to_disk_is_not_parquet(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "data-00000-of-00001.arrow").touch()
    with pytest.raises(DataError, match="holds Arrow files, as `save_to_disk` writes; write each"):
        find_files(str(tmp_path), ".parquet")


ROWS = [
    {"id": "a", "image": b"x" * 50, "turns": [{"role": "user", "content": "A?"}]},
    {"id": "b", "image": b"y" * 50, "turns": None},
]


def parquet(folder, **settings):
    return open_source(Parquet(source="parquet", path=str(folder), **settings))


@pytest.fixture
def file(tmp_path):
    place = locate(str(tmp_path)) / "x.parquet"
    place.write_table(pa.Table.from_pylist(ROWS), row_group_size=1)
    return tmp_path / "x.parquet"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"<html>",
        lambda data: data[:-20],
        lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1",
        lambda data: data[:-100] + b"\xff" * 92 + data[-8:],
    ],
    ids=["empty", "page", "cut off", "length", "footer"],
)
def test_a_damaged_parquet_file_is_named(damage, file):
    file.write_bytes(damage(file.read_bytes()))
    source = parquet(file)
    for call in (source.count, source.content_hash, lambda: list(source.rows())):
        with pytest.raises(DataError, match=r"path=/.*/x\.parquet: not Parquet: .*; download"):
            call()


def test_a_damaged_row_group_is_named_where_it_is_read(file):
    data = file.read_bytes()
    file.write_bytes(data[:10] + b"\xff" * 30 + data[40:])
    source = parquet(file)
    first, second = source.rows()
    with pytest.raises(DataError, match=r"x\.parquet: not Parquet: .*; download") as caught:
        source.parse(first)
    assert not isinstance(caught.value, SampleError)
    with pytest.raises(SampleError, match="no_conversations: keys: id, turns"):
        source.parse(second)


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"turns_column": "talk"}, "talk"),
        ({"images_column": "scan"}, "scan"),
        ({"id_column": "name"}, "name"),
    ],
    ids=["turns", "images", "id"],
)
def test_a_column_that_is_not_there_is_named(settings, missing, file):
    for call in (parquet(file, **settings).count, lambda: next(parquet(file, **settings).rows())):
        with pytest.raises(
            DataError, match=rf"no column {missing}; its columns are id, image, turns: name the"
        ):
            call()


def test_parquet_without_any_turns_is_no_dataset(tmp_path):
    locate(f"{tmp_path}/data/train-0.parquet").write_table(pa.table({"image": [b"x"]}))
    with pytest.raises(
        DataError,
        match=r"no column conversations or .* or messages or texts or question or .*; its columns "
        "are image: name the one with dialogues in turns_column, or rename those of questions and ",
    ):
        parquet(tmp_path).count()
    with pytest.raises(DataError, match="no column question; its columns are image"):
        open_source(PathVqa(source="path_vqa", path=str(tmp_path))).count()


@given(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=20), piece=st.integers(1, 5000))
def test_a_large_row_group_is_read_in_pieces(sizes, piece, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    rows = [
        {
            "id": str(number),
            "image": [{"bytes": b"%d" % number * size, "path": None}],
            "turns": "[]",
        }
        for number, size in enumerate(sizes)
    ]
    locate(f"{folder}/x.parquet").write_table(pa.Table.from_pylist(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llavamed.data.sources.parquet.PIECE_BYTES", piece)
        source = parquet(folder)
        found = [source.parse(row) for row in source.rows()]
        images = [source.load_image(record.images[0]) for record in found]
    assert [record.id for record in found] == [row["id"] for row in rows]
    assert images == [row["image"][0]["bytes"] for row in rows]


@pytest.mark.parametrize("error", [pa.ArrowNotImplementedError, pa.ArrowCapacityError])
def test_a_limit_of_arrow_is_no_damage_and_not_tried_again(error, file):
    reads = []

    def read(_):
        reads.append(1)
        raise error("Nested data conversions not implemented")

    with pytest.raises(
        StorageError, match=r"Arrow cannot read it \(Nested .*; write it again"
    ) as e:
        locate(str(file)).read_parquet(read)
    assert not isinstance(e.value, DamagedFileError)
    assert len(reads) == 1
