"""A DICOM file takes no more memory than its header says."""

import io
import struct
import tracemalloc
from pathlib import Path

import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, get_frame

from llavamed.errors import SampleError
from llavamed.processor.dicom import read_dicom
from tests.support.dicom_files import with_tags


def file(name):
    return Path(get_testdata_file(name)).read_bytes()


def test_a_deflated_file_that_would_fill_the_memory_is_refused(monkeypatch):
    dataset = pydicom.dcmread(io.BytesIO(file("image_dfl.dcm")))
    dataset.PixelData = bytes(1 << 26)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    monkeypatch.setattr("llavamed.processor.dicom_limits.MAX_BYTES", 1 << 20)
    read_dicom(file("image_dfl.dcm"))
    tracemalloc.start()
    with pytest.raises(SampleError, match="image_too_large: inflates to more than 1,048,576 bytes"):
        read_dicom(buffer.getvalue())
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_the_frame_that_is_measured_is_the_one_that_is_decoded():
    """A file of one small frame, whose table of offsets names a large one behind it."""
    name = "SC_jpeg_no_color_transform.dcm"
    large = get_frame(pydicom.dcmread(io.BytesIO(file(name))).PixelData, 0)
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "jpeg")
    first = small.getvalue() + bytes(len(small.getvalue()) % 2)
    tags = {
        "Rows": 8,
        "Columns": 8,
        "PixelData": encapsulate([first, large], has_bot=False),
        "ExtendedOffsetTable": struct.pack("<Q", 8 + len(first)),
        "ExtendedOffsetTableLengths": struct.pack("<Q", len(large)),
    }
    with pytest.raises(SampleError, match="256x256 pixels are coded in 8x8 pixels"):
        read_dicom(with_tags(file(name), **tags))
