import io
import json
import struct
import time
import zlib
from contextlib import suppress
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

from llavamed.data.images import MAX_IMAGE_PIXELS, ImageSettings, normalize, to_pixels
from llavamed.errors import BadSample
from llavamed.model.processor import CLIP_MEAN, CLIP_STD

RED, GREEN = (255, 0, 0), (0, 255, 0)
MEAN_COLOUR = (122, 116, 104)
KINDS = {"square224": (224, "square"), "square336": (336, "square"), "pad336": (336, "pad")}
SQUARE = ImageSettings(32, "square", CLIP_MEAN, CLIP_STD)
PAD = ImageSettings(32, "pad", CLIP_MEAN, CLIP_STD)
both = pytest.mark.parametrize("images", [SQUARE, PAD], ids=["square", "pad"])


def settings_of(kind):
    size, aspect_ratio = KINDS[kind]
    return ImageSettings(size, aspect_ratio, CLIP_MEAN, CLIP_STD)


@cache
def theirs(size, aspect_ratio):
    edges = {"shortest_edge": size}
    crop = {"height": size, "width": size}
    if aspect_ratio == "square":
        return CLIPImageProcessorPil(size=edges, crop_size=crop)
    return LlavaImageProcessorPil(
        size=edges, crop_size=crop, do_pad=True, image_mean=CLIP_MEAN, image_std=CLIP_STD
    )


def preprocess(image, images):
    """What transformers makes of an image: [3, size, size], float32."""
    processor = theirs(images.size, images.aspect_ratio)
    return np.asarray(processor(image, return_tensors="np")["pixel_values"][0])


def ours(data, images):
    return normalize(to_pixels(data, images)[None], images)[0]


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(width, height, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def refusal(data, images=SQUARE):
    with pytest.raises(BadSample) as caught:
        to_pixels(data, images)
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize("kind", KINDS)
def test_real_images_equal_those_of_transformers_bit_for_bit(kind, reference_data):
    files = sorted((reference_data / "data" / "vqa-rad" / "images").iterdir())
    assert len(files) == 60
    images = settings_of(kind)
    for file in files:
        data = file.read_bytes()
        expected = preprocess(Image.open(io.BytesIO(data)).convert("RGB"), images)
        found = ours(data, images)
        assert found.dtype == expected.dtype == np.float32
        assert np.array_equal(found, expected), file.name


@pytest.mark.parametrize("kind", KINDS)
def test_real_images_equal_the_reference_s_values(kind, reference_data):
    golden = json.loads((reference_data / "golden/images/clip_preprocess.json").read_bytes())
    assert len(golden["images"]) == 8
    for entry in golden["images"]:
        data = (reference_data / "data" / "vqa-rad" / "images" / entry["file"]).read_bytes()
        found, expected = ours(data, settings_of(kind)), entry[kind]
        assert list(found.shape) == expected["shape"]
        for sample in expected["samples"]:
            assert found[tuple(sample["at"])] == np.float32(sample["value"])
        # The worst difference seen is 2.4e-7, of the order of summing; a grey level is 1.5e-2.
        assert found.mean(axis=(1, 2)) == pytest.approx(expected["mean"], abs=1e-6)
        assert found.std(axis=(1, 2)) == pytest.approx(expected["std"], abs=1e-6)


sides = st.integers(1, 90)


@settings(max_examples=40, deadline=None)
@given(width=sides, height=sides, seed=st.integers(0, 9), images=st.sampled_from([SQUARE, PAD]))
def test_images_of_any_size_equal_those_of_transformers(width, height, seed, images):
    image = noise(width, height, seed)
    data = encoded(image)
    pixels = to_pixels(data, images)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, to_pixels(data, images))
    assert np.array_equal(ours(data, images), preprocess(image, images))


def test_normalised_batches_are_the_images_one_by_one():
    pixels = np.stack([to_pixels(encoded(noise(40, 50, seed)), SQUARE) for seed in range(3)])
    batch = normalize(pixels, SQUARE)
    assert batch.shape == (3, 3, 32, 32)
    for number in range(3):
        assert np.array_equal(batch[number], normalize(pixels[number][None], SQUARE)[0])
    assert normalize(pixels[:0], SQUARE).shape == (0, 3, 32, 32)


def test_padding_is_of_the_mean_colour_and_keeps_the_whole_image():
    pixels = to_pixels(encoded(Image.new("RGB", (64, 32), RED)), PAD)
    assert tuple(pixels[0, 0]) == tuple(pixels[31, 31]) == MEAN_COLOUR
    assert tuple(pixels[16, 0]) == tuple(pixels[16, 31]) == RED


def test_cropping_keeps_the_centre():
    image = Image.new("RGB", (96, 32), GREEN)
    image.paste(RED, (32, 0, 64, 32))
    pixels = to_pixels(encoded(image), SQUARE)
    assert (pixels[:, 2:30] == RED).all()


def grey16(value):
    return Image.fromarray(np.full((40, 50), value, np.uint16))


