import io
import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from llavamed.errors import SampleError
from llavamed.processor.image_files import MAX_IMAGE_PIXELS
from llavamed.processor.images import from_planes, normalize_pixels, to_pixels, to_planes
from tests.support.image_files import claim, encoded, noise, ours, preprocess, settings_of
from tests.support.refused_samples import refusal as refused

RED, GREEN = (255, 0, 0), (0, 255, 0)
MEAN_COLOUR = (122, 116, 104)
KINDS = {"square224": (224, "square"), "square336": (336, "square"), "pad336": (336, "pad")}
SQUARE, PAD = settings_of(32), settings_of(32, "pad")
FAST, FAST_PAD = settings_of(32, backend="fast"), settings_of(32, "pad", "fast")
each = pytest.mark.parametrize(
    "images", [SQUARE, PAD, FAST, FAST_PAD], ids=["square", "pad", "fast", "fast pad"]
)


def images_of(kind):
    return settings_of(*KINDS[kind])


def refusal(data, images=SQUARE):
    return refused(to_pixels, data, images)


@pytest.mark.parametrize("kind", KINDS)
def test_real_images_equal_those_of_transformers_bit_for_bit(kind, reference_data):
    files = sorted((reference_data / "data" / "vqa-rad" / "images").iterdir())
    assert len(files) == 60
    images = images_of(kind)
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
        found, expected = ours(data, images_of(kind)), entry[kind]
        assert list(found.shape) == expected["shape"]
        for sample in expected["samples"]:
            assert found[tuple(sample["at"])] == np.float32(sample["value"])
        # The worst difference seen is 2.4e-7, of the order of summing; a grey level is 1.5e-2.
        assert found.mean(axis=(1, 2)) == pytest.approx(expected["mean"], abs=1e-6)
        assert found.std(axis=(1, 2)) == pytest.approx(expected["std"], abs=1e-6)


sides = st.integers(1, 90)


@settings(max_examples=40)
@given(width=sides, height=sides, seed=st.integers(0, 9), images=st.sampled_from([SQUARE, PAD]))
def test_images_of_any_size_equal_those_of_transformers(width, height, seed, images):
    image = noise(width, height, seed)
    data = encoded(image)
    pixels = to_pixels(data, images)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, to_pixels(data, images))
    assert np.array_equal(ours(data, images), preprocess(image, images))


@given(seed=st.integers(0, 99), grey=st.booleans(), nearly=st.booleans())
def test_planes_are_the_same_pixels_and_one_where_grey(seed, grey, nearly):
    pixels = np.random.default_rng(seed).integers(0, 255, size=(16, 16, 3), dtype=np.uint8)
    if grey:
        pixels[..., 1:] = pixels[..., :1]
        pixels[seed % 15, 3, 2] += nearly  # one value of one pixel
    planes = to_planes(pixels)
    assert np.array_equal(from_planes(planes, 16), pixels)
    assert len(planes) == 16 * 16 * (1 if grey and not nearly else 3)


def test_normalised_batches_are_the_images_one_by_one():
    pixels = np.stack([to_pixels(encoded(noise(40, 50, seed)), SQUARE) for seed in range(3)])
    batch = normalize_pixels(pixels, SQUARE)
    assert batch.shape == (3, 3, 32, 32)
    for number in range(3):
        assert np.array_equal(batch[number], normalize_pixels(pixels[number][None], SQUARE)[0])
    stored = [from_planes(to_planes(image), 32) for image in pixels]
    assert np.array_equal(batch, normalize_pixels(stored, SQUARE))
    assert normalize_pixels(pixels[:0], SQUARE).shape == (0, 3, 32, 32)


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
        encoded(Image.fromarray(np.full((40, 50), 0x9000, np.int32)), "TIFF"),
        (144, 144, 144),
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


@pytest.mark.parametrize(
    ("square", "pad"), [(SQUARE, PAD), (FAST, FAST_PAD)], ids=["exact", "fast"]
)
@pytest.mark.parametrize(("data", "colour"), COLOURS.values(), ids=COLOURS)
def test_every_kind_of_image_becomes_its_colours(data, colour, square, pad):
    pixels = to_pixels(data, square)
    assert pixels.shape == (32, 32, 3)
    assert np.unique(pixels.reshape(-1, 3), axis=0).tolist() == [list(colour)]
    assert tuple(np.median(to_pixels(data, pad)[16], axis=0)) in {colour, MEAN_COLOUR}


@each
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 40_000, 2**31 - 1])
def test_a_bomb_is_refused_before_it_is_decoded(side, images, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it is decoded"))
    reason, detail = refusal(claim(side, side), images)
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
    "empty": (b"", "0 bytes in none of the known formats"),
    "text": (b"404 Not Found", "13 bytes in none of the known formats"),
    "DICOM": (bytes(128) + b"DICM", "132 bytes are a DICOM file, which the source `scans` reads"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1", "42 bytes are a pointer of Git LFS"),
    "a page": (b"<!DOCTYPE html><html><body>Not found</body></html>", "50 bytes in none of the"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "47 bytes in none"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "OSError: image file is truncated"),
    "a JPEG without its last bytes": (JPEG[:-40], "OSError: image file is truncated"),
    "half a PNG": (PNG[: len(PNG) // 2], "OSError: image file is truncated"),
    "a header alone": (PNG[:33], ""),
    "less than it claims": (claim(3000, 3000), "OSError: image file is truncated"),
    "flipped bits": (PNG[:2000] + bytes(60) + PNG[2060:], ""),
}


@each
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


@settings(max_examples=60)
@given(
    st.binary(max_size=200)
    | st.binary(max_size=60).map(lambda data: PNG[:40] + data)
    | st.binary(max_size=60).map(lambda data: JPEG[:700] + data)
)
def test_any_bytes_become_pixels_or_a_bad_sample(data):
    for images in (SQUARE, FAST):
        with suppress(SampleError):
            assert to_pixels(data, images).shape == (32, 32, 3)
