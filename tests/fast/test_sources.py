import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llavamed.config.sources import LlavaJson, Parquet
from llavamed.data.record import Record
from llavamed.data.sources import open_source
from llavamed.errors import DataError
from llavamed.processor.turns import Turn
from tests.support.refused_samples import refusal

DIALOGUE = [
    {"from": "human", "value": "<image>\nWhat is shown?"},
    {"from": "gpt", "value": "A lung."},
]


def llava(folder, items=(), *, text=None, **settings):
    """A LLaVA source over a file with these items, or this very text."""
    file = folder / "list.json"
    file.write_bytes(json.dumps(items).encode() if text is None else text)
    return open_source(
        LlavaJson(
            source="llava_json", path=str(file), image_folder=str(folder / "images"), **settings
        )
    )


def item(**changes):
    return {"id": "7", "image": "a.jpg", "conversations": DIALOGUE} | changes


def test_a_llava_item_is_understood(tmp_path):
    domain = {"chest_xray": False, "mri": True, "histology": False}
    source = llava(tmp_path, [item(domain=domain)], licence="CC-BY-4.0")
    assert [source.parse(row) for row in source.rows()] == [
        Record(
            id="7",
            images=("a.jpg",),
            turns=(Turn("user", "<image>\nWhat is shown?"), Turn("assistant", "A lung.")),
            domain="mri",
            licence="CC-BY-4.0",
        )
    ]
    assert source.count() == 1


@pytest.mark.parametrize("key", ["conversations", "conversatons"])
def test_both_spellings_of_the_dialogue_are_read(key, tmp_path):
    row = {"id": 1, "image": "a.jpg", key: DIALOGUE}
    assert llava(tmp_path).parse(row).turns[1] == Turn("assistant", "A lung.")


@pytest.mark.parametrize(
    ("image", "names"),
    [(["a.jpg", "b.jpg"], ("a.jpg", "b.jpg")), ([], ()), (None, ()), ("", ()), ([3], ("3",))],
    ids=["two", "empty list", "null", "empty name", "number"],
)
def test_an_item_has_any_number_of_images(image, names, tmp_path):
    assert llava(tmp_path).parse(item(image=image)).images == names


def test_optional_fields_of_an_item_are_kept(tmp_path):
    source = llava(tmp_path)
    record = source.parse(item(domain="ct", answer_type="CLOSED ", question_type="Organ"))
    assert (record.domain, record.answer_type, record.question_type) == ("ct", "CLOSED", "Organ")
    assert source.parse({"conversations": DIALOGUE}) == Record("", (), record.turns)


UNUSABLE = {
    "no dialogue": ({"id": "7"}, ("no_conversations", "keys: id")),
    "dialogue is text": (item(conversations="hello"), ("not_json", "Expecting value")),
    "dialogue is a number": (item(conversations=3), ("no_conversations", "keys: ")),
    "no mapping": ({"item": 3}, ("no_conversations", "keys: item")),
    "unknown role": (
        item(conversations=[{"from": "doctor", "value": "hm"}]),
        ("unknown_role", "'from' is 'doctor'; known are human, user, gpt, assistant"),
    ),
    "role is a list": (item(conversations=[{"from": []}]), ("unknown_role", "'from' is []")),
    "turn is text": (
        item(conversations=["hello"]),
        ("no_text", "'conversations' is a list of 'hello', not of turns"),
    ),
    "several answers": (
        {"question": "Where?", "answer": ["left", "apex"]},
        ("no_text", "'answer' is a list of 'left', not of turns"),
    ),
    "part is text": (
        item(conversations=[{"from": "gpt", "value": ["left"]}]),
        ("no_text", "a part is 'left'; known are text and image"),
    ),
    "no text": (
        item(conversations=[{"from": "gpt", "value": None}]),
        ("no_text", "'value' of a gpt turn is null"),
    ),
    "text absent": (item(conversations=[{"from": "human"}]), ("no_text", "human turn is null")),
}


