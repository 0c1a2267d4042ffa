"""Analyse the pixels of a figure: panels between gutters, and which pictures are alike."""

import numpy as np
import numpy.typing as npt

from llavamed.data.prepared.content import Words, near
from llavamed.processor.image_files import Pixels

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels, the last two exclusive."""

_MIN_GUTTER = 2
"""Pixels; narrower white lines are parts of a picture."""
_WHITE, _BLACK, _EVEN = 245, 10, 6
"""Minimum mean of a row or column of a white gutter, maximum of a black one, and the largest
standard deviation of both."""
_BORDER = 0.12
"""Part of a side at each end in which white is a margin and splits nothing. With these numbers
none of 60 radiology images of VQA-RAD is split, and all of 60 compounds of them are whose gutters
have 2 to 10 pixels. With black gutters 9 of the 60 are split, because radiographs have black
margins, and 37 of the 60 compounds have two parts: they are for pictures whose number of panels is
known."""


def find_panels(pixels: Pixels, *, with_black: bool = False) -> list[Box]:
    """Return the panels of a figure between its gutters: one box if it has none.

    Args:
        pixels: uint8 array of shape [height, width, 3].
        with_black: Look for black gutters, too.

    Returns:
        Boxes in reading order.
    """
    height, width, _ = pixels.shape
    grey = pixels.mean(axis=2, dtype=np.float32)
    return _split(grey, (0, 0, width, height), with_black)


def _split(grey: npt.NDArray[np.float32], box: Box, with_black: bool) -> list[Box]:
    left, top, right, bottom = box
    part = grey[top:bottom, left:right]
    for axis, low in ((0, top), (1, left)):
        cuts = _gutters(part if axis == 0 else part.T, with_black)
        if not cuts:
            continue
        starts = [low, *(low + end for _, end in cuts)]
        ends = [*(low + start for start, _ in cuts), low + part.shape[axis]]
        boxes: list[Box] = []
        for start, end in zip(starts, ends, strict=True):
            inner = (left, start, right, end) if axis == 0 else (start, top, end, bottom)
            boxes += _split(grey, inner, with_black)
        return boxes
    return [box]


def _gutters(lines: npt.NDArray[np.float32], with_black: bool) -> list[tuple[int, int]]:
    """Return the bands of even lines away from both ends, as pairs of start and end."""
    mean = lines.mean(axis=1)
    is_gutter = (mean > _WHITE) | (with_black & (mean < _BLACK))
    is_gutter &= lines.std(axis=1) < _EVEN
    edges = np.flatnonzero(np.diff(np.r_[False, is_gutter, False].astype(np.int8)))
    least, most = len(lines) * _BORDER, len(lines) * (1 - _BORDER)
    return [
        (int(start), int(end))
        for start, end in edges.reshape(-1, 2)
        if end - start >= _MIN_GUTTER and start >= least and end <= most
    ]


def find_repeats(hashes: Words, max_distance: int) -> dict[int, int]:
    """Return the images that repeat an earlier one, each with the first that it repeats.

    An image that repeats another is compared with none that comes later, so that a chain of small
    changes keeps its first and what is far from it.

    Args:
        hashes: uint64 array of shape [images, 4], in the order of preference.
        max_distance: Most bits in which two images of one picture differ. Two hashes that differ in
            so many bits agree in one of `max_distance + 1` groups of bits, so that only images that
            share a group are compared.
    """
    bits = np.unpackbits(
        hashes.view(np.uint8).reshape(len(hashes), hashes.itemsize * hashes.shape[1]), axis=1
    )
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for group in np.array_split(np.arange(bits.shape[1]), max_distance + 1):
        keys = np.packbits(bits[:, group], axis=1)
        order = np.lexsort(keys.T[::-1])
        is_new = np.any(np.diff(keys[order], axis=0), axis=1)
        for run in np.split(order, np.flatnonzero(is_new) + 1):
            if len(run) > 1:
                ones, others, _ = near(hashes[run], hashes[run], max_distance)
                earlier = run[ones] < run[others]
                pairs.append(np.stack([run[others], run[ones]], axis=1)[earlier])
    repeats: dict[int, int] = {}
    for later, first in np.unique(np.concatenate(pairs), axis=0).tolist():
        if first not in repeats:
            repeats.setdefault(later, first)
    return repeats
