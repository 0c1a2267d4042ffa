"""Read the picture of a DICOM file, as a viewer shows it. Needs `pip install 'llavamed[dicom]'`."""

import io

import numpy as np
from PIL import Image

from llavamed.errors import SampleError

_MAGIC = slice(128, 132)
MAX_PIXELS = 40_000_000
"""Larger pictures are refused by their header."""


def is_dicom(data: bytes) -> bool:
    """Return whether a file says that it is a DICOM file."""
    return data[_MAGIC] == b"DICM"


def read_dicom(data: bytes) -> bytes:
    """Return the first frame of a DICOM file as PNG.

    Grey values go through the file's own modality and window settings. Then the smallest value
    becomes black and the largest white. Nothing else of the file is kept.

    Raises:
        SampleError: `dicom_support` where pydicom is not installed, `image_too_large`, or
            `corrupt_image`.
    """
    try:
        import pydicom
        from pydicom import pixels
    except ImportError as error:
        raise SampleError(
            "dicom_support", "a DICOM file needs pydicom: pip install 'llavamed[dicom]'"
        ) from error
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        height, width = int(dataset.Rows), int(dataset.Columns)
        if height * width > MAX_PIXELS:
            raise SampleError(
                "image_too_large",
                f"{width}x{height} pixels, at most {MAX_PIXELS} of DICOM are decoded",
            )
        frame = pixels.pixel_array(dataset, index=0)
        if int(dataset.SamplesPerPixel) == 1:
            values = pixels.apply_modality_lut(frame, dataset)
            values = np.asarray(pixels.apply_voi_lut(values, dataset), dtype=np.float64)
            low, high = float(values.min()), float(values.max())
            values = (values - low) * (255 / (high - low) if high > low else 0)
            if dataset.PhotometricInterpretation == "MONOCHROME1":
                values = 255 - values
            frame = np.rint(values).astype(np.uint8)
    except SampleError:
        raise
    except Exception as error:  # pydicom's decoders raise whatever they meet
        raise SampleError("corrupt_image", f"{type(error).__name__}: {error}") from error
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()
