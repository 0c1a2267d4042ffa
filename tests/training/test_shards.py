import hashlib
import json
from dataclasses import asdict

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llavamed.config.load import parse_config
from llavamed.data.feed.loader import StageLoader
from llavamed.data.feed.order import EpochOrder, StageOrder
from llavamed.data.prepare.shards import Chunk, ShardWriter
from llavamed.data.prepared.content import hash_content, hash_image, hash_pixels
from llavamed.data.prepared.dataset import INDEX, PreparedDataset, shard_name
from llavamed.data.prepared.mixture import Mixture
from llavamed.data.record import CONTENT_SCHEMA, INDEX_SCHEMA, QUARANTINE_SCHEMA, SHARD_SCHEMA
from llavamed.data.sources import open_source
from llavamed.processor.build import image_settings, load_processor, num_image_tokens
from llavamed.processor.images import to_pixels, to_planes
from llavamed.processor.turns import IGNORE_INDEX, Turn
from llavamed.storage.location import locate
from llavamed.storage.manifest import ImageFacts
from tests.support.manifests import dataset_manifest

FIRST_ROW = 100


def item(name, *texts, image="a.png", roles=("human", "gpt")):
    turns = [{"from": role, "value": text} for role, text in zip(roles * 3, texts, strict=False)]
    return {"id": name, "image": image, "conversations": turns}


ASK = "<image>\nWhat is shown?"
ITEMS = [
    item("good", ASK, "A lung."),
    item("two images", "<image>\n<image>\nCompare.", "Equal.", image=["a.png", "b.jpg"]),
    item("several turns", ASK, "A lung.", "Which?", "The left."),
    item("no image", "What is a lung?", "An organ.", image=None),
    item("cut", ASK, "word " * 200),
    item("absent", ASK, "A lung.", image="absent.png"),
    item("corrupt", ASK, "A lung.", image="corrupt.png"),
    item("outside", ASK, "A lung.", image="../list.json"),
    item("silent"),
    item("alone", ASK),
    item("doctor", ASK, "A lung.", roles=("human", "doctor")),
    item("mismatch", "What is shown?", "A lung."),
    item("blank", ASK, "  "),
    item("many images", "<image>" * 90 + "Compare.", "Equal.", image=["a.png"] * 90),
    item("long question", ASK + "word " * 200, "A lung."),
    {"id": "nothing"},
    "text",
]
GOOD = ["good", "two images", "several turns", "no image", "cut"]
BAD = [
    ("absent", "missing_image"),
    ("corrupt", "corrupt_image"),
    ("outside", "unsafe_path"),
    ("silent", "empty_dialogue"),
    ("alone", "empty_dialogue"),
    ("doctor", "unknown_role"),
    ("mismatch", "placeholder_mismatch"),
    ("blank", "empty_answer"),
    ("many images", "too_long"),
    ("long question", "no_supervised_token"),
    ("nothing", "no_conversations"),
    ("", "no_conversations"),
]


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """A folder with a LLaVA dataset that has everything wrong that may be wrong."""
    folder = tmp_path_factory.mktemp("figures")
    values = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(values).save(folder / "a.png")
    Image.fromarray(values[:20]).save(folder / "b.jpg")
    (folder / "corrupt.png").write_bytes((folder / "a.png").read_bytes()[:500])
    (folder / "list.json").write_text(json.dumps(ITEMS))
    return folder


@pytest.fixture(scope="module")
def prepare(figures, tiny_config, processor_folder, tmp_path_factory):
    """Write the dataset as one shard; gives the config, the dataset's place and the report."""

    def call(**settings):
        tree = tiny_config.model_dump(mode="json")
        read = {
            "source": "llava_json",
            "path": str(figures / "list.json"),
            "image_folder": str(figures),
            "licence": "CC-BY-4.0",
        }
        tree["storage"] = str(tmp_path_factory.mktemp("runs"))
        tree["data"]["datasets"]["figures"] = {"read": read}
        tree["data"] |= {"max_length": 320, "row_group_size": 2} | settings
        config = parse_config(tree)
        rows = list(open_source(config.data.datasets["figures"].read).rows())
        report = ShardWriter(config, str(processor_folder)).write(
            Chunk("figures", 3, FIRST_ROW, rows)
        )
        return config, locate(config.datasets_directory) / "figures", report

    return call


