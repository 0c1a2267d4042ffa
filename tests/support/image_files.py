"""Encoded images for tests, and what transformers makes of them."""

import io
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

from llavamed.processor.images import ImageSettings, normalize_pixels, to_pixels
from llavamed.processor.tower import CLIP_MEAN, CLIP_STD


def settings_of(size, aspect_ratio="square", backend="exact"):
    return ImageSettings(size, aspect_ratio, CLIP_MEAN, CLIP_STD, backend)


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
    return normalize_pixels(to_pixels(data, images)[None], images)[0]


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(width, height, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def photo(width, height, seed=0):
    """Smooth coloured structures, as in pictures."""
    return noise(6, 5, seed).resize((width, height), Image.Resampling.BICUBIC)


def png(width, height, bits, lines, colours=2):
    """A PNG of any depth whose scan lines are `lines`, however many; by default of RGB."""

    def chunk(kind, data):
        length, check = struct.pack(">I", len(data)), struct.pack(">I", zlib.crc32(kind + data))
        return length + kind + data + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )


def claim(width, height):
    """A PNG of a few bytes that claims to be this large."""
    return png(width, height, 8, bytes(1000))
