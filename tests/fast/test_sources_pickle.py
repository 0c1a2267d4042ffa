import builtins
import os
import pickle
import struct
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llavamed.config.sources import PathVqa
from llavamed.data.record import check_record
from llavamed.data.sources import open_source, safe_pickle
from llavamed.data.sources.safe_pickle import read_safe_pickle
from llavamed.errors import DataError, SampleError
from llavamed.storage.location import locate

ITEMS = [
    {"image": "train_0001", "question": "What is shown? ", "answer": "a cell\u00e9"},
    {"image": "train_0001", "question": "Is it alive?", "answer": "Yes "},
    {"image": "train_0002", "question": "How many?", "answer": 3},
]


def write_pickle(folder, data, split="train"):
    (folder / "qas" / split).mkdir(parents=True, exist_ok=True)
    (folder / "qas" / split / f"{split}_qa.pkl").write_bytes(data)
    for name in ("train_0001", "train_0002"):
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        (folder / "images" / split / f"{name}.jpg").write_bytes(name.encode())


def write_parquet(folder, split="train"):
    rows = [
        item
        | {"image": {"bytes": item["image"].encode(), "path": None}, "answer": str(item["answer"])}
        for item in ITEMS
    ]
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for number, part in enumerate((rows[:2], rows[2:])):
        file = folder / "data" / f"{split}-0000{number}-of-00002-abc.parquet"
        pq.write_table(pa.Table.from_pylist(part), file, row_group_size=1)


def path_vqa(folder, split="train"):
    return open_source(PathVqa(source="path_vqa", path=str(folder), split=split))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_both_forms_of_path_vqa_are_the_same_questions(split, tmp_path):
    write_pickle(tmp_path / "a", pickle.dumps(ITEMS), {"validation": "val"}.get(split, split))
    write_parquet(tmp_path / "b", split)
    found = []
    for form in ("a", "b"):
        source = path_vqa(tmp_path / form, split)
        records = [source.parse(row) for row in source.rows()]
        assert source.count() == 3
        assert len(source.content_hash()) == 64
        for record in records:
            check_record(record)
        images = [source.load_image(record.images[0]) for record in records]
        found.append((images, [(r.id, r.turns, r.answer_type, r.licence) for r in records]))
    assert found[0] == found[1]
    images, said = found[0]
    assert images == [b"train_0001", b"train_0001", b"train_0002"]
    assert [answer_type for _, _, answer_type, _ in said] == ["OPEN", "CLOSED", "OPEN"]
    assert [turns[1].text for _, turns, _, _ in said] == ["a cell\u00e9", "Yes", "3"]
    assert said[0][0] == f"path-vqa-{split}-0"
    assert said[0][1][0].text == "<image>\nWhat is shown?"


def test_an_absent_path_vqa_is_named(tmp_path):
    with pytest.raises(DataError, match=r"path=/.*/val_qa\.pkl: no such file; check"):
        path_vqa(tmp_path, "validation").count()


@pytest.mark.parametrize(
    "item",
    ["text", {}, ITEMS[0] | {"answer": [1]}, ITEMS[0] | {"answer": 10**30}, {1: 2}],
    ids=["text", "empty", "list", "huge number", "keys"],
)
def test_an_unusable_item_of_a_pickle_is_refused_alone(item, tmp_path):
    write_pickle(tmp_path, pickle.dumps([item, ITEMS[1]]))
    source = path_vqa(tmp_path)
    bad, good = source.rows()
    with pytest.raises(SampleError, match="missing_key: no "):
        source.parse(bad)
    assert source.parse(good).id == "path-vqa-train-1"


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
    max_leaves=20,
)


