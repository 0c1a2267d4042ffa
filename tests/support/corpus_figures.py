"""Figures as a harvest leaves them, for the later steps of a corpus."""

from dataclasses import replace
from pathlib import Path

from llavamed.config.load import load_config
from llavamed.config.run import RunConfig
from llavamed.corpus.figures import FigureImage, FigureRow
from tests.support.chat_endpoint import ChatEndpoint

CAPTIONS = {
    "chest_xray": "Chest radiograph {} shows an opacity in the right lower lobe.",
    "ct_scan": "Axial CT of the abdomen {} shows a hypodense lesion in the liver.",
    "mri": "T2-weighted MRI of the brain {} shows a bright lesion in the left thalamus.",
    "histology": "Hematoxylin and eosin section {} shows dense lymphocytic infiltrates.",
    "gross": "Gross appearance of resected specimen {} with a pale cut surface.",
}


def figure(number: int = 0, **facts: object) -> FigureRow:
    """A kept figure of an article of its own with one picture."""
    pmcid = f"PMC{number + 1}"
    picture = FigureImage(f"images/{pmcid}.1/f1.png", "", "", "", 0, 300, 300, "png")
    row = FigureRow(
        pmcid=pmcid,
        version=1,
        number=0,
        figure="F1",
        label="Figure 1",
        caption=CAPTIONS["mri"].format(number),
        group_caption="",
        parent="",
        mentions=(),
        mentions_by_range=(),
        pictures=(picture,),
        third_party="no",
        third_party_quote="",
        licence="CC BY",
        licence_url="https://creativecommons.org/licenses/by/4.0/",
        title=f"Article {number}",
        citation=f"Writer A. Article {number}. Journal of Tests. 2024.",
        doi=f"10.0000/{number}",
        pmid=str(1000 + number),
        journal="Journal of Tests",
        year=2024,
        article_type="case-report",
        xml_sha256="",
    )
    return replace(row, **facts)  # type: ignore[arg-type]


def selected(count: int, modalities: tuple[str, ...] = tuple(CAPTIONS)) -> list[FigureRow]:
    """Figures with a modality, the modalities in turn."""
    return [
        figure(
            number, caption=CAPTIONS[modality].format(number), modality=modality, panels="single"
        )
        for number in range(count)
        for modality in [modalities[number % len(modalities)]]
    ]


def corpus_config(storage: Path, endpoint: ChatEndpoint, *overrides: str) -> RunConfig:
    """The demo with a corpus, about which a model behind an endpoint writes."""
    demo = Path(__file__).parents[2] / "ray_jobs" / "configs" / "demo.yaml"
    writer = f"corpus.dialogues.endpoint={{url: '{endpoint.url}', model: writer}}"
    return load_config(demo, [f"storage={storage}", writer, *overrides])