ANIMATION = [Image.new("RGB", (50, 40), colour) for colour in (RED, GREEN)]
PALETTE = Image.new("P", (50, 40), 3)
PALETTE.putpalette([10, 20, 30] * 256)
COLOURS = {
    "grey": (encoded(Image.new("L", (50, 40), 77)), (77, 77, 77)),
    "one bit": (encoded(Image.new("1", (50, 40), 1)), (255, 255, 255)),
    "16-bit PNG": (encoded(grey16(0x8081)), (128, 128, 128)),
    "16-bit TIFF": (encoded(grey16(0xFFFF), "TIFF"), (255, 255, 255)),
    "32-bit TIFF": (
        encoded(Image.fromarray(np.full((40, 50), 0x1000, np.int32)), "TIFF"),
        (16, 16, 16),
    ),
    "palette": (encoded(PALETTE), (10, 20, 30)),
    "transparent palette": (encoded(PALETTE, transparency=3), (10, 20, 30)),
    "CMYK JPEG": (encoded(Image.new("CMYK", (50, 40), (0, 255, 255, 0)), "JPEG"), RED),
    "CMYK TIFF": (encoded(Image.new("CMYK", (50, 40), (0, 255, 255, 0)), "TIFF"), RED),
    "alpha": (encoded(Image.new("RGBA", (50, 40), (*GREEN, 128))), GREEN),
    "grey alpha": (encoded(Image.new("LA", (50, 40), (77, 0))), (77, 77, 77)),
    "animated GIF": (encoded(ANIMATION[0], "GIF", save_all=True, append_images=ANIMATION), RED),
    "animated PNG": (encoded(ANIMATION[0], save_all=True, append_images=ANIMATION), RED),
    "pages": (encoded(ANIMATION[1], "TIFF", save_all=True, append_images=ANIMATION), GREEN),
    "BMP": (encoded(Image.new("RGB", (50, 40), RED), "BMP"), RED),
    "WebP": (encoded(Image.new("RGB", (50, 40), RED), "WEBP", lossless=True), RED),
    "JPEG 2000": (encoded(Image.new("RGB", (50, 40), RED), "JPEG2000"), RED),
    "one pixel": (encoded(Image.new("RGB", (1, 1), (9, 8, 7))), (9, 8, 7)),
    "slim": (encoded(Image.new("RGB", (1, 100), (9, 8, 7))), (9, 8, 7)),
}


@pytest.mark.parametrize(("data", "colour"), COLOURS.values(), ids=COLOURS)
def test_every_kind_of_image_becomes_its_colours(data, colour):
    pixels = to_pixels(data, SQUARE)
    assert pixels.shape == (32, 32, 3)
    assert np.unique(pixels.reshape(-1, 3), axis=0).tolist() == [list(colour)]
    assert tuple(np.median(to_pixels(data, PAD)[16], axis=0)) in {colour, MEAN_COLOUR}


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_a_rotated_image_stands_upright(mode):
    values = np.zeros((40, 40), np.uint16)
    values[:20, :20] = 0xFFFF  # top left, which a turn to the right brings to the top right
    image = Image.fromarray(values) if mode == "I;16" else Image.fromarray(values).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = to_pixels(encoded(image, exif=exif), SQUARE)
    bright = [bool(pixels[row, column, 0] > 128) for row in (4, 28) for column in (4, 28)]
    assert bright == [False, True, False, False]


def claim(width, height):
    """A PNG of a few bytes that claims to be this large."""

    def chunk(kind, data):
        length, check = struct.pack(">I", len(data)), struct.pack(">I", zlib.crc32(kind + data))
        return length + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@both
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 40_000, 2**31 - 1])
def test_a_bomb_is_refused_before_it_is_decoded(side, images):
    start = time.monotonic()
    reason, detail = refusal(claim(side, side), images)
    assert time.monotonic() - start < 0.5
    assert reason == "image_too_large"
    assert str(side) in detail or str(side * side) in detail


def test_an_image_that_padding_would_make_too_large_is_refused():
    data = encoded(Image.new("L", (20_000, 10)))
    assert refusal(data, PAD) == (
        "image_too_large",
        f"20000x20000 pixels, at most {MAX_IMAGE_PIXELS} are decoded",
    )


JPEG, PNG = encoded(noise(300, 200), "JPEG"), encoded(noise(300, 200))
CORRUPT = {
    "empty": (b"", "0 bytes of none of the formats"),
    "text": (b"404 Not Found", "13 bytes of none of the formats"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "47 bytes of none"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "OSError: image file is truncated"),
    "a JPEG without its last bytes": (JPEG[:-40], "OSError: image file is truncated"),
    "half a PNG": (PNG[: len(PNG) // 2], "OSError: image file is truncated"),
    "a header alone": (PNG[:33], ""),
    "less than it claims": (claim(3000, 3000), "OSError: image file is truncated"),
    "flipped bits": (PNG[:2000] + bytes(60) + PNG[2060:], ""),
}


@both
@pytest.mark.parametrize(("data", "detail"), CORRUPT.values(), ids=CORRUPT)
def test_a_corrupt_image_is_refused_the_same_way_each_time(data, detail, images):
    found = refusal(data, images)
    assert found[0] == "corrupt_image"
    assert found[1].startswith(detail)
    assert found == refusal(data, images)


@pytest.mark.parametrize("size", [(1, 101), (5000, 1)], ids=str)
def test_a_line_is_no_picture(size):
    width, height = size
    assert refusal(encoded(Image.new("L", size))) == (
        "corrupt_image",
        f"{width}x{height} pixels is a line, not a picture",
    )


@pytest.mark.parametrize("value", [np.float32(0.5), np.int32(70_000), np.int32(-1)], ids=str)
def test_pixels_of_unknown_range_are_refused(value):
    data = encoded(Image.fromarray(np.full((4, 5), value)), "TIFF")
    reason, detail = refusal(data)
    assert reason == "unknown_pixel_range"
    assert f"from {value} to {value}; known are 8 and 16 bits" in detail


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda data: PNG[:40] + data))
def test_any_bytes_become_pixels_or_a_bad_sample(data):
    with suppress(BadSample):
        assert to_pixels(data, SQUARE).shape == (32, 32, 3)
