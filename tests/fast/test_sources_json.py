"""JSON files as people have them."""

import gzip
import json
import random
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.data.sources import json_rows
from llavamed.data.sources.json_rows import BROKEN, stream_json
from llavamed.errors import DataError
from llavamed.storage.location import locate

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
rows = st.lists(st.dictionaries(st.text(), values, max_size=4), min_size=1, max_size=5)
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]


def write_list(items, ascii):
    return json.dumps(items, ensure_ascii=ascii)


def write_indented_list(items, ascii):
    return json.dumps(items, ensure_ascii=ascii, indent=1)


def write_lines(items, ascii):
    return "\n".join(json.dumps(item, ensure_ascii=ascii) for item in items)


def write_lines_of_windows(items, ascii):
    return "".join(json.dumps(item, ensure_ascii=ascii) + "\r\n\r\n" for item in items)


def write_concatenated(items, ascii):
    return "".join(json.dumps(item, ensure_ascii=ascii, indent=2) for item in items)


FORMS = [write_list, write_indented_list, write_lines, write_lines_of_windows, write_concatenated]


def read(folder, data):
    (folder / "rows.json").write_bytes(data)
    return list(stream_json(locate(f"{folder}/rows.json")))


def refusal(folder, data):
    with pytest.raises(DataError) as caught:
        read(folder, data)
    return str(caught.value).removeprefix(f"path={folder}/rows.json: ")


@given(
    items=rows,
    form=st.sampled_from(FORMS),
    encoding=st.sampled_from(ENCODINGS),
    ascii=st.booleans(),
    packed=st.booleans(),
    piece=st.integers(1, 40),
)
def test_rows_are_the_same_however_they_are_written(
    items, form, encoding, ascii, packed, piece, tmp_path_factory
):
    text = form(items, ascii)
    data = text.encode(encoding, "surrogatepass")
    folder = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "_PIECE", piece)
        assert read(folder, gzip.compress(data, mtime=0) if packed else data) == items


@given(items=rows, form=st.sampled_from(FORMS), data=st.data())
def test_a_file_cut_off_within_a_row_is_never_taken_for_a_whole_one(
    items, form, data, tmp_path_factory
):
    whole = form(items, True).rstrip()
    places = st.integers(1, len(whole) - 1)
    if ends := [row.end() for row in re.finditer(r"}(?=\s*{)", whole)]:
        places |= st.sampled_from(ends)
    cut = whole[: data.draw(places)].rstrip()
    folder = tmp_path_factory.getbasetemp()
    try:
        found = read(folder, cut.encode())
    except DataError as error:
        found = str(error)
    if isinstance(found, str):
        assert re.search(r"not JSON: .* at line [\d,]+, byte [\d,]+, near ", found)
    else:
        assert form not in (write_list, write_indented_list), "a list has an end"
        assert found == items[: len(found)], "the file ended between two rows"


@given(items=rows, data=st.data())
def test_a_broken_line_costs_its_own_row_alone(items, data, tmp_path_factory):
    lines = write_lines(items, True).split("\n")
    place = data.draw(st.integers(0, len(lines)))
    broken = data.draw(
        st.sampled_from(
            ['{"id": 1 "x": 2}', '{"id" 1}', '{"a": }', '{"id": "7}', "{]}", "{'a': 1}"]
        )
    )
    lines.insert(place, broken)
    folder = tmp_path_factory.getbasetemp()
    found = read(folder, "\n".join([*lines, '{"last": 1}']).encode())
    assert [row for row in found if BROKEN not in row] == [*items, {"last": 1}]
    (bad,) = (row[BROKEN] for row in found if BROKEN in row)
    assert f"line {place + 1}, byte " in bad


def test_a_broken_line_says_its_line_byte_and_surroundings(tmp_path):
    lines = ['{"id": "\u00e9"}', '{"id": "bad", "image": "a.png" "conversations": []}', '{"id": 3}']
    found = read(tmp_path, "\n".join(lines).encode())
    assert found[::2] == [{"id": "\u00e9"}, {"id": 3}]
    byte = len(lines[0].encode()) + 1 + lines[1].index('"conversations')
    assert found[1][BROKEN].startswith(f"Expecting ',' delimiter at line 2, byte {byte}, near '")
    assert '"image": "a.png" "conv' in found[1][BROKEN]


