"""Read image files of any known format as upright RGB pixels of 8 bits, and write PNG."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from simplejpeg import decode_jpeg

from llavamed.errors import SampleError
from llavamed.processor.pixel_range import check_visible, to_8_bits
from llavamed.processor.tiles import Size
from llavamed.storage.fetch import LFS_ADVICE, is_lfs_pointer

Pixels = npt.NDArray[np.uint8]
"""uint8 array of shape [height, width, 3]."""

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats to decode. Other formats of Pillow call programs, such as Ghostscript for EPS."""

TRANSPARENCY = "a picture's transparency"
PAGES = "pages of a picture after its first"
DAMAGE = "damaged parts of a picture"
"""Parts of a file that are not read."""

_JPEG_DAMAGE = "Corrupt JPEG data"
"""Start of libjpeg's warning of data that it skips or fills in; Pillow does not pass it on."""

MAX_IMAGE_PIXELS = 89_478_485
"""Larger images are refused before they are decoded: a few bytes may claim to be gigabytes."""


def decode(data: bytes, on_unread: Callable[[str], None] = lambda _: None) -> Pixels:
    """Decode an image of any size to upright RGB.

    Args:
        on_unread: Called with `TRANSPARENCY`, `PAGES` or `DAMAGE`, where such a part is not read.

    Raises:
        SampleError: `corrupt_image`, `image_too_large`, `unknown_pixel_range` or
            `transparent_image`.
    """
    with _image_errors(data):
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_size(*image.size)
        if image.format == "JPEG" and image.mode in {"L", "RGB"} and _is_upright(image):
            try:
                pixels = decode_jpeg(data, "RGB")  # the same bits as Pillow's, in less time
                check_visible(pixels)
                return pixels
            except ValueError as error:  # let Pillow decide about irregular files
                if str(error).startswith(_JPEG_DAMAGE):
                    on_unread(DAMAGE)
        image.load()
        if not _is_upright(image):
            ImageOps.exif_transpose(image, in_place=True)
        pixels = np.array(to_8_bits(image, data).convert("RGB"))
        if image.mode[0] not in "IF":
            check_visible(pixels)
        if _is_transparent(image, pixels):
            on_unread(TRANSPARENCY)
        if _has_pages(data):
            on_unread(PAGES)
        return pixels


def read_size(data: bytes) -> Size:
    """Return the height and width of an image as `decode` returns it.

    Only a PNG is decoded for that.

    Raises:
        SampleError: `corrupt_image` or `image_too_large`.
    """
    with _image_errors(data):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_size(*image.size)
        if image.format == "PNG":
            image.load()  # its orientation may stand behind its pixels
        width, height = image.size
        is_turned = image.format != "TIFF" and _is_on_its_side(image)  # Pillow turns TIFF itself
        return (width, height) if is_turned else (height, width)


def read_header(data: bytes) -> tuple[str, int, int]:
    """Return the format of an image, which is one of `FORMATS`, its width and its height.

    Only the file's head is read; what follows may still be damaged.

    Raises:
        SampleError: `corrupt_image` or `image_too_large`.
    """
    with _image_errors(data):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_size(*image.size)
        form = "JPEG" if image.format == "MPO" else str(image.format)  # a JPEG with more pictures
        return form, *image.size


def to_png(pixels: Pixels) -> bytes:
    """Encode pixels as PNG, which is lossless."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def is_dicom(data: bytes) -> bool:
    """Return whether a file says that it is a DICOM file."""
    return data[128:132] == b"DICM"


def check_size(width: int, height: int) -> None:
    """Raise SampleError, `image_too_large`, if an image of this size is not decoded."""
    if width * height > MAX_IMAGE_PIXELS:
        raise SampleError(
            "image_too_large", f"{width}x{height} pixels, at most {MAX_IMAGE_PIXELS} are decoded"
        )


@contextmanager
def _image_errors(data: bytes) -> Iterator[None]:
    """Turn whatever Pillow raises into a SampleError."""
    try:
        yield
    except SampleError:
        raise
    except Image.DecompressionBombError as error:
        raise SampleError("image_too_large", str(error)) from error
    except UnidentifiedImageError as error:  # its text holds an address that differs in every run
        kind = "in none of the known formats"
        if is_lfs_pointer(data):
            kind = f"are a pointer of Git LFS; {LFS_ADVICE}"
        elif is_dicom(data):
            kind = "are a DICOM file, which the source `scans` reads and no other"
        raise SampleError("corrupt_image", f"{len(data)} bytes {kind}") from error
    except Exception as error:  # Pillow's decoders raise whatever their C code meets
        raise SampleError("corrupt_image", f"{type(error).__name__}: {error}") from error


def _is_transparent(image: Image.Image, pixels: Pixels) -> bool:
    """Return whether any pixel is transparent.

    Raises:
        SampleError: `transparent_image`, if only the transparency differs between pixels.
    """
    if not image.has_transparency_data or image.mode[0] in "IF":
        return False
    try:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
    except (ValueError, TypeError, OverflowError):  # the transparent colour is not of this mode
        return False
    if np.ptp(alpha) and (pixels == pixels[0, 0]).all():
        raise SampleError(
            "transparent_image",
            f"every pixel is of the colour {pixels[0, 0].tolist()} and only their transparency "
            "differs; lay the picture on a background",
        )
    return bool(alpha.min() < 255)


def _has_pages(data: bytes) -> bool:
    """Return whether the file has more than one page or frame, as far as it can be read."""
    with suppress(Exception):  # the first page was decoded, and no other is used
        # To count the frames of a GIF or TIFF would read all of them, which may be a million.
        return bool(getattr(Image.open(io.BytesIO(data), formats=FORMATS), "is_animated", False))
    return False


def _is_upright(image: Image.Image) -> bool:
    """Return whether the image is shown as it is stored."""
    return _orientation(image) == 1


def _is_on_its_side(image: Image.Image) -> bool:
    """Return whether the rows of the stored image are columns of the image that is shown."""
    return _orientation(image) in (5, 6, 7, 8)


def _orientation(image: Image.Image) -> Any:
    """Return the orientation by EXIF, 1 for upright, which broken metadata does not change."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow's parser raises whatever it stumbles on
        return 1
