"""Pictures that look like radiology to rules about pixels, without transformers."""

import io

import numpy as np
from PIL import Image


def radiograph(random, width, height):
    """A dark picture with a black margin and bright smooth structures, without white lines."""
    small = random.integers(20, 200, (6, 6), dtype=np.uint8)
    size = (width * 8 // 10, height * 8 // 10)
    inner = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    picture = np.zeros((height, width, 3), np.uint8)
    top, left = height // 10, width // 10
    grey = np.asarray(inner)
    picture[top : top + grey.shape[0], left : left + grey.shape[1]] = grey[..., None]
    return picture


def encoded(pixels, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()
