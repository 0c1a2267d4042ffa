"""DICOM files as scanners write them, made in memory."""

import io
from typing import Any

import numpy as np


def dicom_file(pixels: Any, *, inverted: bool = False, window: tuple[int, int] | None = None):
    """Return a DICOM file with 16-bit grey pixels, as bytes."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.PatientName = "Never^Shown"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    if window:
        dataset.WindowCenter, dataset.WindowWidth = window
    dataset.PixelData = np.asarray(pixels, dtype="<u2").tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def with_tags(data: bytes, **tags: Any) -> bytes:
    """Return a DICOM file with other tags."""
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(data))
    for key, value in tags.items():
        setattr(dataset, key, value)
        if dataset[key].VR == "US or SS":
            dataset[key].VR = "SS" if dataset.PixelRepresentation else "US"
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()
