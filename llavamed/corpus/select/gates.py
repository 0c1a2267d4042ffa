"""Why a figure is refused: each gate looks at one thing and returns a reason with its facts.

The gates run in the order of their cost: words first, then the size, then the pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llavamed.config.corpus import Select
from llavamed.corpus.figures import FigureImage, FigureRow
from llavamed.corpus.samples import caption_of
from llavamed.corpus.select.captions import Lexicon, decide, panel_cue, split_caption
from llavamed.corpus.select.pictures import find_panels
from llavamed.data.prepared.content import Words, hash_image, near
from llavamed.errors import SampleError
from llavamed.processor.image_files import Pixels, decode
from llavamed.processor.images import ImageSettings, to_pixels

SEVERAL, ONE = "compound", "single"
Judged = tuple[FigureRow, Pixels | None]
"""A figure with its verdicts, and its pixels where nothing refuses it."""
TEXT = "words:"
"""Prefix of the scores that words gave."""


@dataclass(frozen=True)
class EvaluationSet:
    """The images of a prepared dataset that is evaluated on, hashed as it was prepared."""

    name: str
    settings: ImageSettings
    hashes: Words

    def contains(self, data: bytes, max_distance: int) -> int | None:
        """Return in how many bits an encoded picture differs from one of the set, or None."""
        hashed = np.frombuffer(hash_image(to_pixels(data, self.settings)), dtype=np.uint64)
        _, _, distances = near(hashed[None], self.hashes, max_distance)
        return int(distances.min()) if len(distances) else None


def read_words(figure: FigureRow, settings: Select, lexicon: Lexicon) -> FigureRow:
    """Return the figure with what its rights and words say, refused by the first rule it fails.

    Reasons: licence, third_party, no_picture, several_pictures, no_caption, face, compound,
    no_modality, modality_conflict, other_modality, too_small.
    """
    caption = caption_of(figure)
    scores = lexicon.scores(caption)
    named = {f"{TEXT}{name}": score for name, score in scores.items()}
    cue = panel_cue(figure.caption)
    verdict = decide(scores, settings.modalities, settings.min_modality_score)
    figure = replace(
        figure,
        panels=SEVERAL if cue or len(figure.pictures) > 1 else ONE,
        modality=verdict.name or "",
        modality_score=verdict.score,
        scores=figure.scores | named,
    )
    if figure.licence not in settings.licences:
        allowed = ", ".join(settings.licences)
        return figure.refused("licence", f"{figure.licence or 'none'}, allowed are {allowed}")
    if figure.third_party not in settings.third_party:
        return figure.refused("third_party", figure.third_party_quote or figure.third_party)
    if not figure.pictures:
        return figure.refused("no_picture", "the figure names none")
    if len(figure.pictures) > 1:
        return figure.refused("several_pictures", str(len(figure.pictures)))
    if not caption.strip():
        return figure.refused("no_caption", "neither of the figure nor of its group")
    if face := lexicon.face(caption):
        return figure.refused("face", face)
    if cue and settings.panels == "split":
        return figure  # each panel is judged by its own words
    if cue and settings.panels == "refuse":
        return figure.refused("compound", f"caption: {cue}")
    if verdict.name is None:
        return figure.refused(verdict.reason, verdict.detail)
    picture = figure.pictures[0]
    if min(picture.width, picture.height) < settings.min_side:
        size = f"{picture.width} x {picture.height}, at least {settings.min_side} are wanted"
        return figure.refused("too_small", size)
    return figure


def read_picture(
    figure: FigureRow,
    data: bytes,
    settings: Select,
    lexicon: Lexicon,
    evaluation: Sequence[EvaluationSet],
) -> list[Judged]:
    """Return the figure with what its picture says, and its panels where it is split.

    Reasons: those of an image that cannot be decoded, too_small, compound, in_evaluation_set.
    """
    try:
        pixels = decode(data, lambda _: None)
        found = [(each, each.contains(data, settings.evaluation_bits)) for each in evaluation]
    except SampleError as error:
        return [(figure.refused(error.reason, error.detail), None)]
    height, width, _ = pixels.shape
    if min(height, width) < settings.min_side:
        size = f"{width} x {height}, at least {settings.min_side} are wanted"
        return [(figure.refused("too_small", size), None)]
    for each, distance in found:
        if distance is not None:
            detail = f"{distance} bits from an image of {each.name}"
            return [(figure.refused("in_evaluation_set", detail), None)]
    boxes = find_panels(pixels)
    if settings.panels == "keep" or (len(boxes) == 1 and figure.panels != SEVERAL):
        return [(figure, pixels)]
    figure = replace(figure, panels=SEVERAL)
    parts = split_caption(figure.caption) if settings.panels == "split" else {}
    if parts and len(parts) != len(boxes):
        boxes = find_panels(pixels, with_black=True)
    if len(parts) != len(boxes):
        letters = f", {len(parts)} letters with a text" if settings.panels == "split" else ""
        detail = f"{len(boxes)} parts between gutters{letters}"
        return [(figure.refused("compound", detail), None)]
    panels = [
        _panel(figure, letter, part, pixels[top:bottom, left:right], settings, lexicon)
        for (letter, part), (left, top, right, bottom) in zip(parts.items(), boxes, strict=True)
    ]
    return [(figure.refused("compound", f"split into {len(boxes)} panels"), None), *panels]


def _panel(
    figure: FigureRow,
    letter: str,
    caption: str,
    pixels: Pixels,
    settings: Select,
    lexicon: Lexicon,
) -> Judged:
    """Return a panel of a figure as a figure of its own, judged by its own words and size."""
    height, width, _ = pixels.shape
    whole = figure.pictures[0]
    picture = FigureImage(
        path=f"{whole.path}.{letter}.png",
        source=whole.source,
        md5="",
        sha256="",
        num_bytes=0,
        width=width,
        height=height,
        format="png",
    )
    own = replace(figure, panel=letter, caption=caption, group_caption="", pictures=(picture,))
    judged = read_words(own, settings, lexicon)
    return judged, np.ascontiguousarray(pixels) if judged.is_kept else None