@pytest.mark.parametrize("form", ["[{}, {}, {}]", "{}\n{}\n{}"])
def test_a_row_in_which_a_key_has_two_values_is_rejected(form, tmp_path):
    turn = '{"from": "gpt", "value": "A knee.", "value": "A hip."}'
    same = '{"id": 1, "image": "a.png", "image": "a.png"}'
    rows = [
        same,
        f'{{"id": 2, "conversations": [{turn}]}}',
        '{"id": 3, "image": "a", "image": "b"}',
    ]
    found = read(tmp_path, form.format(*rows).encode())
    assert found[0] == {"id": 1, "image": "a.png"}
    for number, key in ((1, "value"), (2, "image")):
        assert found[number].keys() == {"id", BROKEN}
        assert found[number]["id"] == number + 1
        assert found[number][BROKEN].startswith(f"the key '{key}' has two values at line ")


def test_a_line_that_is_no_utf_8_costs_its_own_row_alone(tmp_path):
    found = read(tmp_path, b'{"id": 1}\n{"id": "caf\xe9"}\n{"id": 3}\n')
    assert found[::2] == [{"id": 1}, {"id": 3}]
    assert found[1][BROKEN].startswith(
        "b'\\xe9' is not UTF-8; save the file as UTF-8 at line 2, byte 21"
    )


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "not JSON: the file is empty; download or export the file again"),
        (b" \r\n\t ", "not JSON: the file is empty; download or export the file again"),
        (b"\xef\xbb\xbf", "not JSON: the file is empty; download or export the file again"),
        (b"id,image\n", "it begins with neither a bracket nor a brace at line 1, byte 0, near 'id"),
        (b'[{"id": 1},\n {"id"', "the file ends in the middle of it at line 2, byte 13, near "),
        (b'[{"id": 1}', "the file ends in the middle of it at line 1, byte 10, near "),
        (b'[{"id": "x', "the file ends in the middle of it at line 1, byte 1, near "),
        (b'{"id": 1}\n{"id"', "the file ends in the middle of it at line 2, byte 10, near "),
        (
            b'[{"id": 1} {"id": 2}]',
            "neither a comma nor the end of the list at line 1, byte 11, near ",
        ),
        (b'[{"id": 1},]', "Expecting value at line 1, byte 11, near "),
        (b"[1]\n[2]", "more text after the end of the list at line 2, byte 4, near "),
        (b'[{"id": "\xff"}]', "b'\\xff' is not UTF-8; save the file as UTF-8 at line 1, byte 9, "),
        (b"PK\x03\x04....", "is compressed by zip, and only gzip is read; unpack it"),
        (b"\x28\xb5\x2f\xfd..", "is compressed by zstd, and only gzip is read; unpack it"),
        (gzip.compress(b"[1, 2, 3]", mtime=0)[:-9], "not whole gzip: "),
    ],
)
def test_what_cannot_be_read_says_where_and_what(data, sentence, tmp_path):
    assert sentence in refusal(tmp_path, data)


def test_numbers_beyond_64_bits_and_what_python_writes_for_no_number_are_read(tmp_path):
    text = b'[{"id": 12345678901234567890123}, {"x": NaN, "y": -Infinity, "z": Infinity}]'
    assert read(tmp_path, text) == [
        {"id": 12345678901234567890123},
        {"x": None, "y": None, "z": None},
    ]


@pytest.mark.parametrize("row", ['{"n": ' + "9" * 5000 + "}", '{"n": ' + "[" * 200_000], ids=len)
def test_a_hostile_line_costs_its_own_row_alone(row, tmp_path):
    found = read(tmp_path, f'{{"id": 1}}\n{row}\n{{"id": 3}}'.encode())
    assert [found[0], found[-1]] == [{"id": 1}, {"id": 3}]
    assert BROKEN in found[1]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("broken", [False, True], ids=["good", "broken"])
def test_memory_does_not_grow_with_the_file(broken, packed, tmp_path):
    line = json.dumps({"text": "".join(random.Random(0).choices("ab c", k=500))}) + "\n"
    open_file = gzip.open if packed else open
    with open_file(tmp_path / "rows.json", "wb") as file:
        for number in range(20_000):
            file.write((line.replace(":", " ") if broken and number else line).encode())
    tracemalloc.start()
    found = sum(1 for _ in stream_json(locate(f"{tmp_path}/rows.json")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == 20_000
    assert peak < 2_000_000
