"""What each backend makes of every kind of file, beside what transformers makes of it."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from llavamed.data.prepare.made_from import made_from
from llavamed.processor.build import load_processor
from llavamed.processor.image_files import decode, read_size
from llavamed.processor.images import to_pixels
from tests.support.image_files import encoded, noise, ours, photo, png, preprocess, settings_of

MOST_LEVELS, MEAN_LEVELS = 2, 0.01
"""By which the fast backend may differ: the worst seen are 2, and on average of an image 0.007."""
PHOTO = photo(120, 90)


def check(data, reference, size=32):
    """Both backends make of a file what transformers makes of its upright RGB picture."""
    for aspect_ratio in ("square", "pad"):
        exact = settings_of(size, aspect_ratio)
        assert np.array_equal(ours(data, exact), preprocess(reference.convert("RGB"), exact))
        fast = to_pixels(data, settings_of(size, aspect_ratio, "fast"))
        assert difference(fast, to_pixels(data, exact)).max() <= MOST_LEVELS


def difference(some, others):
    return np.abs(some.astype(int) - others)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def deep(image):
    """An RGB PNG of 16 bits, whose lower bytes are not those of the upper ones."""
    values = (np.asarray(image).astype(np.uint16) * 256 + 99).astype(">u2")
    lines = b"".join(b"\0" + line.tobytes() for line in values)
    return png(*image.size, 16, lines)


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
PAGES = [photo(40, 50, 1), photo(40, 50, 2)]
FILES = {
    "16-bit RGB PNG": (deep(PHOTO), PHOTO),
    "grey": (encoded(PHOTO.convert("L")), PHOTO.convert("L")),
    "grey JPEG": (encoded(PHOTO.convert("L"), "JPEG"), None),
    "grey in colours": (encoded(PHOTO.convert("L").convert("RGB"), "JPEG"), None),
    "bits": (encoded(PHOTO.convert("1")), PHOTO.convert("1")),
    "palette": (encoded(PHOTO.quantize(50)), PHOTO.quantize(50)),
    "transparent palette": (encoded(PHOTO.quantize(50), transparency=3), PHOTO.quantize(50)),
    "see-through": (encoded(Image.merge("RGBA", (*PHOTO.split(), PHOTO.getchannel(0)))), PHOTO),
    "grey see-through": (encoded(PHOTO.convert("LA")), PHOTO.convert("L")),
    "Adobe's inverted CMYK JPEG": (encoded(PHOTO.convert("CMYK"), "JPEG"), None),
    "RGB JPEG": (encoded(PHOTO, "JPEG", keep_rgb=True), None),
    "progressive JPEG": (encoded(PHOTO, "JPEG", progressive=True), None),
    "JPEG of a colour profile": (encoded(PHOTO, "JPEG", icc_profile=PROFILE), None),
    "JPEG with more behind it": (encoded(PHOTO, "JPEG") + b"more" * 99, None),
    "broken metadata in a JPEG": (encoded(PHOTO, "JPEG", exif=b"Exif\0\0MM\0*\0\0"), None),
    "broken metadata in a PNG": (encoded(PHOTO, exif=b"broken" * 9), PHOTO),
    "an orientation that is none": (encoded(PHOTO, "JPEG", exif=exif(99)), None),
    "pages": (encoded(PAGES[0], "TIFF", save_all=True, append_images=PAGES), PAGES[0]),
    "lossless WebP": (encoded(PHOTO, "WEBP", lossless=True), PHOTO),
}


@pytest.mark.parametrize(("data", "reference"), FILES.values(), ids=FILES)
def test_every_kind_of_file_equals_its_picture(data, reference):
    check(data, reference or Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_or_flipped_image_stands_upright(orientation):
    for form in ("PNG", "TIFF", "JPEG"):
        data = encoded(PHOTO, form, exif=exif(orientation))
        with Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image)
        assert (upright.size != PHOTO.size) == (orientation >= 5)
        check(data, upright)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_every_kind_of_file_is_that_of_its_pixels(orientation):
    files = [
        encoded(PHOTO, form, exif=exif(orientation)) for form in ("PNG", "TIFF", "JPEG", "WEBP")
    ]
    png, end = files[0], files[0].index(b"IEND") - 4
    place = png.find(b"eXIf") - 4
    if place > 0:  # the orientation behind the pixels
        stop = png.index(b"IDAT") - 4
        files.append(png[:place] + png[stop:end] + png[place:stop] + png[end:])
    for data in files:
        assert read_size(data) == decode(data).shape[:2]
    assert len(files) == 5


def test_a_turned_image_of_16_bits_stands_upright():
    values = np.asarray(PHOTO.convert("L")).astype(np.uint16) * 256 + 99
    data = encoded(Image.fromarray(values), exif=exif(6))
    check(data, PHOTO.convert("L").transpose(Image.Transpose.ROTATE_270))


SHAPES = [(1, 1), (3, 250), (1000, 30), (224, 224), (337, 336), (1100, 1300), (30, 1500)]


@pytest.mark.parametrize("size", [224, 336])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_of_all_shapes_equal_those_of_transformers(shape, size):
    image = photo(*shape)
    check(encoded(image, "JPEG"), Image.open(io.BytesIO(encoded(image, "JPEG"))), size)
    check(encoded(image), image, size)


sides = st.integers(1, 70)


@settings(max_examples=60)
@given(
    width=sides,
    height=sides,
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    progressive=st.booleans(),
    restart=st.integers(0, 3),
    mode=st.sampled_from(["RGB", "L"]),
)
def test_any_jpeg_is_decoded_to_the_bits_of_pillow(
    width, height, quality, subsampling, progressive, restart, mode
):
    data = encoded(
        noise(width, height).convert(mode),
        "JPEG",
        quality=quality,
        subsampling=subsampling,
        progressive=progressive,
        restart_marker_blocks=restart,
    )
    check(data, Image.open(io.BytesIO(data)))


@settings(max_examples=60)
@given(start=st.integers(0, 2**16), flips=st.integers(1, 255), count=st.integers(1, 9))
def test_a_damaged_jpeg_is_judged_by_pillow(start, flips, count):
    """What Pillow reads is read to the same bits, also where the fast decoder would not."""
    data = bytearray(encoded(PHOTO, "JPEG", quality=95))
    for number in range(count):
        data[(start + 97 * number) % len(data)] ^= flips
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llavamed.processor.image_files.decode_jpeg", refuse)
        expected = outcome(bytes(data))
    assert outcome(bytes(data)) == expected


def refuse(*_):
    raise ValueError("not by this decoder")


def outcome(data):
    try:
        return to_pixels(data, settings_of(32)).tobytes()
    except Exception as error:
        return type(error), str(error)


def test_a_single_coloured_pixel_is_not_lost_in_a_grey_image():
    image = PHOTO.convert("L").convert("RGB")
    image.putpixel((61, 45), (255, 0, 0))
    check(encoded(image), image)


@pytest.mark.parametrize("aspect_ratio", ["square", "pad"])
@pytest.mark.parametrize("size", [224, 336])
def test_the_fast_backend_differs_by_as_little_as_it_says(size, aspect_ratio, reference_data):
    exact, fast = (settings_of(size, aspect_ratio, backend) for backend in ("exact", "fast"))
    differs = []
    for file in (reference_data / "data" / "vqa-rad" / "images").iterdir():
        data = file.read_bytes()
        levels = difference(to_pixels(data, fast), to_pixels(data, exact))
        assert levels.max() <= MOST_LEVELS, file.name
        assert levels.mean() <= MEAN_LEVELS, file.name
        differs.append((levels > 0).mean())
    assert 0 < np.mean(differs) <= 0.003


@pytest.mark.parametrize(("height", "width"), [(59, 30), (299, 3), (500, 400)])
def test_the_fast_backend_differs_more_where_pixels_jump(height, width):
    bits = np.random.default_rng(0).integers(0, 2, (height, width), dtype=np.uint8) * 255
    data = encoded(Image.fromarray(bits))
    for size in (14, 37, 224, 336):
        exact, fast = (settings_of(size, "stretch", backend) for backend in ("exact", "fast"))
        assert difference(to_pixels(data, fast), to_pixels(data, exact)).max() <= 30


def test_a_dataset_of_one_backend_is_not_taken_for_one_of_the_other(tiny_config, processor_folder):
    processor = load_processor(processor_folder)
    found = {
        backend: made_from(
            tiny_config.model_copy(
                update={"data": tiny_config.data.model_copy(update={"image_backend": backend})}
            ),
            next(iter(tiny_config.data.datasets)),
            processor,
        )
        for backend in ("exact", "fast")
    }
    assert found["exact"] != found["fast"]
    for backend, facts in found.items():
        assert facts.images.backend == backend
