import base64
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llavamed.config.sources import LlavaJson, Parquet, WebDataset
from llavamed.data.sources import fetch_image, open_source
from llavamed.data.sources.fields import Fields
from llavamed.data.sources.turns import read_turns
from llavamed.errors import SampleError
from llavamed.processor.image_files import to_png
from llavamed.processor.turns import Turn
from llavamed.storage.location import Location, locate
from tests.support.refused_samples import refusal

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
samples = st.lists(
    st.fixed_dictionaries(
        {
            "images": st.lists(st.binary(max_size=50), max_size=3),
            "turns": st.lists(
                st.tuples(st.sampled_from(["human", "gpt", "system"]), words), max_size=4
            ),
            "domain": words,
            "answer_type": st.sampled_from(["", "OPEN", "CLOSED"]),
            "question_type": words,
        }
    ),
    min_size=1,
    max_size=12,
)


def notes(sample, number):
    keys = ("domain", "answer_type", "question_type")
    return {"id": f"s-{number}"} | {key: sample[key] for key in keys}


def turns(sample):
    return [{"from": role, "value": text} for role, text in sample["turns"]]


def write_llava(place: Location, samples, *, lines):
    items = []
    for number, sample in enumerate(samples):
        names = [f"{number}/{position}.jpg" for position in range(len(sample["images"]))]
        for name, image in zip(names, sample["images"], strict=True):
            (place / "images" / name).write_bytes(image)
        items.append(notes(sample, number) | {"image": names, "conversations": turns(sample)})
    text = "\n".join(map(json.dumps, items)) if lines else json.dumps(items)
    (place / "list.json").write_bytes(text.encode())
    return LlavaJson(
        source="llava_json", path=f"{place}/list.json", image_folder=f"{place}/images", licence="x"
    )


def write_parquet(place: Location, samples, *, form):
    """Two files, row groups of 3; images as bytes, as Hugging Face has them, or by name."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = {"bytes": pa.binary(), "struct": image, "names": pa.string()}[form]
    turn = pa.struct([("from", pa.string()), ("value", pa.string())])
    text = pa.string()
    kinds = {"id": text, "domain": text, "answer_type": text, "question_type": text}
    kinds |= {"pictures": pa.list_(image), "talk": text if form == "names" else pa.list_(turn)}
    rows = []
    for number, sample in enumerate(samples):
        images = sample["images"]
        if form == "struct":
            images = [{"bytes": image, "path": "../unused"} for image in images]
        if form == "names":
            images = [f"{number}/{position}.jpg" for position in range(len(images))]
            for name, data in zip(images, sample["images"], strict=True):
                (place / "images" / name).write_bytes(data)
        talk = json.dumps(turns(sample)) if form == "names" else turns(sample)
        rows.append(notes(sample, number) | {"pictures": images, "talk": talk})
    half = len(rows) // 2
    for name, part in (("0", rows[:half]), ("1", rows[half:])):
        table = pa.Table.from_pylist(part, pa.schema(list(kinds.items())))
        (place / "data" / f"part-{name}.parquet").write_table(table, row_group_size=3)
    return Parquet(
        source="parquet",
        path=f"{place}/data",
        images_column="pictures",
        turns_column="talk",
        image_folder=f"{place}/images" if form == "names" else None,
        licence="x",
    )


def tar(members):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def write_webdataset(place: Location, samples):
    shards = [[], []]
    for number, sample in enumerate(samples):
        shard = shards[number * 2 // len(samples)]
        item = notes(sample, number) | {"conversations": turns(sample)}
        shard.append((f"{number:06d}.json", json.dumps(item).encode()))
        for position, image in enumerate(sample["images"]):
            shard.append((f"{number:06d}.{position}.jpg", image))
    for number, members in enumerate(shards):
        (place / f"{number + 8:02d}.tar").write_bytes(tar(members))
    return WebDataset(source="webdataset", path=f"{place}/{{08..09}}.tar", licence="x")


def read_all(read):
    """Every sample with its images' bytes in the place of their references."""
    source = open_source(read)
    found = []
    for row in map(json.loads, map(json.dumps, source.rows())):
        record = source.parse(row)
        images = tuple(source.load_image(reference) for reference in record.images)
        found.append((record.id, images, *(getattr(record, key) for key in KEYS)))
    assert source.count() == len(found)
    return found


