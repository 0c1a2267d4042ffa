"""Which values of a file are black and white: the range it states, and never a guess."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llavamed.processor.image_files import DAMAGE, PAGES, TRANSPARENCY, decode
from llavamed.processor.images import to_pixels
from tests.support.image_files import encoded, photo, png, settings_of
from tests.support.refused_samples import refusal as refused

SIZE = 32
MINIMUM, MAXIMUM, INVERTED = 340, 341, {262: 0}
LEVELS = np.linspace(0, 1, SIZE * SIZE).reshape(SIZE, SIZE)


def levels(data):
    """The grey levels of a picture of the training resolution."""
    pixels = to_pixels(data, settings_of(SIZE))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def refusal(data):
    return refused(to_pixels, data, settings_of(SIZE))


def ramp(high, dtype=np.uint16, low=0):
    """Every level from the lowest value to the highest."""
    return (low + LEVELS * (high - low)).astype(dtype)


def grey(values, form="PNG", **options):
    return encoded(Image.fromarray(values), form, **options)


def with_significant_bits(data, *bits):
    """The PNG with a chunk that says how many bits of a channel are significant."""
    body = b"sBIT" + bytes(bits)
    chunk = struct.pack(">I", len(bits)) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + chunk + data[33:]


def pgm(values, maximum, kind=b"P5"):
    body = values.astype(">u2").tobytes() if maximum > 255 else values.astype(np.uint8).tobytes()
    if kind == b"P2":
        body = b" ".join(b"%d" % value for value in values.ravel())
    return b"%s\n# made by a scanner\n%d %d\n%d\n" % (kind, *values.shape[::-1], maximum) + body


@given(bits=st.integers(9, 15), seed=st.integers(0, 99))
def test_a_range_that_the_file_states_is_the_range(bits, seed):
    high = 2**bits - 1
    values = np.random.default_rng(seed).integers(0, high + 1, (SIZE, SIZE), dtype=np.uint16)
    expected = np.rint(values / high * 255).astype(np.uint8)
    stating = {
        "PNG": with_significant_bits(grey(values), bits),
        "TIFF": grey(values, "TIFF", tiffinfo={281: high}),
        "TIFF of any type": grey(values, "TIFF", tiffinfo={MINIMUM: 0.0, MAXIMUM: float(high)}),
        "32 bits": grey(values.astype(np.int32), "TIFF", tiffinfo={MAXIMUM: float(high)}),
        "fractions": grey(values.astype(np.float32), "TIFF", tiffinfo={MAXIMUM: float(high)}),
    }
    for data in stating.values():
        assert np.array_equal(levels(data), expected)
    inverted = grey(values, "TIFF", tiffinfo={281: high} | INVERTED)
    assert np.array_equal(levels(inverted), 255 - expected)
    for kind in (b"P5", b"P2"):  # Pillow scales to 16 bits first
        assert np.abs(levels(pgm(values, high, kind)).astype(int) - expected).max() <= 1


def test_a_stated_range_may_begin_below_zero():
    data = grey(
        ramp(1000, np.int32, low=-1000), "TIFF", tiffinfo={MINIMUM: -1000.0, MAXIMUM: 1000.0}
    )
    found = levels(data)
    assert (found[0, 0], found[-1, -1]) == (0, 255)
    assert np.abs(found - LEVELS * 255).max() < 1


@given(high=st.integers(1, 65535), bits=st.integers(8, 16))
def test_sixteen_bits_are_read_in_full_or_refused_with_the_range(high, bits):
    values = ramp(high)
    for data in (grey(values), grey(values, "TIFF"), pgm(values, 65535)):
        if high >= 2**15:
            assert np.array_equal(levels(data), values >> 8)
        else:
            reason, detail = refusal(data)
            assert reason == "unknown_pixel_range"
            assert f"from 0 to {high}; known are 8 and 16 bits that are used in full" in detail
    scaled_up = with_significant_bits(grey(values), bits)
    if high >= 2**bits:  # as the specification of PNG asks for
        assert np.array_equal(levels(scaled_up), values >> 8)


def test_twelve_bits_of_a_scanner_are_refused_where_the_file_says_sixteen(reference_data):
    file = reference_data / "cases/data/images/ct12.png"
    if not file.exists():
        pytest.skip("the cases are not here")
    assert refusal(file.read_bytes()) == (
        "unknown_pixel_range",
        "mode I;16, from 0 to 4095; known are 8 and 16 bits that are used in full, and a range "
        "that the file states",
    )


def test_sixteen_bits_whose_zero_is_white_are_inverted():
    values = ramp(65535)
    assert np.array_equal(levels(grey(values, "TIFF", tiffinfo=INVERTED)), 255 - (values >> 8))


def test_values_outside_of_the_stated_range_are_refused():
    data = grey(ramp(5000), "TIFF", tiffinfo={281: 4095})
    assert refusal(data) == (
        "unknown_pixel_range",
        "mode I;16, from 0 to 5000; the file states 0 to 4095",
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_has_no_range(value):
    values = ramp(1, np.float32)
    values[0, 0] = value
    assert refusal(grey(values, "TIFF", tiffinfo={MAXIMUM: 1.0}))[0] == "unknown_pixel_range"


@given(high=st.integers(1, 15), form=st.sampled_from(["PNG", "TIFF", "BMP", "palette", "colours"]))
def test_a_mask_is_refused_unless_the_file_states_its_range(high, form):
    mask = ramp(high, np.uint8)
    image = Image.fromarray(mask)
    if form == "palette":
        image = Image.fromarray(mask, "P")
        image.putpalette([level for level in range(256) for _ in range(3)])
    if form == "colours":
        image = image.convert("RGB")
    data = encoded(image, form if form in {"PNG", "TIFF", "BMP"} else "PNG")
    reason, detail = refusal(data)
    assert reason == "unknown_pixel_range"
    assert f"grey levels from 0 to {high} of 255; known are" in detail


@pytest.mark.parametrize("bits", range(1, 5))
def test_a_mask_whose_range_is_stated_is_read(bits):
    high = 2**bits - 1
    mask = ramp(high, np.uint8)
    expected = np.rint(mask / high * 255)
    assert np.array_equal(levels(with_significant_bits(grey(mask), bits)), expected)
    assert np.array_equal(levels(grey(mask, "TIFF", tiffinfo={281: high})), expected)
    assert np.array_equal(levels(pgm(mask, high)), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_nothing_but_zero_is_black_in_every_range(dtype):
    assert not levels(grey(np.zeros((SIZE, SIZE), dtype), "TIFF")).any()


@given(high=st.integers(16, 255))
def test_ordinary_pictures_of_eight_bits_stay_as_they_are(high):
    values = ramp(high, np.uint8)
    stated = grey(values, "TIFF", tiffinfo={281: high})
    for data in (grey(values), with_significant_bits(grey(values), 8), stated, pgm(values, 255)):
        assert np.array_equal(levels(data), values)


def deep(values, *bits):
    lines = b"".join(b"\0" + line.astype(">u2").repeat(3).tobytes() for line in values)
    data = png(SIZE, SIZE, 16, lines)
    return with_significant_bits(data, *bits) if bits else data


def test_colours_of_twelve_bits_in_sixteen_are_refused():
    twelve = deep(ramp(4095))
    for data in (twelve, with_significant_bits(twelve, 12, 12, 12)):
        assert refusal(data) == (
            "unknown_pixel_range",
            "colours of 16 bits, from 0 to 4095; known are 8 and 16 bits that are used in full, "
            "and a range that the file states",
        )
    dark = ramp(9000)
    assert refusal(deep(dark))[0] == "unknown_pixel_range"
    assert np.array_equal(levels(deep(dark, 12, 12, 12)), dark >> 8)
    assert np.array_equal(levels(deep(dark, 16, 16, 16)), dark >> 8)


def test_opacity_is_no_grey_level_of_sixteen_bits():
    values = ramp(2**14 - 1)
    lines = b"".join(
        b"\0" + np.stack([line, np.full_like(line, 65535)], axis=-1).astype(">u2").tobytes()
        for line in values
    )
    data = png(SIZE, SIZE, 16, lines, colours=4)
    assert refusal(data)[1].startswith("colours of 16 bits, from 0 to 16383; known are")
    full = b"".join(
        b"\0" + np.stack([line, line], axis=-1).astype(">u2").tobytes() for line in ramp(65535)
    )
    assert np.array_equal(levels(png(SIZE, SIZE, 16, full, colours=4)), ramp(65535) >> 8)


def test_a_signed_tiff_of_eight_bits_is_refused_below_zero():
    data = grey(ramp(255, np.uint8), "TIFF", tiffinfo={339: 2})
    assert refusal(data)[1].startswith("mode L, from -128 to 127; known are 8 and 16 bits")
    positive = ramp(127, np.uint8)
    assert np.array_equal(levels(grey(positive, "TIFF", tiffinfo={339: 2})), positive)


def test_jpeg_2000_states_its_precision():
    values = ramp(65535)
    assert np.array_equal(levels(grey(values, "JPEG2000")), values >> 8)
    data = bytearray(grey(ramp(4095), "JPEG2000"))
    assert refusal(bytes(data))[1].startswith("mode I;16, from 0 to 4095; known are")


def unread(data):
    found = []
    decode(data, found.append)
    return found


def without_its_last_rows(jpeg):
    return jpeg[:-40] + jpeg[-2:]


PHOTO = photo(SIZE, SIZE)
PAGED = {"save_all": True, "append_images": [photo(SIZE, SIZE, 1)]}
FADING = Image.fromarray((LEVELS * 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(PHOTO), []),
        (encoded(PHOTO, "JPEG"), []),
        (encoded(PHOTO.convert("RGBA")), []),
        (encoded(Image.merge("RGBA", (*PHOTO.split(), FADING))), [TRANSPARENCY]),
        (encoded(Image.merge("LA", (PHOTO.convert("L"), FADING))), [TRANSPARENCY]),
        (encoded(PHOTO.quantize(9), transparency=3), [TRANSPARENCY]),
        (encoded(PHOTO, "TIFF", **PAGED), [PAGES]),
        (encoded(PHOTO, "GIF", **PAGED), [PAGES]),
        (encoded(PHOTO, "WEBP", **PAGED), [PAGES]),
        (encoded(PHOTO, "PNG", **PAGED), [PAGES]),
        (encoded(PHOTO, "MPO", **PAGED), [PAGES]),
        (without_its_last_rows(encoded(PHOTO, "JPEG")), [DAMAGE]),
    ],
)
def test_what_is_not_used_of_a_file_is_told(data, expected):
    assert unread(data) == expected


def test_a_picture_of_nothing_but_transparency_is_refused():
    black = Image.new("RGBA", (SIZE, SIZE))
    black.putalpha(FADING)
    assert refusal(encoded(black)) == (
        "transparent_image",
        "every pixel is of the colour [0, 0, 0] and only their transparency differs; lay the "
        "picture on a background",
    )