@pytest.fixture(scope="module")
def prepared(prepare):
    return prepare()


@pytest.fixture(scope="module")
def processor(processor_folder):
    return load_processor(processor_folder)


def test_the_shard_holds_the_good_samples_with_all_columns(prepared):
    _, place, _ = prepared
    table = (place / shard_name(3)).read_table()
    assert table.schema.remove_metadata() == SHARD_SCHEMA
    assert table["id"].to_pylist() == GOOD
    assert set(table["source"].to_pylist()) == {"figures"}
    assert set(table["licence"].to_pylist()) == {"CC-BY-4.0"}
    assert table["turns"][0].as_py() == [
        {"role": "user", "text": ASK, "trained": True},
        {"role": "assistant", "text": "A lung.", "trained": True},
    ]


def test_pixels_are_those_of_the_images_in_order(prepared, processor, figures):
    _, place, _ = prepared
    pixels = (place / shard_name(3)).read_table()["pixels"].to_pylist()
    settings = image_settings(processor)
    wanted = [to_pixels((figures / name).read_bytes(), settings) for name in ("a.png", "b.jpg")]
    assert pixels[1] == [to_planes(image) for image in wanted]
    assert [len(images) for images in pixels] == [1, 2, 1, 0, 1]
    assert all(len(image) == 16 * 16 * 3 for images in pixels for image in images)


def test_tokens_hold_the_images_and_labels_the_answers(prepared, processor):
    _, place, _ = prepared
    table = (place / shard_name(3)).read_table()
    per_image = num_image_tokens(processor)
    assert per_image == 4
    answers = []
    for row in table.to_pylist():
        assert row["input_ids"].count(processor.image_token_id) == per_image * len(row["pixels"])
        trained = [
            token
            for token, label in zip(row["input_ids"], row["labels"], strict=True)
            if label != IGNORE_INDEX
        ]
        assert trained == [label for label in row["labels"] if label != IGNORE_INDEX]
        answers.append(processor.tokenizer.decode(trained))
    assert [answer.split("</s>") for answer in answers[:4]] == [
        [" A lung.", ""],
        [" Equal.", ""],
        [" A lung.", " The left.", ""],
        [" An organ.", ""],
    ]
    assert len(table["input_ids"][4]) == 320
    assert "</s>" not in answers[4]


def test_the_index_says_where_each_sample_lies_and_how_long_it_is(prepared):
    _, place, report = prepared
    assert report.tables.index.schema == INDEX_SCHEMA
    index = report.tables.index.to_pydict()
    assert index["shard"] == [3] * 5
    assert list(zip(index["row_group"], index["row"], strict=True)) == [
        *((0, 0), (0, 1), (1, 0), (1, 1), (2, 0))
    ]
    assert index["num_images"] == [1, 2, 1, 0, 1]
    shard = place / shard_name(3)
    with pq.ParquetFile(shard.path) as file:
        assert file.num_row_groups == 3
    for row, tokens, supervised in zip(
        shard.read_table().to_pylist(), index["num_tokens"], index["num_supervised"], strict=True
    ):
        assert tokens == len(row["input_ids"]) == len(row["labels"])
        assert supervised == sum(label != IGNORE_INDEX for label in row["labels"][1:])
    assert index["num_truncated"][:4] == [0] * 4
    assert index["num_truncated"][4] > 0


