"""Rows as the formats of other trainers write them."""

import base64
import json
import math
from operator import or_

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.config.sources import LlavaJson
from llavamed.data.record import check_record
from llavamed.data.sources import fetch_image, open_source
from llavamed.data.sources.pictures import IMAGE_KEYS
from llavamed.data.sources.records import ROW_KEYS
from llavamed.errors import SampleError
from llavamed.processor.turns import Turn

ASKED, ANSWERED = Turn("user", "<image>\nWhat?"), Turn("assistant", "A lung.")
PNG = b"\x89PNG and so on"
DATA = base64.b64encode(PNG).decode()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    (folder / "a.png").write_bytes(PNG)
    (folder / "b.png").write_bytes(b"another")
    return open_source(LlavaJson(source="llava_json", path="none.json", image_folder=str(folder)))


def refusal(source, row):
    with pytest.raises(SampleError) as caught:
        check_record(source.parse(row))
    return caught.value.reason, caught.value.detail


def asked(*parts, answer="A lung.", **row):
    turns = [{"role": "user", "content": [*parts]}, {"role": "assistant", "content": answer}]
    return {"messages": turns} | row


def said(text="What?", answer="A lung.", turn=None, **row):
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": answer} | (turn or {})]
    return {"conversations": turns} | row


TEXT = {"type": "text", "text": "What?"}
PICTURES = {
    "name": {"type": "image", "image": "a.png"},
    "no type": {"image": "a.png"},
    "url": {"type": "image", "url": "a.png"},
    "path": {"type": "image", "path": "a.png"},
    "image_url": {"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}},
    "image_url as text": {"type": "image_url", "image_url": "a.png"},
    "input_image": {"type": "input_image", "image_url": f"data:image/png;base64,{DATA}"},
    "data": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}},
    "base64": {"type": "image", "base64": DATA},
    "source": {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": DATA},
    },
    "mapping": {"type": "image", "image": {"bytes": None, "path": "a.png"}},
    "bytes": {"type": "image", "image": {"bytes": PNG, "path": "unused"}},
}


@pytest.mark.parametrize("part", PICTURES.values(), ids=PICTURES)
@pytest.mark.parametrize("merged", [False, True], ids=["as is", "with nulls"])
def test_a_picture_is_read_from_the_part_it_lies_in(part, merged, source):
    nulls = dict.fromkeys(["type", "text", "image", "image_url", "video", "index", "path"])
    parts = [nulls | part, nulls | TEXT] if merged else [part, TEXT]
    record = source.parse(asked(*parts))
    check_record(record)
    assert record.turns == (ASKED, ANSWERED)
    assert [fetch_image(source, image) for image in record.images] == [PNG]


@pytest.mark.parametrize(
    "images",
    [
        ["a.png"],
        [{"path": "a.png", "bytes": None}],
        [{"path": "a.png"}],
        [{"bytes": PNG, "path": None}],
        [{"bytes": DATA}],
        [f"data:image/png;base64,{DATA}"],
        "a.png",
        {"path": "a.png"},
        {"url": "a.png"},
    ],
    ids=lambda images: str(images)[:30],
)
@pytest.mark.parametrize("key", ["image", "images", "image_file", "image_path"])
def test_a_row_lists_its_images_in_any_form(key, images, source):
    row = said("<image>\nWhat?") | dict.fromkeys(["image", "images", "video"]) | {key: images}
    record = source.parse(row)
    assert record.turns == (ASKED, ANSWERED)
    assert [fetch_image(source, image) for image in record.images] == [PNG]
    assert record.unread_keys == ()


A, B = {"type": "image", "image": "a.png"}, {"type": "image", "image": "b.png"}


@pytest.mark.parametrize(
    ("parts", "listed", "images"),
    [
        ([A, TEXT], ["a.png"], ("a.png",)),
        ([A, TEXT, B], None, ("a.png", "b.png")),
        ([A, TEXT, {"type": "image"}], ["b.png"], ("a.png", "b.png")),
        ([{"type": "image"}, TEXT, {"type": "image"}], ["a.png", "b.png"], ("a.png", "b.png")),
        (
            [{"type": "image", "index": 1}, TEXT, {"type": "image", "index": 0}],
            ["a.png", "b.png"],
            ("b.png", "a.png"),
        ),
    ],
    ids=["said twice", "in the parts", "one each way", "in the list", "by number"],
)
def test_each_placeholder_has_its_own_picture(parts, listed, images, source):
    record = source.parse(asked(*parts, images=listed))
    check_record(record)
    assert record.images == images


@pytest.mark.parametrize(
    ("parts", "listed"),
    [
        ([A, TEXT], ["b.png"]),
        ([A, TEXT], ["a.png", "b.png"]),
        ([{"type": "image", "index": 1}, TEXT], ["a.png"]),
        ([{"type": "image", "index": 0}, TEXT], ["a.png", "b.png"]),
        ([{"type": "image"}, TEXT], None),
    ],
    ids=["another", "one more", "no such number", "one never shown", "none"],
)
def test_pictures_that_do_not_fit_the_turns_are_refused(parts, listed, source):
    assert refusal(source, asked(*parts, images=listed))[0] == "placeholder_mismatch"


