"""Read dialogues about DICOM and NIfTI files, in LLaVA's JSON form or as CSV.

An item names its scans as other items name pictures. A volume becomes `slices_per_volume` images,
each with its own placeholder instead of the volume's; `scan.dcm#3` is the fourth frame of a
file with several, whose first is read by default. A file is refused unless its de-identification
is attested: by its own tags, or by a list of SHA-256 whose own SHA-256 is in the config.
"""

import hashlib
import re
from dataclasses import replace
from functools import cached_property
from typing import Any

from llavamed.config.sources import Scans
from llavamed.data.record import Record
from llavamed.data.sources.files import load_from_folder
from llavamed.data.sources.llava_json import DialogueFile
from llavamed.data.sources.records import dialogue
from llavamed.errors import DataError, SampleError
from llavamed.processor.dicom import check_deidentified, read_dicom
from llavamed.processor.image_files import is_dicom
from llavamed.processor.nifti import read_nifti
from llavamed.processor.turns import IMAGE_PLACEHOLDER, Turn
from llavamed.storage.location import locate

_PART = re.compile(r"(?P<name>.*)#(?P<number>\d{1,6})(?:/(?P<count>\d{1,6}))?", re.DOTALL)
_VOLUME = (".nii", ".nii.gz")


class ScansSource(DialogueFile):
    """Samples of a JSON or CSV file whose images are scans."""

    def __init__(self, read: Scans) -> None:
        super().__init__(locate(read.path), locate(read.image_folder))
        self._read = read
        self._last = ("", b"")

    def parse(self, row: dict[str, Any]) -> Record:
        """Interpret one item.

        Raises:
            SampleError: A key is missing or a role is unknown.
        """
        record = dialogue(row, None, id="", licence=self._read.licence)
        return with_slices(record, self._read.slices_per_volume)

    def load_image(self, reference: str) -> bytes:
        """Return a frame or slice as PNG; other pictures as they are.

        Raises:
            SampleError: `missing_image`, `unsafe_path`, `identifiable`, or another reason of
                `read_dicom` and `read_nifti`.
        """
        part = _PART.fullmatch(reference)
        name = part["name"] if part else reference
        if name != self._last[0]:  # the slices of a volume are requested one after another
            self._last = (name, load_from_folder(self._images, name))
        data = self._last[1]
        number = int(part["number"]) if part else None
        is_volume = name.lower().endswith(_VOLUME)
        if not is_volume and not is_dicom(data):
            return data
        is_attested = hashlib.sha256(data).hexdigest() in self._attested
        if not is_volume:
            if not is_attested:
                check_deidentified(data)
            return read_dicom(data, number or 0)
        if not is_attested:
            raise SampleError(
                "identifiable",
                f"{name}: nothing in a NIfTI file attests that it was de-identified; list its "
                "SHA-256 in `attested`",
            )
        count = int(part["count"] or 1) if part else 1
        return read_nifti(data, number=number or 0, count=count)

    @cached_property
    def _attested(self) -> frozenset[str]:
        if self._read.attested is None:
            return frozenset()
        place = locate(self._read.attested)
        try:
            data = place.read_bytes()
        except FileNotFoundError as error:
            raise DataError(f"attested={place}: no such file; check the path") from error
        found = hashlib.sha256(data).hexdigest()
        if found != self._read.attested_sha256:
            raise DataError(
                f"attested={place}: has the SHA-256 {found}, and attested_sha256 is "
                f"{self._read.attested_sha256}; check who changed the list, then state its SHA-256"
            )
        lines = data.decode("utf-8", "replace").splitlines()
        return frozenset(line.split()[0].lower() for line in lines if line.strip())


def with_slices(record: Record, count: int) -> Record:
    """Return a record in which each volume is replaced by its slices.

    Args:
        count: Number of slices per volume.
    """
    repeats = [count if name.lower().endswith(_VOLUME) else 1 for name in record.images]
    if all(each == 1 for each in repeats):
        return record
    images = tuple(
        f"{name}#{number}/{repeat}" if repeat > 1 else name
        for name, repeat in zip(record.images, repeats, strict=True)
        for number in range(repeat)
    )
    left = iter(repeats)
    turns = tuple(_repeated(turn, left) for turn in record.turns)
    return replace(record, images=images, turns=turns)


def _repeated(turn: Turn, repeats: Any) -> Turn:
    """Repeat each placeholder of a turn as often as its image has slices."""
    first, *others = turn.text.split(IMAGE_PLACEHOLDER)
    text = first + "".join(IMAGE_PLACEHOLDER * next(repeats, 1) + each for each in others)
    return replace(turn, text=text)
