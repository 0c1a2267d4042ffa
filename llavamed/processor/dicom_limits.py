"""Refuse DICOM files that would take too much memory, before their pixels are decoded."""

import io
import math
import zlib
from contextlib import suppress
from typing import Any

from PIL import Image, UnidentifiedImageError

from llavamed.errors import SampleError

_HEAD = 132
"""Bytes before the first tag: a preamble and `DICM`."""
_META_GROUP = 2
"""Group of the tags that describe the file, and are never deflated."""
MAX_PIXELS = 40_000_000
"""Larger pictures are refused by their header."""
MAX_BYTES = 1 << 28
"""Larger pixels are refused by their header. A file that is deflated as a whole is refused as soon
as it has inflated to more."""
_CODED = ("JPEG", "JPEG2000")
"""Formats of compressed pixels whose header Pillow reads."""
_RLE_HEAD = 64
"""Bytes before the segments of RLE, which at worst are a little longer than the pixels."""


def check_inflated(data: bytes) -> None:
    """Refuse a file that is deflated as a whole and would fill the memory, as pydicom lets it."""
    from pydicom.filereader import read_dataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    file = io.BytesIO(data)
    file.seek(_HEAD)
    meta = read_dataset(
        file,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, *_: tag.group != _META_GROUP,
    )
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    if len(inflater.decompress(file.read(), MAX_BYTES + 1)) > MAX_BYTES:
        raise SampleError("image_too_large", f"inflates to more than {MAX_BYTES:,} bytes")


def check_size(dataset: Any) -> None:
    """Refuse pixels by their header. Raises: SampleError, `image_too_large`."""
    height, width = int(dataset.get("Rows", 0)), int(dataset.get("Columns", 0))
    size = height * width * _bytes_per_pixel(dataset)
    if height * width > MAX_PIXELS or size > MAX_BYTES:
        raise SampleError(
            "image_too_large",
            f"{width}x{height} pixels, {size} bytes; at most {MAX_PIXELS} pixels and {MAX_BYTES} "
            "bytes of DICOM are decoded",
        )


def _bytes_per_pixel(dataset: Any) -> int:
    bits = int(dataset.get("BitsAllocated", 8))
    return int(dataset.get("SamplesPerPixel", 1)) * math.ceil(bits / 8)


def check_coded(dataset: Any, index: int) -> None:
    """Refuse a frame with more compressed pixels than the header says. Raises: SampleError."""
    from pydicom.encaps import get_frame
    from pydicom.uid import RLELossless

    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return
    num_frames = int(dataset.get("NumberOfFrames") or 1)
    places, lengths = (dataset.get(f"ExtendedOffsetTable{part}") or b"" for part in ("", "Lengths"))
    coded = get_frame(
        dataset.PixelData,
        index,
        number_of_frames=num_frames,
        # Where they do not fit each other, pydicom decodes without them.
        extended_offsets=(places, lengths) if 0 < len(places) == len(lengths) else None,
    )
    height, width = int(dataset.Rows), int(dataset.Columns)
    found = None
    if syntax == RLELossless:
        if len(coded) > 2 * height * width * _bytes_per_pixel(dataset) + _RLE_HEAD:
            found = f"{len(coded)} bytes"
    else:
        with suppress(UnidentifiedImageError):  # GDCM decodes others, in a process of its own
            wide, high = Image.open(io.BytesIO(coded), formats=_CODED).size
            found = f"{wide}x{high} pixels" if wide * high > width * height else None
    if found is not None:
        raise SampleError("corrupt_image", f"{found} are coded in {width}x{height} pixels")
