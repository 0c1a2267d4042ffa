"""What the pixels of a figure say: panels, repeats, evaluation sets, and text that is in them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llavamed.config.corpus import Select
from llavamed.corpus.select.captions import load_lexicon
from llavamed.corpus.select.gates import EvaluationSet, read_picture, read_words
from llavamed.corpus.select.pictures import find_panels, find_repeats
from llavamed.corpus.select.text_in_picture import identifying
from llavamed.data.prepared.content import hash_image
from llavamed.processor.images import ImageSettings, to_pixels
from tests.support.corpus_figures import figure
from tests.support.drawn_pictures import encoded, radiograph

LEXICON = load_lexicon(None)


@settings(max_examples=40)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 12), st.integers(0, 2**16))
def test_panels_between_white_gutters_are_found_and_single_pictures_stay_whole(
    rows, columns, gutter, seed
):
    random = np.random.default_rng(seed)
    white = np.full(
        (rows * 90 + (rows - 1) * gutter, columns * 100 + (columns - 1) * gutter, 3), 255
    )
    boxes = []
    for row in range(rows):
        for column in range(columns):
            top, left = row * (90 + gutter), column * (100 + gutter)
            white[top : top + 90, left : left + 100] = radiograph(random, 100, 90)
            boxes.append((left, top, left + 100, top + 90))
    assert find_panels(white.astype(np.uint8)) == boxes


def test_no_radiology_image_is_split_and_every_pair_of_two_is(reference_data):
    files = sorted((reference_data / "data/vqa-rad").rglob("*.jpg"))
    pictures = [np.asarray(Image.open(file).convert("RGB").resize((256, 256))) for file in files]
    assert len(pictures) == 60
    assert sum(len(find_panels(each)) > 1 for each in pictures) == 0
    gap = np.full((256, 4, 3), 255, np.uint8)
    pairs = zip(pictures, pictures[1:] + pictures[:1], strict=True)
    assert all(len(find_panels(np.hstack([one, gap, two]))) == 2 for one, two in pairs)


def test_black_gutters_split_a_picture_whose_panels_the_caption_counts():
    random = np.random.default_rng(1)
    one, two = (radiograph(random, 300, 300) for _ in range(2))
    data = encoded(np.hstack([one, np.zeros((300, 6, 3), np.uint8), two]))
    caption = "Chest radiographs. (A) Chest X-ray before treatment. (B) Chest X-ray after it."
    split = Select(panels="split")
    marked = read_words(figure(caption=caption), split, LEXICON)
    whole, *panels = read_picture(marked, data, split, LEXICON, [])
    assert (whole[0].refusal, [each.panel for each, _ in panels]) == ("compound", ["A", "B"])
    # The margin of a radiograph beside the gutter goes with it.
    assert [pixels.shape for _, pixels in panels] == [(300, 270, 3)] * 2
    [(judged, _)] = read_picture(figure(), data, split, LEXICON, [])
    assert judged.refusal == ""  # without letters a black band may be a margin


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=12), st.data())
def test_repeats_are_those_that_a_comparison_with_all_earlier_ones_finds(hashes, data):
    most = data.draw(st.integers(0, 12))
    for each in list(hashes):
        flips = data.draw(st.lists(st.integers(0, 255), max_size=14, unique=True))
        bits = np.unpackbits(np.frombuffer(each, np.uint8))
        bits[flips] ^= 1
        hashes.append(np.packbits(bits).tobytes())
    kept, wanted = [], {}
    for later, each in enumerate(hashes):
        for first in kept:
            ones = int.from_bytes(each) ^ int.from_bytes(hashes[first])
            if ones.bit_count() <= most:
                wanted[later] = first
                break
        else:
            kept.append(later)
    words = np.frombuffer(b"".join(hashes), dtype=np.uint64).reshape(-1, 4)
    assert find_repeats(words, most) == wanted


def test_a_picture_is_refused_for_what_its_pixels_are():
    random = np.random.default_rng(0)
    good = radiograph(random, 300, 300)
    other = radiograph(random, 300, 300)
    own = ImageSettings(224, "pad", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    held = np.frombuffer(hash_image(to_pixels(encoded(other), own)), np.uint64).reshape(-1, 4)
    held_out = EvaluationSet("vqa", own, held)

    def verdict(data):
        [(judged, _)] = read_picture(figure(), data, Select(), LEXICON, [held_out])
        return judged.refusal

    assert verdict(encoded(good)) == ""
    assert verdict(encoded(other, "JPEG")) == "in_evaluation_set"
    assert verdict(encoded(good[:200])) == "too_small"
    assert (
        verdict(encoded(np.hstack([good, np.full((300, 6, 3), 255, np.uint8), good]))) == "compound"
    )
    assert verdict(b"no picture") == "corrupt_image"


@pytest.mark.parametrize(
    "text", ["12/03/2019", "Name: X", "ID: 12345", "DOE^JOHN", "MRN 00123456", "45 Y", "20190312"]
)
def test_text_that_may_identify_a_person_is_found_and_not_repeated(text):
    found = identifying(["L", text])
    assert found is not None
    assert text not in found


def test_letters_and_scales_of_a_picture_are_no_identifiers():
    assert identifying(["L", "R", "A", "5 cm", "T2", "kV 120", "WL 40", "SUPINE"]) is None