@settings(max_examples=50)
@given(value=plain, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_is_read_as_pickle_reads_it(value, protocol, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "plain.pkl"
    file.write_bytes(pickle.dumps(value, protocol))
    assert read_safe_pickle(locate(str(file))) == value


@pytest.mark.parametrize("text", [b"\xc3\xa9", b"\xe9"], ids=["UTF-8", "Latin-1"])
def test_texts_of_python_2_are_read(text, tmp_path):
    file = tmp_path / "old.pkl"
    spelled = "".join(f"\\x{byte:02x}" for byte in text).encode()
    for data in (b"(lp1\nS'%b'\np2\na." % spelled, b"]q\x01U%c%bq\x02a." % (len(text), text)):
        file.write_bytes(data)
        assert read_safe_pickle(locate(str(file))) == ["\u00e9"]


class Calls:
    """Pickles as a call of whatever it is given."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HARM = {
    "os.system": (os.system, "exit 3"),
    "builtins.eval": (builtins.eval, "1"),
    "builtins.getattr": (getattr, "x", "y"),
    "subprocess.Popen": (subprocess.Popen, "true"),
    "collections.OrderedDict": (__import__("collections").OrderedDict,),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", HARM)
def test_a_pickle_that_calls_is_refused_by_name_before_it_does(
    name, protocol, tmp_path, monkeypatch
):
    file = tmp_path / "bad.pkl"
    file.write_bytes(pickle.dumps([ITEMS[0], {"image": Calls(*HARM[name])}], protocol))
    called = []
    for module, function in ((os, "system"), (builtins, "eval"), (subprocess, "Popen")):
        monkeypatch.setattr(module, function, lambda *args: called.append(args))
    last = name.split(".")[-1]
    with pytest.raises(DataError, match=rf"bad\.pkl: the pickle asks for \w+\.{last}, and only"):
        read_safe_pickle(locate(str(file)))
    assert called == []


HOSTILE = {
    "GLOBAL": (b"cos\nsystem\n(S'true'\ntR.", "asks for os.system"),
    "INST": (b"(S'true'\nios\nsystem\n.", "asks for os.system"),
    "STACK_GLOBAL": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "asks for os.system"),
    "dotted STACK_GLOBAL": (
        b"\x80\x04\x8c\x08builtins\x8c\x0dsys.modules.a\x93.",
        "asks for builtins.sys.modules.a",
    ),
    "EXT1": (b"\x82\x01.", "asks for the class of extension code 1,"),
    "EXT4": (b"\x84\x01\x00\x00\x00.", "asks for the class of extension code 1,"),
    "PERSID": (b"Pname\n.", "asks for an object outside the file"),
    "BINPERSID": (b"U\x01aQ.", "asks for an object outside the file"),
    "NEXT_BUFFER": (b"\x80\x05\x97.", "not a pickle of plain data: "),
    "REDUCE": (b"U\x01a)R.", "not a pickle of plain data: "),
    "BUILD": (b"]}U\x01aU\x01bsb.", "not a pickle of plain data: "),
    "OBJ": (b"(U\x01ao.", "not a pickle of plain data: "),
    "NEWOBJ": (b"\x80\x02U\x01a)\x81.", "not a pickle of plain data: "),
    "huge memo": (b"]r" + struct.pack("<I", 2**31 - 1) + b".", "its memo has a place 2147483647"),
    "huge text memo": (b"]p999999999999\n.", "its memo has a place 999999999999"),
    "huge bytes": (b"\x8e" + struct.pack("<Q", 2**50) + b"x.", "not a pickle of plain data: "),
    "huge bytearray": (b"\x96" + struct.pack("<Q", 2**50) + b"x.", "not a pickle of plain data"),
    "huge text": (b"\x8d" + struct.pack("<Q", 2**62) + b"x.", "not a pickle of plain data: "),
    "huge frame": (b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"].", "not a pickle of plain"),
    "huge decimal": (b"L" + b"9" * 10_000 + b"L\n.", "not a pickle of plain data: "),
    "unhashable key": (b"}]]s.", "not a pickle of plain data: "),
    "empty stack": (b"0.", "not a pickle of plain data: "),
    "no stop": (b"]", "not a pickle of plain data: "),
    "unknown opcode": (b"\xff.", "not a pickle of plain data: "),
    "empty": (b"", "not a pickle of plain data: "),
    "page": (b"<html>", "not a pickle of plain data: "),
    "a mapping": (b"}.", "not a pickled list: it holds a dict; download"),
}


@pytest.mark.parametrize(("data", "sentence"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_or_damaged_pickle_is_refused_in_one_line(data, sentence, tmp_path):
    write_pickle(tmp_path, data)
    with pytest.raises(DataError, match=r"path=/.*/train_qa\.pkl: ") as caught:
        list(path_vqa(tmp_path).rows())
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, SampleError)


@pytest.mark.parametrize(
    "data",
    [
        b"(" * 100_000 + b"l" * 100_000 + b".",
        b"]" * 100_000 + b"a" * 99_999 + b".",
        b"]q\x00h\x00a.",
    ],
    ids=["deep", "nested", "within itself"],
)
def test_a_pickle_that_nests_without_end_has_no_usable_item(data, tmp_path):
    write_pickle(tmp_path, data)
    source = path_vqa(tmp_path)
    rows = list(source.rows())
    assert rows == [{"id": f"path-vqa-train-{number}"} for number in range(len(rows))]


def test_a_pickle_larger_than_any_published_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(safe_pickle, "MAX_BYTES", 1000)
    write_pickle(tmp_path, pickle.dumps(ITEMS * 100 + ["x" * 1000]))
    with pytest.raises(DataError, match=r"train_qa\.pkl: a pickle of more than 1,000 bytes is not"):
        path_vqa(tmp_path).count()
