import hashlib
import io
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llavamed.data.record import check_record
from llavamed.data.sources.phantom_images import KINDS, MODALITIES, SIDES, SIZES, Scene, draw
from llavamed.data.sources.phantoms import NUM_QUESTIONS, PhantomSource, ask, caption, sample_scene
from llavamed.errors import SampleError
from llavamed.processor.turns import IMAGE_PLACEHOLDER

SPLITS = ("train", "validation", "test")
SIDE_WORDS = {(): "none", ("left",): "left", ("right",): "right", ("left", "right"): "both"}

scenes = st.builds(
    Scene,
    modality=st.sampled_from(MODALITIES),
    sides=st.sampled_from(tuple(SIDE_WORDS)),
    kind=st.sampled_from(KINDS),
    size=st.sampled_from(SIZES),
)
randoms = st.integers(0, 2**32).map(np.random.default_rng)


def make(kind="dialogues", split="train", num_images=20, seed=0, image_size=64):
    return PhantomSource(
        kind=kind, split=split, num_images=num_images, seed=seed, image_size=image_size
    )


def digests(source):
    records = [source.parse(row) for row in source.rows()]
    return [hashlib.sha256(source.load_image(r.images[0])).hexdigest() for r in records]


@pytest.mark.parametrize("kind", ["captions", "dialogues", "questions"])
def test_same_seed_gives_the_same_bytes_and_words(kind):
    once, again = make(kind), make(kind)
    assert list(once.rows()) == list(again.rows())
    assert [once.parse(row) for row in once.rows()] == [again.parse(row) for row in again.rows()]
    assert digests(once) == digests(again)


def test_every_image_of_every_split_and_seed_differs():
    found = [
        digest
        for split in SPLITS
        for seed in (0, 1)
        for digest in digests(make(split=split, seed=seed, num_images=100))
    ]
    assert len(set(found)) == len(found)


def test_more_images_extend_fewer():
    few, many = make(num_images=5), make(num_images=9)
    assert [many.parse(row) for row in many.rows()][:5] == [few.parse(row) for row in few.rows()]


@pytest.mark.parametrize("kind", ["captions", "dialogues", "questions"])
@pytest.mark.parametrize("split", SPLITS)
def test_records_are_valid_and_rows_survive_json(kind, split):
    source = make(kind, split)
    rows = list(source.rows())
    records = [source.parse(json.loads(json.dumps(row))) for row in rows]
    assert len(records) == 20 * (NUM_QUESTIONS if kind == "questions" else 1)
    assert len({record.id for record in records}) == len(records)
    for record in records:
        check_record(record)
        assert record.licence == "Apache-2.0"
        assert record.domain in MODALITIES
        assert IMAGE_PLACEHOLDER in record.turns[0].text
        assert len(record.turns) == (2 * NUM_QUESTIONS if kind == "dialogues" else 2)
        assert bool(record.answer_type) == bool(record.question_type) == (kind == "questions")


def test_the_three_kinds_speak_of_the_same_images():
    captions, dialogues, questions = (make(kind) for kind in ("captions", "dialogues", "questions"))
    for index in range(20):
        told = captions.parse({"index": index})
        asked = dialogues.parse({"index": index})
        single = questions.parse({"index": index, "question": 0})
        assert told.images == asked.images == single.images
        assert told.domain == asked.domain == single.domain


@pytest.mark.parametrize("image_size", [32, 48, 64, 224])
@pytest.mark.parametrize("modality", MODALITIES)
def test_images_are_rgb_png_of_the_size(modality, image_size):
    scene = Scene(modality, ("left",), "mass", "large")
    image = Image.open(io.BytesIO(draw(scene, np.random.default_rng(0), image_size)))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (image_size, image_size))


