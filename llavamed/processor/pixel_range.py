"""Scale pixel values of any depth to 8 bits.

Medical images often use fewer bits than they are stored in: 12 bits of a scanner in the 16 of a
PNG, a mask of 0 and 1 in 8 bits. Scaled by the range of the container they would be black, and
scaled by their own values each image would have another contrast. So the range is never guessed:

- A range stated by the file is used: significant bits of a PNG (`sBIT`), maximum of a PGM,
  precision of a JPEG 2000; of a TIFF the bits per sample and `SMinSampleValue`, `SMaxSampleValue`,
  `MinSampleValue` and `MaxSampleValue`. A TIFF whose 0 is white is inverted.
- If the highest of 16 bits is used, the range is that of 16 bits.
- Ordinary images of 8 bits stay as they are. A grey one that never reaches 16 of 255 is a mask or
  a label map, unless it is all 0, which is black in every range.
- Every other image is refused, with the range that was found.
"""

import re
import struct
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffTags

from llavamed.errors import SampleError

Range = tuple[float, float]

_MASK = 16
"""Grey images of 8 bits whose values are all below this are masks."""
_FULL: Range = (0, 65535)
_KNOWN = "known are 8 and 16 bits that are used in full, and a range that the file states"
_TAGS = {tag.name: number for number, tag in TiffTags.TAGS_V2.items()}
_SIGNED = 2
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SIZES = b"\xff\x4f\xff\x51"
"""Start of the codestream of a JPEG 2000 file, which begins with its sizes."""
_PGM = re.compile(rb"P[25](?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+(\d+)")
"""Width, height and maximum in the header of a PGM."""


def to_8_bits(image: Image.Image, data: bytes) -> Image.Image:
    """Scale a decoded image to 8 bits, in a mode that converts to RGB.

    Args:
        image: The loaded image.
        data: The file it was decoded from.

    Raises:
        SampleError: `unknown_pixel_range`.
    """
    values, stated = np.asarray(image), _stated_range(image, data)
    if image.format == "TIFF" and image.mode == "L" and _tag(image, "SampleFormat") == _SIGNED:
        values = values.view(np.int8)
        if values.min() >= 0:
            return image
    elif image.mode == "L":
        is_mask = stated is not None and 0 < values.max() <= stated[1] < _MASK
        return Image.fromarray(_scaled(values, stated)) if stated and is_mask else image
    elif image.mode[0] not in "IF":
        if _is_of_16_bits(image, data):
            _check_upper_bytes(image, values, stated)
        return image
    low, high = values.min(), values.max()
    if stated is None and image.mode != "F" and _uses_16_bits(low, high):
        stated = _FULL
    if stated is None:
        raise _unknown(f"mode {image.mode}, from {low} to {high}; {_KNOWN}")
    if image.format == "PNG" and high > stated[1]:
        stated = _FULL  # the values are scaled up, as the specification of PNG requires
    if not stated[0] <= low <= high <= stated[1] or stated[0] == stated[1]:
        raise _unknown(
            f"mode {image.mode}, from {low} to {high}; the file states {stated[0]} to {stated[1]}"
        )
    scaled = _scaled(values, stated)
    is_inverted = image.format == "TIFF" and _tag(image, "PhotometricInterpretation") == 0
    return Image.fromarray(255 - scaled if is_inverted else scaled)


def check_visible(pixels: npt.NDArray[np.uint8]) -> None:
    """Raise SampleError if RGB pixels are grey and almost black, as those of a mask.

    Args:
        pixels: uint8 array of shape [height, width, 3].

    Raises:
        SampleError: `unknown_pixel_range`.
    """
    if pixels[::16, ::16].max() >= _MASK:  # sampled pixels are enough for most images
        return
    low, high = int(pixels.min()), int(pixels.max())
    if 0 < high < _MASK and (pixels == pixels[..., :1]).all():
        raise _unknown(f"grey levels from {low} to {high} of 255; {_KNOWN}")


def _stated_range(image: Image.Image, data: bytes) -> Range | None:
    """Return the values of black and white that a file states, as Pillow decodes them, or None."""
    match image.format:
        case "PNG":
            bits = _significant_bits(data)
            return (0, 2**bits - 1) if bits else None
        case "TIFF":
            high = _tag(image, "SMaxSampleValue", "MaxSampleValue")
            depth = _tag(image, "BitsPerSample") or 1
            if high is None and 8 < depth < 16:
                high = 2**depth - 1
            low = _tag(image, "SMinSampleValue", "MinSampleValue") or 0
            return None if high is None else (low, high)
        case "PPM":  # Pillow scales to 16 bits; a maximum of 65535 may mean any range
            maximum = _PGM.match(data)
            return _FULL if maximum and 255 < int(maximum[1]) < 65535 else None
        case "JPEG2000":
            return _FULL if 8 < _precision(data) < 16 else None  # Pillow scales to 16 bits
    return None


def _significant_bits(data: bytes) -> int:
    """Return the most significant bits that a PNG states for a channel, or 0 if it states none."""
    start = len(_PNG_SIGNATURE)
    while start + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        if kind == b"sBIT":
            return max(data[start + 8 : start + 8 + size], default=0)
        if kind == b"IDAT":
            break
        start += size + 12
    return 0


def _precision(data: bytes) -> int:
    """Return the bits of the first component of a JPEG 2000 file, or 0 if they are not found."""
    sizes = data.find(_SIZES)
    return (data[sizes + 42] & 0x7F) + 1 if 0 <= sizes < len(data) - 42 else 0


def _tag(image: Image.Image, *names: str) -> float | None:
    """Return the largest value of the first of these TIFF tags that the file has, or None."""
    for name in names:
        values = cast("Any", image).tag_v2.get(_TAGS[name])
        if values is not None:
            return max(values) if isinstance(values, tuple) else values
    return None


def _scaled(values: npt.NDArray[Any], stated: Range) -> npt.NDArray[np.uint8]:
    if stated == _FULL:
        return (values >> 8).astype(np.uint8)
    scaled = values.astype(np.float64)
    scaled -= stated[0]
    scaled *= 255 / (stated[1] - stated[0])
    return np.rint(scaled, out=scaled).astype(np.uint8)


def _uses_16_bits(low: float, high: float) -> bool:
    return bool(low >= 0 and (high == 0 or 2**15 <= high < 2**16))


def _is_of_16_bits(image: Image.Image, data: bytes) -> bool:
    if image.format == "PNG":
        return data[24] == 16
    return image.format == "TIFF" and _tag(image, "BitsPerSample") == 16


def _check_upper_bytes(image: Image.Image, values: npt.NDArray[Any], stated: Range | None) -> None:
    """Raise SampleError if the upper bytes of 16-bit colours, which Pillow keeps, are all small.

    Raises:
        SampleError: `unknown_pixel_range`.
    """
    colours = values[..., : 1 if image.mode == "LA" else 3]  # without opacity
    low, high = int(colours.min()), int(colours.max())
    is_scaled = stated is not None and image.format == "PNG" and high > int(stated[1]) >> 8
    if stated != _FULL and not is_scaled and not _uses_16_bits(low << 8, high << 8):
        raise _unknown(f"colours of 16 bits, from {low << 8} to {high << 8 | 255}; {_KNOWN}")


def _unknown(detail: str) -> SampleError:
    return SampleError("unknown_pixel_range", detail)
