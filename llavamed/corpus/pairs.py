"""Captions as samples of the alignment stage: a prompt that fits the length, then the caption."""

from collections import Counter
from collections.abc import Collection
from functools import cache
from importlib import resources
from typing import Any, Literal

import pyarrow as pa
import yaml

from llavamed.config.corpus import Pairs
from llavamed.corpus.figures import FigureRow, list_parts, read_figures
from llavamed.corpus.samples import SAMPLE_SCHEMA, caption_of, draw, make_sample, remove_others
from llavamed.errors import DataError
from llavamed.storage.location import Location

Kind = Literal["concise", "detailed"]


@cache
def load_prompts() -> dict[Kind, list[str]]:
    """Return the prompts of each kind."""
    text = (resources.files("llavamed.corpus") / "pairs.yaml").read_text(encoding="utf-8")
    prompts: dict[Kind, list[str]] = yaml.safe_load(text)
    return prompts


def make_pair(figure: FigureRow, settings: Pairs) -> dict[str, Any] | None:
    """Return a selected figure as a row of `SAMPLE_SCHEMA`, None where its caption is unfit.

    The prompt and the place of the image are drawn for each figure alone, so that they stay the
    same when figures come or go.

    Args:
        figure: A selected figure.
        settings: The bounds and the seed.
    """
    caption = caption_of(figure)
    num_words = len(caption.split())
    if not settings.min_words <= num_words <= settings.max_words:
        return None
    kind: Kind = "concise" if num_words < settings.concise_words else "detailed"
    prompts = load_prompts()[kind]
    prompt = prompts[draw(settings.seed, figure.id, "prompt", len(prompts))]
    return make_sample(
        [(prompt, caption)],
        settings.seed,
        id=figure.id,
        image=figure.pictures[0].path,
        domain=figure.modality,
        pmid=figure.pmid,
        licence=figure.licence,
    )


def write_pairs(
    step: Location, folder: Location, settings: Pairs, held_out: Collection[str] = ()
) -> Counter[str]:
    """Write the pairs of all figures that a step keeps, one file per part.

    Args:
        step: Folder of the selection.
        folder: Folder of the samples.
        settings: The bounds and the seed.
        held_out: Articles to leave out.

    Returns:
        The numbers of `pairs` and of figures with a caption of `unfit_length`.

    Raises:
        DataError: Nothing has been selected.
        StorageError: A file cannot be read or written.
    """
    counts: Counter[str] = Counter()
    names = []
    parts = list_parts(step)
    if not parts:
        raise DataError(f"{step}: holds no figures; run `llavamed corpus select` first")
    for part, _ in parts:
        kept = (figure for figure in read_figures(part) if figure.is_kept)
        figures = [figure for figure in kept if figure.pmcid not in held_out]
        pairs = [pair for figure in figures if (pair := make_pair(figure, settings))]
        counts.update(pairs=len(pairs), unfit_length=len(figures) - len(pairs))
        names.append(f"align-{part.name}.parquet")
        (folder / names[-1]).write_table(pa.Table.from_pylist(pairs, SAMPLE_SCHEMA))
    remove_others(folder, "align-", names)
    return counts