@settings(max_examples=60)
@given(scenes, st.integers(0, 2**32))
def test_a_finding_changes_its_own_side_only(scene, seed):
    # The same random numbers draw the same body: findings are painted after everything but noise.
    def pixels(sides):
        drawn = Scene(scene.modality, sides, scene.kind, scene.size)
        image = Image.open(io.BytesIO(draw(drawn, np.random.default_rng(seed), 64)))
        return np.asarray(image, dtype=np.int16)[..., 0]

    change = np.abs(pixels(scene.sides) - pixels(()))
    halves = {"left": change[:, :30], "right": change[:, 34:]}
    for side in SIDES:
        if side in scene.sides:
            assert (halves[side] > 30).sum() > 25
        else:
            assert (halves[side] > 60).sum() == 0  # what is left is noise


@given(scenes, randoms)
def test_every_answer_follows_from_the_scene(scene, random):
    present = {scene.modality, *scene.sides}
    if scene.sides:
        present |= {scene.kind, scene.size}
    facts = {
        "modality": scene.modality,
        "side": SIDE_WORDS[scene.sides],
        "count": ("none", "one", "two")[len(scene.sides)],
        "kind": scene.kind if scene.sides else "none",
        "size": scene.size if scene.sides else "none",
    }
    questions = ask(scene, random)
    assert len(questions) == NUM_QUESTIONS
    for question in questions:
        if question.answer_type == "OPEN":
            assert question.answer == facts[question.question_type]
        else:
            words = set(question.text.rstrip("?").split())
            asked = words & {*MODALITIES, *SIDES, *KINDS, *SIZES}
            assert len(asked) == 1
            assert question.answer == ("yes" if asked <= present else "no")


@given(scenes, randoms)
def test_captions_name_what_is_there_and_nothing_else(scene, random):
    text = caption(scene, random).replace(",", " ").replace(".", " ")
    named = set(text.split()) & {*MODALITIES, *SIDES, "both", *KINDS, *SIZES}
    there = {scene.modality}
    if scene.sides:
        there |= {SIDE_WORDS[scene.sides], scene.kind, scene.size}
    assert named == there


def test_no_question_text_gives_its_answer_away():
    random = np.random.default_rng(0)
    answers = defaultdict(Counter)
    closed = Counter()
    for _ in range(6000):
        for question in ask(sample_scene(random), random):
            answers[question.text][question.answer] += 1
            if question.answer_type == "CLOSED":
                closed[question.answer] += 1
    for text, counts in answers.items():
        assert max(counts.values()) / counts.total() < 0.6, (text, counts)
    assert abs(closed["yes"] / closed.total() - 0.5) < 0.03


@pytest.mark.parametrize(
    "reference",
    [
        "phantom:train:0",
        "phantom:holiday:0:1",
        "cat:train:0:1",
        "phantom:train:0:x",
        "",
        "a:b:0:-1",
    ],
)
def test_a_wrong_reference_is_a_missing_image(reference):
    with pytest.raises(SampleError, match="missing_image"):
        make().load_image(reference)


@pytest.mark.parametrize("row", [{}, {"index": "x"}, {"index": None}, {"index": 0, "question": 99}])
def test_a_wrong_row_is_refused(row):
    with pytest.raises(SampleError, match="malformed_row"):
        make("questions").parse(row)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="holiday"):
        make(split="holiday")


def test_the_picture_of_the_documentation_is_what_the_code_draws():
    kept = Path(__file__).parents[2] / "docs" / "images" / "phantom.png"
    drawn = make("questions", "test", image_size=48).load_image("phantom:test:0:3")
    pictures = [np.asarray(Image.open(each)) for each in (kept, io.BytesIO(drawn))]
    assert np.array_equal(*pictures)


def test_the_demo_offers_questions_that_its_model_knows():
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    asked = json.loads(re.search(r"^ASKED = (.*)$", makefile, re.MULTILINE)[1])
    assert len(asked) == 4
    source = make("questions")
    known = {source.parse(row).turns[0].text.rpartition("\n")[2] for row in source.rows()}
    assert {*asked} <= known
