"""Hashes: copies stay near, others stay far, and words count however they are typed."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from llavamed.data.prepared import content
from llavamed.data.prepared.content import (
    MAX_DISTANCE,
    NO_TEXT,
    fold,
    hash_content,
    hash_image,
    hash_pixels,
    near,
)
from llavamed.data.record import IMAGE_HASH_BYTES
from llavamed.data.sources.phantoms import PhantomSource
from llavamed.processor.images import ImageSettings, to_pixels
from llavamed.processor.tower import CLIP_MEAN, CLIP_STD
from llavamed.processor.turns import Turn


def encoded(image, form="BMP", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def half(image):
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def brighter(image, factor):
    return ImageEnhance.Brightness(image).enhance(factor)


def cropped(image):
    """One part in a hundred of each edge is gone."""
    across, down = round(image.width / 100), round(image.height / 100)
    return image.crop((across, down, image.width - across, image.height - down))


COPIES = {  # with the most bits by which a copy of the 60 real images differs, at 336 pixels
    "jpeg at quality 75": (lambda image: encoded(image, "JPEG", quality=75), 3),
    "jpeg at quality 50": (lambda image: encoded(image, "JPEG", quality=50), 5),
    "half the size": (lambda image: encoded(half(image)), 8),
    "half the size as jpeg": (lambda image: encoded(half(image), "JPEG", quality=50), 8),
    "10 % brighter": (lambda image: encoded(brighter(image, 1.1)), 9),
    "10 % darker": (lambda image: encoded(brighter(image, 0.9)), 4),
    "crop of 2 %": (lambda image: encoded(cropped(image)), 35),
}
NEAREST_REAL = 75


def words_of(files, size):
    images = ImageSettings(size, "square", CLIP_MEAN, CLIP_STD)
    hashes = b"".join(hash_image(to_pixels(data, images)) for data in files)
    return np.frombuffer(hashes, np.uint64).reshape(-1, 4)


def distances(these, those):
    return np.bitwise_count(these ^ those).sum(axis=-1, dtype=int)


def read(data):
    return Image.open(io.BytesIO(data)).convert("RGB")


@pytest.fixture(scope="module")
def real(reference_data):
    folder = reference_data / "data" / "vqa-rad" / "images"
    return [read(file.read_bytes()) for file in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def real_words(real):
    return words_of(map(encoded, real), 336)


def test_no_two_real_images_are_near(real_words):
    others = distances(real_words[:, None], real_words)[np.triu_indices(len(real_words), 1)]
    assert others.min() >= NEAREST_REAL > 1.5 * MAX_DISTANCE


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_real_images_are_near(real, real_words, name):
    copy, worst = COPIES[name]
    found = distances(real_words, words_of(map(copy, real), 336))
    assert found.max() <= worst <= MAX_DISTANCE


@pytest.mark.parametrize("name", ["jpeg at quality 75", "half the size", "10 % brighter"])
def test_of_phantoms_a_copy_is_nearest_to_its_original(name):
    """Drawn from one pattern, two of them may differ in fewer bits than copies of real images."""
    source = PhantomSource(kind="captions", split="train", num_images=60, seed=0, image_size=48)
    images = [read(source.load_image(f"phantom:train:0:{i}")) for i in range(60)]
    copies = words_of([COPIES[name][0](image) for image in images], 48)
    found = distances(copies[:, None], words_of(map(encoded, images), 48))
    assert found.argmin(axis=1).tolist() == list(range(60))
    assert found.min(axis=1).max() < MAX_DISTANCE


@pytest.mark.parametrize("level", [0, 7, 255])
def test_an_image_of_one_colour_has_no_frequencies(level):
    bits = np.unpackbits(np.frombuffer(hash_image(np.full((30, 30, 3), level, np.uint8)), np.uint8))
    assert bits[1:].sum() == 0, "which the noise of inexact sums would fill"
    assert bits[0] == (level > 0)


def test_the_bits_are_the_same_on_every_machine():
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    assert (
        hash_image(pixels).hex()
        == "d45b5b180a4f0d2a3505b46093e98141b622cd0744319a9b3b409b95b2d5f506"
    )
    assert len(hash_image(pixels)) == IMAGE_HASH_BYTES
    assert np.abs(content._COSINES).sum(axis=1).max() ** 2 * 255 < 2**53, "sums are exact"


@given(
    count=st.integers(0, 12),
    others=st.integers(0, 9),
    limit=st.integers(0, 256),
    block=st.sampled_from([1, 7, 1 << 20]),
    seed=st.integers(0, 99),
)
def test_comparing_in_blocks_finds_what_comparing_all_finds(count, others, limit, block, seed):
    random = np.random.default_rng(seed)
    these, those = (
        random.integers(0, 2**64, (number, 4), dtype=np.uint64, endpoint=False)
        for number in (count, others)
    )
    those[: min(count, others)] = these[: min(count, others)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "_BLOCK_DISTANCES", block)
        found = list(zip(*(part.tolist() for part in near(these, those, limit)), strict=True))
    wanted = [
        (i, j, distance)
        for i, this in enumerate(these.tolist())
        for j, that in enumerate(those.tolist())
        if (distance := sum((a ^ b).bit_count() for a, b in zip(this, that, strict=True))) <= limit
    ]
    assert found == wanted


@given(st.text())
def test_folding_twice_is_folding_once(text):
    assert fold(fold(text)) == fold(text)


@pytest.mark.parametrize(
    "text",
    [
        "<image>\nIs the T2 signal high?",
        "is the  T2 signal high",
        "Is the\u00a0T2 signal high?\n<image>",
        "“IS THE T2-SIGNAL, HIGH”",
        "Is the T² sig\u00adnal high?",
        "Ｉs the T2 signal high",
    ],
)
def test_the_same_words_typed_otherwise_fold_to_the_same(text):
    assert fold(text) == "is the t2 signal high"


@pytest.mark.parametrize(
    ("one", "other"), [("p < 5", "p > 5"), ("A lung", "Along"), ("left 1", "left 12"), ("é", "e")]
)
def test_other_words_stay_other_words(one, other):
    assert fold(one) != fold(other)


def test_images_that_look_alike_are_no_duplicates():
    """The look is of grey levels: these two have one, and other colours."""
    one = np.zeros((20, 20, 3), np.uint8)
    two = one.copy()
    one[5:15, 5:15], two[5:15, 5:15] = (100, 0, 0), (0, 51, 0)
    assert hash_image(one) == hash_image(two)
    turns = [Turn("user", "<image>What?"), Turn("assistant", "A square.")]
    hashes = [
        hash_content(turns, [hash_image(pixels)], [hash_pixels(pixels)])["sample_hash"]
        for pixels in (one, two, one.copy(), one.reshape(10, 40, 3))
    ]
    assert hashes[0] == hashes[2]
    assert len(set(hashes)) == 3


def test_a_sample_is_a_duplicate_only_with_all_images_and_all_words():
    asked = [Turn("user", "<image>What?"), Turn("assistant", "A lung.")]
    again = [Turn("user", "what <image>"), Turn("assistant", "a lung")]
    other = [Turn("user", "What?"), Turn("assistant", "A heart.")]
    one, two = b"1" * 32, b"2" * 32
    found = hash_content(asked, [one], [one])
    assert found["sample_hash"] == hash_content(again, [one], [one])["sample_hash"]
    different = [
        hash_content(asked, [two], [two]),
        hash_content(asked, [one, one], [one, one]),
        hash_content(asked, [], []),
        hash_content(other, [one], [one]),
        hash_content(asked + other, [one], [one]),
        hash_content([Turn("user", "What?"), Turn("user", "A lung.")], [one], [one]),
        hash_content([asked[0], Turn("assistant", "A lung.", trained=False)], [one], [one]),
    ]
    assert len({sample["sample_hash"] for sample in [found, *different]}) == 8
    assert hash_content([Turn("user", "<image>?!")], [one], [one])["question_hashes"] == [NO_TEXT]


def test_samples_that_differ_only_in_their_system_turn_are_no_duplicates():
    dialogue = [Turn("user", "What is seen?"), Turn("assistant", "A lung.")]
    plain, brief, long = (
        content.hash_content([*system, *dialogue], [], [])["sample_hash"]
        for system in ([], [Turn("system", "Be brief.")], [Turn("system", "Explain at length.")])
    )
    assert len({plain, brief, long}) == 3
