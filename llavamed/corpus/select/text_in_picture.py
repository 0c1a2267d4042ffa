"""Text that is part of a picture, read by RapidOCR, whose weights come with its package."""

import re
from importlib.util import find_spec
from typing import Any

from llavamed.errors import ConfigError
from llavamed.processor.image_files import Pixels

_IDENTIFYING = re.compile(
    r"\d{1,4}[-/.]\d{1,2}[-/.]\d{2,4}"
    r"|\b(?:19|20)\d{2}\s?(?:0[1-9]|1[0-2])\s?(?:[0-2]\d|3[01])\b"
    r"|\b\d{1,2}[- ]?(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*[- ]?\d{2,4}"
    r"|\b(?:name|patient|pat\.?|mrn|dob|born|birth|acc(?:ession)?|hosp(?:ital)?|clinic|universit)"
    r"|\b(?:id|no)\s?[:#.]|\b[a-z]{1,4}\d{5,}\b|\b\d{6,}\b|\b[a-z]{2,}\^[a-z]{2,}"
    r"|\b(?:dr|mr|mrs|ms)\b\.?|\d{1,3}\s?(?:y|yo|yrs?|years?)\b",
    re.IGNORECASE,
)
"""Dates, identifiers, names as DICOM writes them, ages, and the words before them."""


def check_text_reader() -> None:
    """Raise ConfigError unless the package that reads text in pictures is installed."""
    if find_spec("rapidocr") is None:
        raise ConfigError(
            "corpus.select.read_text=true: needs the package rapidocr, which is not installed; "
            "install llavamed[ocr]"
        )


class TextReader:
    """The OCR engine, loaded once."""

    def __init__(self) -> None:
        """Load the weights."""
        from rapidocr import RapidOCR

        self._engine: Any = RapidOCR(params={"Global.log_level": "error"})

    def read(self, pixels: Pixels) -> list[str]:
        """Return the pieces of text in a picture."""
        return list(self._engine(pixels).txts or ())


def identifying(pieces: list[str]) -> str | None:
    """Return the kind of thing that may identify a person in the text of a picture, or None.

    What was read is not returned: reports must not repeat it.
    """
    for number, piece in enumerate(pieces):
        if _IDENTIFYING.search(piece):
            return f"piece {number + 1} of {len(pieces)} looks like a date, an identifier or a name"
    return None