KEYS = ("turns", "domain", "answer_type", "question_type", "pmid", "licence")


def write_every_form(place: Location, samples):
    yield write_llava(place / "list", samples, lines=False)
    yield write_llava(place / "lines", samples, lines=True)
    for form in ("bytes", "struct", "names"):
        yield write_parquet(place / form, samples, form=form)
    yield write_webdataset(place / "tars", samples)


@settings(max_examples=25)
@given(samples=samples)
def test_the_same_samples_are_read_from_every_container(samples, tmp_path_factory):
    place = locate(str(tmp_path_factory.mktemp("forms")))
    first, *others = [read_all(read) for read in write_every_form(place, samples)]
    assert len(first) == len(samples)
    assert [images for _, images, *_ in first] == [tuple(s["images"]) for s in samples]
    for other in others:
        assert other == first


SAMPLES = [
    {
        "images": [b"image %d" % number, b""][: number % 3],
        "turns": [("human", "<image>" * (number % 3) + "What?"), ("gpt", f"A {number}.")],
        "domain": "ct",
        "answer_type": "OPEN",
        "question_type": "",
    }
    for number in range(10)
]


def test_every_container_is_read_from_object_storage(s3_uri, tmp_path):
    there, here = locate(f"{s3_uri}/containers"), locate(str(tmp_path))
    remote = list(write_every_form(there, SAMPLES))
    local = list(write_every_form(here, SAMPLES))
    assert len(remote) == 6
    for far, near in zip(remote, local, strict=True):
        assert far.path.startswith("s3://")
        assert read_all(far) == read_all(near)
        assert open_source(far).content_hash() == open_source(near).content_hash()


@pytest.mark.parametrize("number", range(6))
def test_a_hash_follows_what_is_listed_and_not_where_it_lies(number, tmp_path):
    def make(name, samples):
        return list(write_every_form(locate(str(tmp_path / name)), samples))[number]

    changed = [*SAMPLES[:9], SAMPLES[9] | {"turns": [("human", "What?"), ("gpt", "B 9.")]}]
    fewer = SAMPLES[:9]
    hashes = {}
    for name, content in {"a": SAMPLES, "b": SAMPLES, "c": changed, "d": fewer}.items():
        hashes[name] = open_source(make(name, content)).content_hash()
    assert hashes["a"] == hashes["b"]
    assert len(set(hashes.values())) == 3


def test_parquet_s_usual_columns_are_found_and_places_are_names(tmp_path):
    place = locate(str(tmp_path))
    talk = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A."}]
    rows = [{"image": b"one", "turns": talk}, {"image": None, "turns": talk}]
    (place / "a.parquet").write_table(pa.Table.from_pylist(rows))
    source = open_source(Parquet(source="parquet", path=f"{place}/*.parquet"))
    first, second = (source.parse(row) for row in source.rows())
    assert (first.id, second.id) == ("a.parquet#0/0", "a.parquet#0/1")
    assert source.load_image(first.images[0]) == b"one"
    assert second.images == ()


PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "What?\n"}, {"type": "image"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A."}]},
]


@pytest.mark.parametrize(
    "talk",
    [
        PARTS,
        json.dumps(PARTS),
        {"role": ["user", "assistant"], "content": ["What?\n<image>", "A."]},
        {"from": ["human", "gpt"], "value": ["What?\n<image>", "A."]},
        [{"user": "What?\n<image>", "assistant": "A.", "source": "x"}],
        {"user": ["What?\n<image>"], "assistant": ["A."]},
    ],
    ids=["parts", "parts as JSON", "sequence", "sequence of LLaVA's", "exchange", "exchanges"],
)
def test_turns_as_hugging_face_writes_them(tmp_path, talk):
    rows = [{"images": [{"bytes": b"one", "path": None}], "messages": talk}]
    locate(f"{tmp_path}/a.parquet").write_table(pa.Table.from_pylist(rows))
    source = open_source(Parquet(source="parquet", path=str(tmp_path)))
    (record,) = map(source.parse, source.rows())
    assert record.turns == (Turn("user", "What?\n<image>"), Turn("assistant", "A."))
    assert len(record.images) == 1


