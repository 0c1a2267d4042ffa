"""Scans are shown as in radiology: the right on the left, and pixels as they measure."""

import io
import itertools

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llavamed.errors import SampleError
from llavamed.processor.dicom import read_dicom
from llavamed.processor.nifti import read_nifti
from tests.support.dicom_files import dicom_file, with_tags


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_slice_is_shown_as_in_radiology():
    """The patient's right is on the left of the picture, and the front on top."""
    volume = np.zeros((8, 10, 6), np.int16)
    volume[5:, 6:, :] = 100  # right and front, in RAS+
    for signs in itertools.product((1, -1), repeat=3):
        turned = volume[tuple(slice(None, None, sign) for sign in signs)]
        affine = np.diag([*signs, 1.0])
        data = nibabel.Nifti1Image(turned, affine).to_bytes()
        found = pixels(read_nifti(data))
        assert found.shape == (10, 8)
        assert (found[:4, :3] == 255).all()
        assert found.astype(int).sum() == 4 * 3 * 255


def test_a_volume_that_does_not_say_which_side_is_which_is_refused():
    data = nibabel.Nifti1Image(np.eye(4)[None] * np.ones((4, 1, 1)), None).to_bytes()
    with pytest.raises(SampleError, match=r"unknown_orientation: .* write it again with its aff"):
        read_nifti(data)


@settings(max_examples=15)
@given(st.sampled_from([0.5, 0.995, 1.0, 1.005, 2.0, 4.0]), st.integers(4, 30), st.integers(4, 30))
def test_pixels_are_shown_as_high_as_wide(ratio, rows, columns):
    """A viewer shows a circle as a circle, whatever the distance of rows and columns."""
    values = np.linspace(0, 1000, rows * columns).reshape(rows, columns).astype(np.uint16)
    close = abs(ratio - 1) < 0.01
    high = rows if close or ratio < 1 else round(rows * ratio)
    wide = columns if close or ratio > 1 else round(columns / ratio)
    for tags in (
        {"PixelSpacing": [0.3 * ratio, 0.3]},
        {"ImagerPixelSpacing": [ratio, 1.0]},
        {"PixelAspectRatio": [round(1000 * ratio), 1000]},
    ):
        shown = pixels(read_dicom(with_tags(dicom_file(values), **tags)))
        assert shown.shape == (high, wide)
    affine = np.diag([0.7, 0.7 * ratio, 3.0, 1.0])
    volume = np.repeat(values.T[:, :, None], 3, axis=2).astype(np.int16)
    assert pixels(read_nifti(nibabel.Nifti1Image(volume, affine).to_bytes())).shape == (high, wide)


def test_pixels_of_an_impossible_shape_are_refused():
    data = with_tags(dicom_file(np.eye(8) * 100), PixelSpacing=[100.0, 1.0])
    with pytest.raises(SampleError, match="corrupt_image: pixels of 100 x 1"):
        read_dicom(data)
