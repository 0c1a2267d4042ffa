"""The samples that a corpus ends in, in the form that `data/sources/parquet` reads."""

import hashlib
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa

from llavamed.corpus.figures import FigureRow
from llavamed.processor.turns import IMAGE_PLACEHOLDER
from llavamed.storage.location import Location

SAMPLE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("conversations", pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))),
        ("domain", pa.string()),
        ("pmid", pa.string()),
        ("licence", pa.string()),
    ]
)
"""Schema of the samples. `image` is a path below the corpus folder, which a dataset names as its
`image_folder`."""


def caption_of(figure: FigureRow) -> str:
    """Return what is written beneath a figure; of a member of a group also what all share."""
    texts = dict.fromkeys((figure.group_caption, figure.caption))
    return " ".join(text for text in texts if text)


def make_sample(
    exchanges: Sequence[tuple[str, str]],
    seed: int,
    *,
    id: str,
    image: str,
    domain: str,
    pmid: str,
    licence: str,
) -> dict[str, Any]:
    """Return questions and answers about a figure as a row of `SAMPLE_SCHEMA`.

    Args:
        exchanges: Questions with their answers.
        seed: Decides whether the image comes before or after the first question.
        id: Id of the figure.
        image: Path of its picture below the corpus folder.
        domain: Its modality.
        pmid: Its article in PubMed.
        licence: Licence of the article.
    """
    turns = []
    for number, (question, answer) in enumerate(exchanges):
        if number == 0:
            is_first = draw(seed, id, "place", 2) == 0
            parts = (IMAGE_PLACEHOLDER, question) if is_first else (question, IMAGE_PLACEHOLDER)
            question = "\n".join(parts)
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {
        "id": id,
        "image": image,
        "conversations": turns,
        "domain": domain,
        "pmid": pmid,
        "licence": licence,
    }


def draw(seed: int, name: str, what: str, size: int) -> int:
    """Return a number from 0 to before `size`, random but the same for the same figure and seed.

    Args:
        seed: Seed of all draws.
        name: Id of the figure, so that a draw does not depend on the other figures.
        what: What is drawn, so that two draws of a figure do not depend on one another.
        size: Number of choices.
    """
    digest = hashlib.sha256(f"{seed} {what} {name}".encode()).digest()
    return int.from_bytes(digest[:8]) % size


def remove_others(folder: Location, prefix: str, names: Collection[str]) -> None:
    """Remove the files of a kind that an earlier run left, such as one that had more of them.

    Args:
        folder: Where they lie.
        prefix: How the names of the kind begin.
        names: The files that stay.
    """
    for each in folder.children():
        if each.startswith(prefix) and each not in names:
            (folder / each).remove()