def test_images_come_before_the_first_of_some_exchanges(tmp_path):
    rows = [
        {
            "images": [{"bytes": b"one", "path": None}, {"bytes": b"two", "path": None}],
            "texts": [{"user": "What?", "assistant": "A."}, {"user": "And?", "assistant": "B."}],
        }
    ]
    locate(f"{tmp_path}/a.parquet").write_table(pa.Table.from_pylist(rows))
    source = open_source(Parquet(source="parquet", path=str(tmp_path)))
    (record,) = map(source.parse, source.rows())
    asked = [turn.text for turn in record.turns]
    assert asked == ["<image>\n<image>\nWhat?", "A.", "And?", "B."]
    assert list(map(source.load_image, record.images)) == [b"one", b"two"]


@pytest.mark.parametrize("form", ["{}", "data:image/png;base64,{}"], ids=["bare", "data URI"])
def test_a_picture_as_text_in_a_column_is_a_picture(form, tmp_path):
    picture = to_png(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    text = form.format(base64.b64encode(picture).decode())
    rows = [{"image": text, "question": "What?", "answer": "A."}]
    locate(f"{tmp_path}/a.parquet").write_table(pa.Table.from_pylist(rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for read in (
        Parquet(source="parquet", path=f"{tmp_path}/a.parquet"),
        LlavaJson(source="llava_json", path=f"{tmp_path}/a.json", image_folder=str(tmp_path)),
    ):
        source = open_source(read)
        (record,) = map(source.parse, source.rows())
        assert [fetch_image(source, each) for each in record.images] == [picture]


@pytest.mark.parametrize(
    ("talk", "reason", "detail"),
    [
        ([{"user": 1, "assistant": "A."}], "no_text", "'user' of an exchange is 1"),
        ([{"role": "user", "content": [{"type": "video"}]}], "no_text", "of type 'video'; known"),
        ([{"role": "user", "content": [{"type": "text"}]}], "no_text", "of type 'text'; known"),
        ([{"role": "user", "content": ["What?"]}], "no_text", "a part is 'What?'; known"),
        ({"role": ["user"], "content": []}, "no_conversations", "of 1 and 0"),
    ],
)
def test_parts_that_are_no_turn_are_refused(talk, reason, detail):
    found, why = refusal(read_turns, talk, Fields({}))
    assert found == reason
    assert detail in why


def test_a_parquet_image_that_is_not_there_spoils_its_sample_alone(tmp_path):
    rows = [{"image": name, "turns": "[]"} for name in ("a.jpg", "../a.jpg", "b.jpg")]
    locate(f"{tmp_path}/x.parquet").write_table(pa.Table.from_pylist(rows))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"data")
    for folder, wanted in (
        (f"{tmp_path}/images", ["data", "unsafe_path", "missing_image"]),
        (None, ["missing_image"] * 3),
    ):
        read = Parquet(source="parquet", path=str(tmp_path), image_folder=folder)
        source, found = open_source(read), []
        for row in source.rows():
            try:
                found.append(source.load_image(source.parse(row).images[0]).decode())
            except SampleError as error:
                found.append(error.reason)
        assert found == wanted
    empty = pa.Table.from_pylist([{"image": {"bytes": None, "path": None}, "turns": "[]"}])
    locate(f"{tmp_path}/x.parquet").write_table(empty)
    reference = source.parse(next(source.rows())).images[0]
    assert refusal(open_source(read).load_image, reference)[1].endswith("neither bytes nor a name")


def test_a_row_group_is_read_once_for_rows_that_follow_each_other(tmp_path, monkeypatch):
    read = write_parquet(locate(str(tmp_path)), SAMPLES, form="bytes")
    source, calls = open_source(read), []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, **options: calls.append(group) or original(self, group, **options),
    )
    for row in source.rows():
        for reference in source.parse(row).images:
            source.load_image(reference)
    assert calls == [0, 1, 0, 1]
