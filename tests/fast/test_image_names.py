"""Names of pictures: read alike on a disk and in a bucket, and never out of their folder."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.config.sources import LlavaJson, Parquet
from llavamed.data.sources import open_source
from llavamed.data.sources.files import load_image_file
from llavamed.data.sources.image_names import names_below
from llavamed.errors import DataError, SampleError
from llavamed.storage.location import locate
from tests.support.benchmark_files import pack

COMPOSED = "\u00e9t\u00e9.png"
FILES = ["a.png", "sub dir/a b.png", "per%20cent.png", "hash#1.png", "quest?x=1.png", "star*.png"]
FILES += ["br[1].png", "colon:1.png", "plus+plus.png", "back\\slash.png", "wide/1.png", COMPOSED]
FILES += [unicodedata.normalize("NFD", "\u00f6.png"), "tilde~'\"(1).png", "am&p;.png"]


@pytest.fixture(scope="module", params=["local", "s3"])
def folder(request, tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("names"))
    if request.param == "s3":
        uri = request.getfixturevalue("s3_uri") + "/names"
    place = locate(uri) / "data" / "images"
    for name in FILES:
        (place / name).write_bytes(name.encode())
    (place / ".." / "secret.png").write_bytes(b"secret")
    (locate(uri) / "data" / "images2" / "secret.png").write_bytes(b"secret")
    (locate(uri) / "data" / "secret.png").write_bytes(b"secret")
    return place


OTHER_NAMES = {
    "./a.png": "a.png",
    "sub dir/../a.png": "a.png",
    "sub dir//a b.png": "sub dir/a b.png",
    "sub dir/./a b.png": "sub dir/a b.png",
    "no such folder/../a.png": "a.png",
    "sub dir\\a b.png": "sub dir/a b.png",
    ".\\wide\\1.png": "wide/1.png",
    unicodedata.normalize("NFD", COMPOSED): COMPOSED,
    "\u00f6.png": FILES[-3],
}


def test_every_name_is_that_of_its_file(folder):
    for name in FILES:
        assert load_image_file(folder, name) == name.encode()
        assert load_image_file(folder, f"{folder}/{name}") == name.encode()
    for name, file in OTHER_NAMES.items():
        assert load_image_file(folder, name) == file.encode(), name
        if "\\" not in name:
            assert load_image_file(folder, f"{folder}/{name}") == file.encode(), name


def test_percent_signs_are_bytes_in_a_uri(folder):
    uri = str(folder) if "://" in str(folder) else f"file://{folder}"
    assert load_image_file(folder, f"{uri}/sub%20dir/a%20b.png") == b"sub dir/a b.png"
    assert load_image_file(folder, f"{uri}/per%20cent.png") == b"per%20cent.png"
    assert reason(folder, "sub%20dir/a%20b.png") == "missing_image"


def test_a_file_uri_is_a_path_of_this_machine(folder):
    if not folder.is_local:
        assert reason(folder, f"file://{folder.path}/a.png") == "unsafe_path"
        return
    for start in ("file://", "file://localhost", "FILE://", "file:"):
        assert load_image_file(folder, f"{start}{folder}/a.png") == b"a.png"


def reason(folder, name):
    with pytest.raises(SampleError) as caught:
        load_image_file(folder, name)
    return caught.value.reason


OUTSIDE = [
    "",
    ".",
    "..",
    "/",
    "../secret.png",
    "sub dir/../../secret.png",
    "..\\secret.png",
    "a\0b",
]
OUTSIDE += ["/a.png", "/etc/passwd", "file:///etc/passwd", "C:\\data\\a.png", "c:/data/a.png"]
OUTSIDE += ["file:///C:/data/a.png", "s3://other/a.png", "https://host/a.png", "gs://b/a.png"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_of_the_folder_is_refused(name, folder):
    assert reason(folder, name) == "unsafe_path"


@pytest.mark.parametrize("inner", ["../secret.png", "%2e%2e/secret.png", "../images2/secret.png"])
def test_a_full_name_that_leads_out_of_the_folder_is_refused(inner, folder):
    uri = str(folder) if "://" in str(folder) else f"file://{folder}"
    assert reason(folder, f"{uri}/{inner}") == "unsafe_path"
    assert reason(folder, f"{folder}2/secret.png") == "unsafe_path"


@pytest.mark.parametrize(
    "name", ["b.png", "sub dir", "a.png/", "a.png/b.png", "sub dir/", "n" * 300]
)
def test_a_name_of_no_file_is_a_missing_image(name, folder):
    assert reason(folder, name) == "missing_image"


parts = st.sampled_from(
    [".", "..", "", "a", "b c", "\u00e9", "\\", "..\\..", "%2e%2e", "s3:", "file:"]
)


@given(st.lists(parts, max_size=8).map("/".join))
def test_no_name_leads_out_of_its_folder(name):
    for uri in ("/data/images", "s3://bucket/images"):
        for start in ("", "/", f"{uri}/", f"file://{uri}/"):
            for inner in names_below(locate(uri), start + name):
                assert inner.split("/")[0] not in {"", ".", ".."}
                assert ".." not in inner.split("/")


def test_a_folder_that_is_a_link_is_known_by_both_names(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(b"a")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert load_image_file(locate(f"{tmp_path}/link"), f"{tmp_path}/real/a.png") == b"a"


def test_the_cases_of_names_are_read(folder, reference_data):
    file = reference_data / "cases/data/names/x.json"
    if not file.exists():
        pytest.skip("the cases are not here")
    (folder / "dbl" / "slash.png").write_bytes(b"dbl")
    read = LlavaJson(source="llava_json", path=str(file), image_folder=str(folder))
    source = open_source(read)
    for row in json.loads(file.read_text()):
        (name,) = source.parse(row).images
        if name in {"a.png/", "\u00e9t\u00e9 \u80ba.png"}:
            assert reason(folder, name) == "missing_image"
        else:
            assert source.load_image(name)


@pytest.mark.parametrize("top", ["", "images/"])
def test_a_zip_may_stand_in_the_place_of_its_folder(top, tmp_path):
    """Rows may name the only folder that an archive holds, or leave it out."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.png").write_bytes(b"a")
    pack(tmp_path / "x", tmp_path / "x.zip", top=top)
    folder = f"{tmp_path}/x.zip"
    for read in (
        LlavaJson(source="llava_json", path="none.json", image_folder=folder),
        Parquet(source="parquet", path="none.parquet", image_folder=folder),
    ):
        names = ["a.png", f"{top}a.png"]
        assert [open_source(read).load_image(name) for name in names] == [b"a", b"a"]


def test_another_archive_in_the_place_of_the_folder_is_refused_before_any_row(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"")
    (tmp_path / "a.json").write_text("[]")
    read = LlavaJson(
        source="llava_json", path=f"{tmp_path}/a.json", image_folder=f"{tmp_path}/x.tar"
    )
    with pytest.raises(DataError, match=r"x\.tar: of archives only zip is read in place; unpack"):
        open_source(read).count()