PAIRS = {
    "prompt and completion": {"prompt": "What?", "completion": "A lung."},
    "as turns": {
        "prompt": [{"role": "user", "content": "<image>\nWhat?"}],
        "completion": [{"role": "assistant", "content": "A lung."}],
    },
    "question and answer": {"question": "What?", "answer": "A lung."},
    "query and response": {"query": "<image>\nWhat?", "response": "A lung.", "history": []},
    "instruction and output": {"instruction": "What?", "input": "", "output": "A lung."},
    "beside nulls": {"prompt": None, "question": "What?", "answer": "A lung.", "messages": None},
    "beside half a pair": {"prompt": "x", "question": "What?", "answer": "A lung."},
}


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
def test_a_question_with_its_answer_is_a_dialogue(row, source):
    record = source.parse(row | {"id": 0, "image": "a.png"})
    check_record(record)
    assert (record.id, record.turns, record.images) == ("0", (ASKED, ANSWERED), ("a.png",))
    assert record.answer_type == "OPEN"
    assert record.unread_keys == (("prompt",) if row.get("prompt") == "x" else ())


def test_an_instruction_has_an_input_and_a_query_a_history(source):
    row = {"instruction": "Translate.", "input": "Lunge", "output": "lung"}
    assert source.parse(row).turns == (Turn("user", "Translate.\nLunge"), Turn("assistant", "lung"))
    row = {"query": "b", "response": "B", "history": [["a", "A"]], "system": "Be brief."}
    assert source.parse(row).turns == (
        Turn("system", "Be brief."),
        Turn("user", "a"),
        Turn("assistant", "A"),
        Turn("user", "b"),
        Turn("assistant", "B"),
    )


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"question": "What?", "answer": None}, "missing_key", "question without answer or respon"),
        ({"prompt": "What?"}, "missing_key", "prompt without completion or response"),
        (
            {"question": "Which?", "answer": "A", "choices": ["x", "y"]},
            "unsupported_key",
            "choices",
        ),
        ({"question": "Which?", "answer": ["a", "b"]}, "no_text", "a list of 'a', not of turns"),
        ({"question": {"a": 1}, "answer": "b"}, "no_text", "'question' is {'a': 1}"),
        ({"question": "a", "answer": math.nan}, "no_text", "'answer' is nan"),
        ({"query": "a", "response": "b", "history": ["x"]}, "no_text", "of the history is 'x'"),
    ],
)
def test_half_a_pair_and_what_is_no_text_are_refused(row, reason, detail, source):
    found = refusal(source, row)
    assert found[0] == reason
    assert detail in found[1]


@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_what_the_model_is_to_know_first_comes_first(key, source):
    row = said() | {key: "Be brief."}
    turns = (Turn("system", "Be brief."), Turn("user", "What?"), ANSWERED)
    assert source.parse(row).turns == turns
    within = [{"role": "system", "content": "Be brief."}, *asked(TEXT)["messages"]]
    assert source.parse({"messages": within}).turns == turns
    assert source.parse({"messages": within, key: "Be brief."}).turns == turns
    assert source.parse({"messages": within, key: " "}).turns == turns
    developer = [{"role": "developer", "content": "Be brief."}, *within[1:]]
    assert source.parse({"messages": developer}).turns == turns
    assert refusal(source, {"messages": within, key: "Be long."})[0] == "two_systems"
    assert refusal(source, said() | {key: ["Be brief."]})[0] == "no_text"


@pytest.mark.parametrize("key", ["weight", "loss", "train", "training"])
@pytest.mark.parametrize(
    ("value", "trained"),
    [(0, False), (1, True), (False, False), (True, True), (0.0, False), (1.0, True), (None, True)],
)
def test_a_turn_says_whether_it_is_trained(key, value, trained, source):
    assert source.parse(said(turn={key: value})).turns[1].trained is trained
    assert source.parse(said() | {key: value}).turns[1].trained is trained


@pytest.mark.parametrize("value", [0.5, 2, -1, "0", "yes", [1], float("nan")], ids=repr)
def test_a_weight_that_is_neither_all_nor_nothing_is_refused_with_its_value(value, source):
    for row in (said(turn={"weight": value}), said(weight=value)):
        reason, detail = refusal(source, row)
        assert reason == "unknown_weight"
        assert f"is {value!r}; known are 0, 1, false and true" in detail
    assert refusal(source, said(turn={"weight": 1, "loss": 0}))[0] == "unknown_weight"


UNSUPPORTED = {
    "video": said(video="v.mp4"),
    "videos": said(videos=["v.mp4"]),
    "audio": said(audio={"path": "a.wav"}),
    "audios": said(audios=["a.wav"]),
    "tools": said(tools="[{}]"),
    "objects": said(objects={"bbox": [[1, 2, 3, 4]]}),
    "label": said(label=False),
    "video in a turn": said(turn={"video": "v.mp4"}),
    "tool_calls": said(turn={"tool_calls": [{}]}),
    "train_detail": said(turn={"train_detail": [{}]}),
    "loss_scale": said(turn={"loss_scale": 0.3}),
}


