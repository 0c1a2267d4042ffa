"""Invent open articles: a folder in the form of PubMed Central's bucket, with drawn figures.

Every word and picture is made here. The pictures are llavamed's phantoms; the captions say what is
drawn. A few articles are not to be used, each for another reason, so that the demo shows refusals.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from llavamed.data.sources.phantom_images import KINDS, SIDES, SIZES, Scene, draw

FIRST_ID = 9_000_001
IMAGE_SIZE = 96

_NAMES = {"CT": "Axial CT scan", "MRI": "T2-weighted MRI", "X-ray": "Chest radiograph"}
_ODD = {
    3: {"licence": "CC BY-NC"},
    7: {"is_retracted": True},
    11: {"caption": " Reproduced with permission from another journal."},
    15: {"caption": " The left panel is the patient at rest, the right panel after exercise."},
    19: {"caption": " Ultrasound was done, too."},
}
"""Articles by number with what makes them, or their figures, unfit."""


@dataclass(frozen=True)
class Article:
    """One article: what its metadata, text and pictures say."""

    pmcid: str
    number: int
    licence: str
    is_retracted: bool
    captions: tuple[str, ...]
    pictures: tuple[bytes, ...]

    @property
    def title(self) -> str:
        """Return the title."""
        return f"Phantom findings in case {self.number}"

    @property
    def xml(self) -> bytes:
        """Return the article as JATS."""
        figures = "".join(
            f'<fig id="F{place}"><label>Figure {place}</label><caption><p>{escape(caption)}</p>'
            f'</caption><graphic xlink:href="{_picture(place)}"/></fig>'
            for place, caption in enumerate(self.captions, start=1)
        )
        mentions = "".join(
            f'<p>What was found is shown in <xref ref-type="fig" rid="F{place}">Figure {place}'
            "</xref>.</p>"
            for place in range(1, len(self.captions) + 1)
        )
        code = self.licence.removeprefix("CC ").lower()
        return (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<article xmlns:xlink="http://www.w3.org/1999/xlink" article-type="case-report" '
            'xml:lang="en"><front><journal-meta>'
            "<journal-title-group><journal-title>Journal of Phantoms</journal-title>"
            "</journal-title-group></journal-meta><article-meta>"
            f'<article-id pub-id-type="pmcid">{self.pmcid}</article-id>'
            f'<article-id pub-id-type="pmcid-ver">{self.pmcid}.1</article-id>'
            f'<article-id pub-id-type="doi">10.0000/phantom.{self.number}</article-id>'
            f"<title-group><article-title>{self.title}</article-title></title-group>"
            '<pub-date pub-type="epub"><year>2026</year></pub-date><permissions><license '
            f'xlink:href="https://creativecommons.org/licenses/{code}/4.0/"><license-p>An open '
            "access article.</license-p></license></permissions></article-meta></front>"
            f"<body><sec><title>Case</title>{mentions}{figures}</sec></body></article>"
        ).encode()


def write_mirror(folder: Path, num_articles: int, seed: int = 0) -> None:
    """Write the articles.

    Args:
        folder: Where to write, in the form of the bucket.
        num_articles: Number of articles, each with three figures.
        seed: Seed of all that is drawn.
    """
    random = np.random.default_rng(seed)
    for number in range(num_articles):
        article = _article(number, random)
        files = {f"{article.pmcid}.1.xml": article.xml}
        files |= {
            f"{_picture(place)}.png": data for place, data in enumerate(article.pictures, start=1)
        }
        own = folder / f"{article.pmcid}.1"
        own.mkdir(parents=True)
        for name, data in files.items():
            (own / name).write_bytes(data)
        metadata = json.dumps(_metadata(article, files)).encode()
        (own / f"{article.pmcid}.1.json").write_bytes(metadata)
        (folder / "metadata").mkdir(exist_ok=True)
        (folder / "metadata" / f"{article.pmcid}.1.json").write_bytes(metadata)


def _article(number: int, random: np.random.Generator) -> Article:
    odd = _ODD.get(number % 24, {})
    captions, pictures = [], []
    for _ in range(3):
        modality = str(random.choice(list(_NAMES)))
        scene = Scene(
            modality=modality,  # type: ignore[arg-type]
            sides=(SIDES[int(random.integers(2))],),
            kind=KINDS[int(random.integers(2))],
            size=SIZES[int(random.integers(2))],
        )
        found = f"a {scene.size} {scene.kind} on the {scene.sides[0]} side"
        captions.append(
            f"{_NAMES[modality]} that shows {found}, case {number}.{odd.get('caption', '')}"
        )
        pictures.append(draw(scene, random, IMAGE_SIZE))
    return Article(
        f"PMC{FIRST_ID + number}",
        number,
        str(odd.get("licence", "CC BY")),
        bool(odd.get("is_retracted", False)),
        tuple(captions),
        tuple(pictures),
    )


def _metadata(article: Article, files: dict[str, bytes]) -> dict[str, object]:
    def address(name: str) -> str:
        data = hashlib.md5(files[name]).hexdigest()
        return f"s3://pmc-oa-opendata/{article.pmcid}.1/{name}?md5={data}"

    names = list(files)
    return {
        "pmcid": article.pmcid,
        "version": 1,
        "pmid": None,
        "doi": f"10.0000/phantom.{article.number}",
        "mid": None,
        "title": article.title,
        "citation": f"Phantom A. {article.title}. J Phantoms. 2026;1:{article.number}.",
        "is_pmc_openaccess": True,
        "is_manuscript": False,
        "is_historical_ocr": False,
        "is_retracted": article.is_retracted,
        "license_code": article.licence,
        "xml_url": address(names[0]),
        "text_url": None,
        "pdf_url": None,
        "media_urls": [address(name) for name in names[1:]],
    }


def _picture(place: int) -> str:
    return f"phantom-g{place:03d}"
