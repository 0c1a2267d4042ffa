"""Faces in a picture, found by dlib, whose weights are part of its library."""

from importlib.util import find_spec
from typing import Any

from llavamed.errors import ConfigError
from llavamed.processor.image_files import Pixels

_MIN_SCORE = 0.3
"""Minimum score of the detector. It finds 89 of 100 faces of Labeled Faces in the Wild, enlarged
from 25 pixels, and none in 100 other crops and 60 radiology images of VQA-RAD, where the highest
score is 0.14."""
_DOUBLINGS = 1
"""Times that a picture is doubled before: faces of 40 pixels and more are found."""


def check_face_finder() -> None:
    """Raise ConfigError unless the package that finds faces is installed."""
    if find_spec("dlib") is None:
        raise ConfigError(
            "corpus.select.find_faces=true: needs the package dlib, which is not installed; "
            "install llavamed[faces]"
        )


class FaceFinder:
    """The detector of faces seen from the front, loaded once."""

    def __init__(self) -> None:
        """Load the detector."""
        import dlib

        self._detector: Any = dlib.get_frontal_face_detector()

    def count(self, pixels: Pixels) -> int:
        """Return the number of faces in a picture."""
        _, scores, _ = self._detector.run(pixels, _DOUBLINGS, _MIN_SCORE)
        return len(scores)
