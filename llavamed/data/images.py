"""Encoded bytes -> uint8 pixels at training resolution -> normalised tensors.

Pixels equal, bit for bit, what Hugging Face's CLIPImageProcessor makes of the same file; they are
kept as uint8 until the last moment, at a quarter of the size.
"""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from llavamed.errors import BadSample

Pixels = npt.NDArray[np.uint8]

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded; others of Pillow's would call programs, such as Ghostscript for EPS."""

MAX_IMAGE_PIXELS = 89_478_485
"""Larger images are refused before they are decoded: a few bytes may claim to be gigabytes."""


@dataclass(frozen=True)
class ImageSettings:
    """How an image becomes pixels; `mean` and `std` are of values between 0 and 1."""

    size: int
    aspect_ratio: Literal["square", "pad"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def to_pixels(data: bytes, settings: ImageSettings) -> Pixels:
    """Decode, make RGB, and resize to the training resolution.

    `square` resizes the short edge and crops the centre; `pad` first pads to a square of the mean
    colour. Source: CLIPImageProcessor of transformers, and the paddings of LLaVA 1.5.

    Returns:
        Array of shape [size, size, 3], uint8.

    Raises:
        BadSample: `corrupt_image`, `image_too_large` or `unknown_pixel_range`.
    """
    image = _decode(data)
    if settings.aspect_ratio == "pad":
        image = _pad_to_square(image, settings.mean)
    width, height = image.size
    short, long = sorted((width, height))
    resized_long = int(settings.size * long / short)
    resized = (settings.size, resized_long) if width <= height else (resized_long, settings.size)
    if max(resized) > 100 * settings.size:
        raise BadSample("corrupt_image", f"{width}x{height} pixels is a line, not a picture")
    image = image.resize(resized, resample=Image.Resampling.BICUBIC)
    left, top = (resized[0] - settings.size) // 2, (resized[1] - settings.size) // 2
    image = image.crop((left, top, left + settings.size, top + settings.size))
    return np.asarray(image, dtype=np.uint8)


def to_png(pixels: Pixels) -> bytes:
    """Encode pixels without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def normalize(pixels: Pixels, settings: ImageSettings) -> npt.NDArray[np.float32]:
    """Scale to mean 0 and deviation 1 per channel.

    Args:
        pixels: Array of shape [images, size, size, 3], uint8.
        settings: Whose mean and std are used.

    Returns:
        Array of shape [images, 3, size, size], float32.
    """
    scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    mean, std = np.array([settings.mean, settings.std], dtype=np.float32)
    planes = [((scaled - mean[c]) / std[c])[pixels[..., c]] for c in range(3)]
    return np.stack(planes, axis=1)


def _decode(data: bytes) -> Image.Image:
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(*image.size)
        image.load()
        return _to_8_bits(ImageOps.exif_transpose(image)).convert("RGB")
    except BadSample:
        raise
    except Image.DecompressionBombError as error:
        raise BadSample("image_too_large", str(error)) from error
    except UnidentifiedImageError as error:  # its text holds an address, different in every run
        raise BadSample("corrupt_image", f"{len(data)} bytes of none of the formats") from error
    except Exception as error:  # Pillow's decoders raise whatever their C code meets
        raise BadSample("corrupt_image", f"{type(error).__name__}: {error}") from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_IMAGE_PIXELS:
        raise BadSample(
            "image_too_large",
            f"{width}x{height} pixels, at most {MAX_IMAGE_PIXELS} are decoded",
        )


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16 bits to 8, which Pillow would clip at 255."""
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise BadSample(
            "unknown_pixel_range",
            f"mode {image.mode}, from {values.min()} to {values.max()}; known are 8 and 16 bits",
        )
    return Image.fromarray((values >> 8).astype(np.uint8))


def _pad_to_square(image: Image.Image, mean: tuple[float, float, float]) -> Image.Image:
    width, height = image.size
    side = max(width, height)
    _check_size(side, side)
    red, green, blue = (int(value * 255) for value in mean)
    square = Image.new("RGB", (side, side), (red, green, blue))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