@pytest.mark.parametrize("row", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_keys_that_make_another_sample_are_refused(row, source):
    assert refusal(source, row)[0] == "unsupported_key"
    nulls = {key: None for key in row if key != "conversations"}
    assert source.parse(said() | nulls).turns == (Turn("user", "What?"), ANSWERED)


@pytest.mark.parametrize(
    "mark",
    [
        "<video>",
        "<audio>",
        "<img>a.png</img>",
        "<Image>",
        "<image_1>",
        "<image 1>",
        "<|image_1|>",
        "<|image_pad|>",
        "<|video|>",
        "<ImageHere>",
        "<image-placeholder>",
        "<__media__>",
        "[IMG]",
        '<img src="a.png">',
        "<im_patch>",
        "<im_start>",
        "<start_of_image>",
    ],
)
def test_marks_of_other_trainers_are_never_trained_as_words(mark, source):
    assert refusal(source, said(f"{mark}\nWhat?"))[0] == "foreign_mark"
    assert refusal(source, said(answer=f"As in {mark}."))[0] == "foreign_mark"


@pytest.mark.parametrize(
    "text", ["p < image > q", "<imaging>", "[image]", "a<b>c", "<audition>", "<|im_start|>"]
)
def test_words_that_look_like_marks_are_words(text, source):
    check_record(source.parse(said(text)))


def test_keys_that_nobody_reads_are_named(source):
    row = said(turn={"score": 3, "name": None}, note="x", empty="", nothing=None, id="7")
    assert source.parse(row).unread_keys == ("note", "conversations[].score")
    row = asked(TEXT | {"cache_control": {"type": "ephemeral"}}, model="x")
    assert source.parse(row).unread_keys == ("model", "messages[].content[].cache_control")
    record = source.parse({"question": "Is it?", "answer": "Yes", "answer_type": "binary"})
    assert record.unread_keys == ("answer_type that is neither OPEN nor CLOSED",)
    assert source.parse(said(note="a.png", image="b.png")).unread_keys == ("note",)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
TURN_KEYS = [
    "role",
    "from",
    "value",
    "content",
    "text",
    "type",
    "bytes",
    "path",
    "url",
    "image_url",
]
KEYS = [*ROW_KEYS, *IMAGE_KEYS, *TURN_KEYS, "index", "weight", "history", "choices", "video"]
TREES = st.recursive(
    VALUES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
    ),
    max_leaves=20,
)


ANY = st.dictionaries(st.sampled_from(KEYS), TREES, max_size=8)
GOOD = [said(), asked(TEXT), {"question": "Is it?", "answer": "Yes"}]
NEARLY_GOOD = st.builds(
    or_, st.sampled_from(GOOD), st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=2)
)


@given(row=ANY | NEARLY_GOOD)
def test_whatever_a_row_holds_it_is_read_or_refused(row, source):
    try:
        record = source.parse(row)
        check_record(record)
    except SampleError:
        assert row not in GOOD
    else:
        assert {type(turn.text) for turn in record.turns} == {str}


@given(
    rows=st.lists(
        st.sampled_from(
            [
                said(system="S"),
                said(weight=0),
                said("<image>a", image="a.png"),
                said(turn={"weight": 0}),
                said(turn={"loss": True}),
            ]
        ),
        min_size=1,
        max_size=4,
    )
)
def test_rows_are_the_same_with_the_nulls_that_arrow_gives_them(rows, source):
    merged = pa.Table.from_pylist(rows, _schema_of(rows)).to_pylist()
    assert [source.parse(row) for row in merged] == [source.parse(row) for row in rows]


def _schema_of(rows):
    """All keys of all rows, as a writer of Parquet would have them."""
    keys = dict.fromkeys(key for row in rows for key in row)
    tables = [pa.Table.from_pylist([{key: row[key]}]) for row in rows for key in row]
    schemas = pa.unify_schemas([table.schema for table in tables], promote_options="permissive")
    return pa.schema([schemas.field(key) for key in keys])


def test_the_published_cases_are_read_or_refused_as_they_should_be(reference_data, source):
    cases = reference_data / "cases" / "data"
    rows = [json.loads(line) for line in (cases / "parts" / "x.jsonl").read_text().splitlines()]
    rows += json.loads((cases / "json" / "variants.json").read_text())[1:]
    found = {}
    for row in rows:
        try:
            record = source.parse(row)
            check_record(record)
            images = [fetch_image(source, image) for image in record.images]
            found[row["id"]] = len(images), len(record.turns)
        except SampleError as error:
            found[row["id"]] = error.reason
    assert found == {
        "qwen-image-path": (1, 2),
        "image_url": (1, 2),
        "both": (1, 2),
        "images-dicts": (1, 2),
        "prompt-completion": (1, 2),
        "video-part": "no_text",
        "text-none": "no_text",
        "tool": "unsupported_key",
        "developer": (0, 3),
        "system-toplevel": (0, 3),
        "sharegpt-system": (0, 3),
        "video": "unsupported_key",
        "weight0": (1, 4),
    }
