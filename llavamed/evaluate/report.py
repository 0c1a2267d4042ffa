"""The HTML report of an evaluation: scores with intervals, controls, failures, samples.

The page is one file that needs no network: thumbnails are embedded, and its content security policy
forbids any request. They cost about 15 kB a question, which is why the number of questions shown is
limited; the tables always count all of them.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from llavamed.evaluate.answers import Answer
from llavamed.evaluate.failures import CATEGORIES, RIGHT
from llavamed.evaluate.measures import LEGACY, MEASURES, STRICT, Measure
from llavamed.evaluate.published import CAVEATS, PUBLISHED
from llavamed.evaluate.scoring import BLANK, GROUPS, find_group
from llavamed.pages.environment import page_environment
from llavamed.storage.manifest import EstimateFacts, GroupScores, ScoresManifest, row_name

THUMBNAIL_PIXELS = 384
"""Longest side of an image on the page: sharp on a dense screen, small in the file."""
_PARTS = {"closed": "Closed questions", "open": "Open questions", "pairs": "Pairs, right together"}


@dataclass(frozen=True, slots=True)
class Shown:
    """One question in the report, with its answer and measures under every condition."""

    answers: Mapping[str, Answer]
    values: Mapping[str, Mapping[str, float]]
    category: str
    """Failure category of the answer under the first condition."""

    @property
    def asked(self) -> Answer:
        """Return the answer under the first condition."""
        return next(iter(self.answers.values()))


@dataclass(frozen=True, slots=True)
class _Part:
    """The table of the questions of one answer type."""

    title: str
    group: GroupScores
    measures: list[Measure]


@dataclass(frozen=True, slots=True)
class _Breakdown:
    """Scores with one row for each value of a property and answer type."""

    title: str
    groups: list[GroupScores]


def render_page(
    scores: ScoresManifest, shown: Sequence[Shown], pictures: Mapping[str, bytes], *, title: str
) -> str:
    """Render the scores and a sample of the questions as one HTML page.

    Args:
        pictures: Encoded images by question id, as far as they exist.
        title: Heading of the page.
    """
    environment = page_environment("llavamed.evaluate")
    environment.filters |= {
        "percent": _percent,
        "points": _points,
        "label": lambda name: _label(row_name(name, scores.conditions)),
    }
    return environment.get_template("report.html.j2").render(
        title=title,
        found=scores,
        rules={STRICT: scores.rules[STRICT], LEGACY: scores.rules[LEGACY]},
        parts=_parts(scores),
        blank=BLANK,
        breakdowns=_breakdowns(scores),
        failures=[
            (CATEGORIES[category], count, category == RIGHT)
            for category, count in scores.failures.items()
        ],
        published=PUBLISHED,
        caveats=CAVEATS,
        cards=shown,
        categories=CATEGORIES,
        thumbnails={id_: _thumbnail(data) for id_, data in pictures.items()},
        strict=STRICT,
        legacy=LEGACY,
    )


def _parts(scores: ScoresManifest) -> list[_Part]:
    found = []
    for part, title in _PARTS.items():
        group = find_group(scores.groups, part)
        if group is not None:
            there = next(iter(group.scores.values()))
            found.append(_Part(title, group, [each for each in MEASURES if each.name in there]))
    return found


def _breakdowns(scores: ScoresManifest) -> list[_Breakdown]:
    """Return a table for each property that questions have."""
    by_property = {by: [each for each in scores.groups if each.by == by] for by in GROUPS}
    return [
        _Breakdown(by.replace("_", " "), groups) for by, groups in by_property.items() if groups
    ]


def _thumbnail(image: bytes) -> str:
    """Return a thumbnail of an image as a data URI."""
    with Image.open(io.BytesIO(image)) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    shrunk = io.BytesIO()
    picture.save(shrunk, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(shrunk.getvalue()).decode()


def _label(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(estimate: EstimateFacts) -> str:
    """Format a difference in points with its sign and interval."""
    return f"{100 * estimate.value:+.1f} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"