@pytest.mark.parametrize(("row", "expected"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_item_is_refused_with_a_reason(row, expected, tmp_path):
    source = llava(tmp_path, [row.get("item", row)])
    assert list(source.rows()) == [row]
    reason, detail = refusal(source.parse, row)
    assert reason == expected[0]
    assert expected[1] in detail


def test_json_lines_are_read_as_a_list_is(tmp_path):
    lines = "\n\n".join(json.dumps(item(id=number)) for number in range(3))
    source = llava(tmp_path, text=f"{lines}\n".encode())
    assert list(source.rows()) == list(llava(tmp_path, [item(id=n) for n in range(3)]).rows())


NO_LIST = {
    "empty": b"",
    "cut off": b'[{"id": 1}, {"id"',
    "lines cut off": b'{"id": 1}\n{"id"',
    "no lines": b'{"id": 1}\n[2',
    "page": b"<html>",
    "bytes": b'[{"id": "\xff"}]',
    "two lists": b"[1] [2]",
}


@pytest.mark.parametrize("text", NO_LIST.values(), ids=NO_LIST)
def test_a_file_that_is_no_list_is_refused_in_one_line(text, tmp_path):
    source = llava(tmp_path, text=text)
    with pytest.raises(DataError, match=r"list\.json: not JSON: .*; download or") as caught:
        list(source.rows())
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_named(tmp_path):
    source = llava(tmp_path)
    (tmp_path / "list.json").unlink()
    for call in (source.count, source.content_hash, lambda: list(source.rows())):
        with pytest.raises(DataError, match=r"path=/.*/list\.json: no such file; check"):
            call()


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path):
    read = LlavaJson(source="llava_json", path=str(tmp_path), image_folder=str(tmp_path))
    for call in (open_source(read).count, open_source(read).content_hash):
        with pytest.raises(DataError, match=r"is a folder; name the file in it$"):
            call()


def test_a_long_list_is_streamed_not_loaded(tmp_path):
    text = "x" * 2000
    source = llava(tmp_path, [item(id=number, note=text) for number in range(5000)])
    size = (tmp_path / "list.json").stat().st_size
    tracemalloc.start()
    rows = source.rows()
    assert next(rows)["id"] == 0
    assert source.count() == 5000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 5


def test_equal_content_has_an_equal_hash_wherever_it_lies(tmp_path):
    (tmp_path / "other").mkdir()
    one, two = llava(tmp_path, [item()]), llava(tmp_path / "other", [item()])
    assert one.content_hash() == two.content_hash()
    assert one.content_hash() != llava(tmp_path, [item(id="8")]).content_hash()


def test_images_are_found_below_their_folder(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "b.jpg").write_bytes(b"data")
    source = llava(tmp_path)
    assert source.load_image("a/b.jpg") == b"data"
    assert source.load_image("a/../a/./b.jpg") == b"data"


@pytest.mark.parametrize("name", ["b.jpg", "a", "a/b.jpg/c", "n" * 300], ids=lambda name: name[:9])
def test_an_absent_image_spoils_its_sample_alone(name, tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "b.jpg").write_bytes(b"data")
    reason, detail = refusal(llava(tmp_path).load_image, name)
    assert reason == "missing_image"
    assert detail.startswith(f"{tmp_path}/images/{name}: ")


@pytest.mark.parametrize(
    "name", ["../list.json", "a/../../b", "/etc/passwd", "..", ".", "", "a\0b"]
)
def test_an_image_outside_its_folder_is_never_opened(name, tmp_path):
    (tmp_path / "images").mkdir()
    assert refusal(llava(tmp_path).load_image, name) == (
        "unsafe_path",
        f"image {name!r} is not below the image folder",
    )


def test_json_lines_and_a_list_are_the_same(tmp_path):
    items = [item(id=number, note="\u00e9 {") for number in range(3)] + ["text"]
    lines = "\n".join(json.dumps(one) for one in items[:3]) + '\n\n"text"\n'
    assert list(llava(tmp_path, text=lines.encode()).rows()) == list(llava(tmp_path, items).rows())


def test_turns_of_other_spellings_are_the_same(tmp_path):
    source = llava(tmp_path)
    wanted = source.parse(item())
    roles = [("user", "<image>\nWhat is shown?"), ("assistant", "A lung.")]
    for key in ("content", "text"):
        turns = [{"role": role, key: text} for role, text in roles]
        assert source.parse({"id": 7, "images": ["a.jpg"], "turns": turns}) == wanted
        assert source.parse(item(conversations=json.dumps(turns))) == wanted
    assert refusal(source.parse, item(conversations=[{"role": "user", "value": "hm"}])) == (
        "no_text",
        "'content' or 'text' of a user turn is null",
    )


def test_a_row_s_own_licence_comes_before_the_dataset_s(tmp_path):
    source = llava(tmp_path, licence="CC-BY-4.0")
    assert source.parse(item(licence="CC0-1.0", pmid=123)).licence == "CC0-1.0"
    assert source.parse(item(licence=None, pmid=123)).pmid == "123"
    assert source.parse(item(licence=None)).licence == "CC-BY-4.0"


@pytest.mark.parametrize("source", ["list", "parquet"])
def test_an_absent_folder_of_images_ends_the_preparation(source, tmp_path):
    found = llava(tmp_path, [item()])
    folder = tmp_path / "images"
    if source == "parquet":
        table = pa.table({"image": ["a.jpg"], "conversations": [DIALOGUE]})
        pq.write_table(table, tmp_path / "rows.parquet")
        read = {"source": "parquet", "path": f"{tmp_path}/rows.parquet"}
        found = open_source(Parquet(**read, image_folder=str(folder)))
    (image,) = found.parse(next(iter(found.rows()))).images
    with pytest.raises(DataError, match=rf"^image_folder={folder}: no such folder, .*; correct"):
        found.load_image(image)
    folder.mkdir()
    assert refusal(found.load_image, image)[0] == "missing_image"
