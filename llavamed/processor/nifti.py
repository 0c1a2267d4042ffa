"""Turn slices of a NIfTI volume into pictures: axial, upright, chosen the same way every time.

As in radiology, and in the axial pictures of DICOM files, the right of the patient is on the left.

A header may hold text, which is dropped. Nothing in a NIfTI file attests that it is de-identified,
so that only files of a signed list are read.
"""

import gzip
import io
import logging
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from llavamed.errors import SampleError
from llavamed.processor.grey_levels import (
    between,
    percentile_range,
    to_grey_pixels,
    with_square_pixels,
)
from llavamed.processor.image_files import to_png

MAX_VOLUME_BYTES = 2 << 30
"""Size above which a volume is refused, after it is inflated."""
CENTRAL = 0.6
"""Part of a volume, around its middle, that slices are taken from."""
MIN_FOREGROUND = 0.1
"""Least part of a slice that must be brighter than Otsu's threshold of the volume."""


def read_nifti(data: bytes, *, number: int = 0, count: int = 1) -> bytes:
    """Return one of some axial slices as PNG of 8 bits, the front of the body on top.

    Slices are spread evenly over the central part of the volume. One that is nearly empty is
    replaced by the nearest that is not. Of several volumes in time the first is read. Voxels that
    are not square in a slice are made so.

    Args:
        data: The file, gzipped or not.
        number: Which slice, from 0.
        count: How many slices are taken of the volume.

    Raises:
        SampleError: `nifti_support` where nibabel is not installed, `corrupt_image`,
            `image_too_large`, `no_such_frame`, or `unknown_orientation` where the file does not say
            which side of the patient is which.
    """
    if not 0 <= number < count:
        raise SampleError("no_such_frame", f"slice {number} of {count}")
    volume, (width, height) = _read(_inflated(data))
    position = choose_slices(volume, count)[number]
    plane = np.rot90(volume[::-1, :, position]).astype(np.float64)
    grey = between(plane, *percentile_range(plane))
    return to_png(with_square_pixels(to_grey_pixels(grey), height, width))


def choose_slices(volume: npt.NDArray[Any], count: int) -> list[int]:
    """Return the positions of slices along the third axis, which may repeat in a thin volume."""
    depth = volume.shape[2]
    middles = (np.arange(count) + 0.5) / count
    wanted = np.floor(depth * ((1 - CENTRAL) / 2 + CENTRAL * middles)).astype(int)
    finite = np.nan_to_num(volume.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    bright = (finite > otsu(finite)).mean(axis=(0, 1))
    full = np.flatnonzero(bright >= MIN_FOREGROUND)
    if not full.size:
        full = np.array([int(bright.argmax())])
    return [int(full[np.abs(full - position).argmin()]) for position in wanted]


def otsu(values: npt.NDArray[np.float32]) -> float:
    """Return the threshold that parts values best into dark and bright ones.

    Source: Otsu 1979, the threshold of the largest variance between the two classes.
    """
    try:
        counts, edges = np.histogram(values, bins=256)
    except ValueError:  # they differ by less than float32 can tell apart
        raise SampleError("corrupt_image", f"every value is about {values.flat[0]:g}") from None
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = sums / below - (sums[-1] - sums) / above
        variance = np.nan_to_num(below * above * distance**2)
    return float(edges[1 + int(variance.argmax())])


def _inflated(data: bytes) -> bytes:
    if data[:2] == b"\x1f\x8b":
        try:
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(MAX_VOLUME_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise SampleError("corrupt_image", f"no gzip file: {error}") from error
    if len(data) > MAX_VOLUME_BYTES:
        raise SampleError("image_too_large", f"more than {MAX_VOLUME_BYTES:,} bytes of a volume")
    return data


def _read(data: bytes) -> tuple[npt.NDArray[Any], tuple[float, float]]:
    """Return a volume in RAS+ orientation, and the width and height of a voxel in a slice.

    The shape of the volume is [right, front, top].
    """
    try:
        import nibabel
    except ImportError as error:
        raise SampleError(
            "nifti_support", "a NIfTI file needs nibabel: pip install 'llavamed[dicom]'"
        ) from error
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # what it says is in the error
    is_second = data[:4] in {b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c"}  # its header has 540 bytes
    kind = nibabel.Nifti2Image if is_second else nibabel.Nifti1Image
    try:
        stored = kind.from_bytes(data)
        if not (stored.header["sform_code"] or stored.header["qform_code"]):
            raise SampleError(
                "unknown_orientation",
                "its sform_code and qform_code are 0, so its left may be the patient's right; "
                "write it again with its affine",
            )
        image = nibabel.as_closest_canonical(stored)
        shape = image.shape
        if len(shape) < 3 or min(shape) < 1 or np.dtype(image.get_data_dtype()).fields:
            raise SampleError("corrupt_image", f"a volume of shape {shape} has no slices")
        place = (slice(None), slice(None), slice(None), *(0 for _ in shape[3:]))
        volume = np.asarray(image.dataobj[place])
        width, height = (float(zoom) for zoom in image.header.get_zooms()[:2])
    except SampleError:
        raise
    except Exception as error:  # nibabel raises whatever its parser stumbles on
        raise SampleError("corrupt_image", f"no NIfTI: {type(error).__name__}: {error}") from error
    if np.iscomplexobj(volume):
        raise SampleError("corrupt_image", "its values are complex numbers")
    return volume, (width, height)