def test_the_content_holds_the_hashes_of_each_sample_and_its_place(prepared, processor, figures):
    _, place, report = prepared
    content = report.tables.content
    assert content.schema == CONTENT_SCHEMA
    assert content["row"].to_pylist() == list(range(FIRST_ROW, FIRST_ROW + len(GOOD)))
    images = [(figures / name).read_bytes() for name in ("a.png", "b.jpg")]
    pixels = [to_pixels(data, image_settings(processor)) for data in images]
    hashes = [[function(each) for each in pixels] for function in (hash_image, hash_pixels)]
    for row, found in zip(
        (place / shard_name(3)).read_table().to_pylist(), content.to_pylist(), strict=True
    ):
        turns = [Turn(**turn) for turn in row["turns"]]
        expected = hash_content(turns, *(each[: len(row["pixels"])] for each in hashes))
        assert {"row": found["row"], "id": row["id"], **expected} == found


def test_each_bad_sample_is_in_the_quarantine_with_row_and_reason(prepared):
    _, _, report = prepared
    table = report.tables.quarantine
    assert table.schema == QUARANTINE_SCHEMA
    assert list(zip(table["id"].to_pylist(), table["reason"].to_pylist(), strict=True)) == BAD
    first_bad = FIRST_ROW + len(GOOD)
    assert table["row"].to_pylist() == list(range(first_bad, first_bad + len(BAD)))
    assert set(table["source"].to_pylist()) == {"figures"}
    details = dict(zip(table["id"].to_pylist(), table["detail"].to_pylist(), strict=True))
    assert details["absent"].endswith("/absent.png: no such file")
    assert details["many images"] == "90 images of 4 tokens do not fit max_length=320"
    assert details["mismatch"] == "0 <image> in the text, 1 images"


def test_no_sample_is_lost(prepared):
    _, _, report = prepared
    assert report.tables.index.num_rows + report.tables.quarantine.num_rows == len(ITEMS)


def digest(place):
    return hashlib.sha256((place / shard_name(3)).read_bytes()).hexdigest()


def test_the_same_inputs_give_the_same_bytes(prepare, prepared):
    _, place, report = prepared
    _, again, second = prepare()
    assert again.path != place.path
    assert digest(again) == digest(place)
    assert second == report


def test_a_chunk_without_good_samples_makes_no_shard(prepared, processor_folder):
    config, place, _ = prepared
    report = ShardWriter(config, str(processor_folder)).write(Chunk("figures", 4, 0, ITEMS[-3:-1]))
    assert report.tables.index.num_rows == 0
    assert report.tables.index.schema == INDEX_SCHEMA
    assert report.tables.quarantine["row"].to_pylist() == [0, 1]
    assert not (place / shard_name(4)).exists()


def load(place, report, processor, store_images):
    """The batches of one sample each, in the shard's order, as training would read them."""
    (place / INDEX).write_table(report.tables.index)
    manifest = dataset_manifest(
        images=ImageFacts(**asdict(image_settings(processor))),
        store_images=store_images,
        num_image_tokens=num_image_tokens(processor),
        image_token_id=processor.image_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        num_samples=report.tables.index.num_rows,
    )
    data = Mixture((PreparedDataset(place, manifest),))
    places = np.arange(report.tables.index.num_rows)
    epoch = EpochOrder(places, data.groups, (tuple(places[:, None]),))
    order = StageOrder((epoch,), epoch.num_steps)
    loader = StageLoader(data, order, rank=0, world_size=1, packing=True)
    return [batch for step in loader.steps() for batch in step]


def test_originals_and_pixels_load_as_the_same_images(prepare, prepared, processor, figures):
    _, place, report = prepared
    _, other, other_report = prepare(store_images="original")
    originals = (other / shard_name(3)).read_table()["pixels"].to_pylist()
    assert originals[1] == [(figures / name).read_bytes() for name in ("a.png", "b.jpg")]
    assert other_report == report
    batches = load(place, report, processor, "pixels")
    others = load(other, other_report, processor, "original")
    assert [batch.sample_ids for batch in batches] == [(name,) for name in GOOD]
    for batch, twin in zip(batches, others, strict=True):
        assert batch.pixel_values.equal(twin.pixel_values)
        assert batch.input_ids.equal(twin.input_ids)
    assert batches[1].pixel_values.shape == (2, 3, 16, 16)
