"""Select figures: screen every part on Ray, then refuse what repeats a picture of another part.

The screening of a part depends on that part alone, so it is done once. Which pictures repeat one
another depends on all parts, so that step comes last and rewrites the parts that it changes.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from llavamed.config.corpus import Corpus, Select
from llavamed.config.run import RunConfig
from llavamed.corpus.figures import list_parts, read_figures, write_figures
from llavamed.corpus.select.pictures import find_repeats
from llavamed.corpus.select.screen import HARVEST, HASHES, SCREEN, Screen
from llavamed.data.prepared.content import as_words
from llavamed.errors import DataError
from llavamed.storage.fingerprint import fingerprint
from llavamed.storage.location import Location, locate
from llavamed.storage.manifest import FiguresManifest, find

SELECT = "select"


@dataclass(frozen=True)
class Selection:
    """The outcome of the figures of a corpus."""

    num_figures: int
    num_kept: int
    refused: dict[str, int]
    """Figures by the reason for leaving them out."""
    modalities: dict[str, int]
    """Kept figures by modality."""


class _ScreenOnRay:
    """A worker that screens parts; Ray makes as many as it has work for."""

    def __init__(self, corpus: str, settings: Select) -> None:
        from llavamed.parallel.pipeline import carry_errors

        with carry_errors():
            self._screen = Screen.load(corpus, settings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Screen parts; what comes of them is in the storage."""
        from llavamed.parallel.pipeline import carry_errors

        with carry_errors():
            for part in batch["part"]:
                self._screen.run(str(part))
        return batch


def select_figures(config: RunConfig) -> Selection:
    """Screen all parts of the harvest on Ray, and select.

    Raises:
        ConfigError: The lexicon or the model cannot be read.
        DataError: Nothing was harvested, or an evaluation set is not prepared.
        StorageError: A file cannot be read or written.
    """
    import ray.data

    from llavamed.parallel.pipeline import actor_restarts, configure_ray_data, iter_rows

    settings = (config.corpus or Corpus()).select
    parts = harvested(config)
    Screen.load(config.corpus_directory, settings)  # what is wrong with it is wrong on all workers
    configure_ray_data()
    classifier = settings.classifier
    most = len(parts) if classifier is None else classifier.num_workers
    cpus = int(ray.cluster_resources().get("CPU", 1))
    most = max(1, min(most, len(parts), cpus - 1))
    rows = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
    pipeline = rows.map_batches(
        _ScreenOnRay,
        fn_constructor_args=(config.corpus_directory, settings),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
        num_cpus=1,
        num_gpus=1 if classifier is not None and classifier.use_gpu else 0,
        **actor_restarts(config.max_failures),
    )
    for _ in iter_rows(pipeline):
        pass
    return finish(locate(config.corpus_directory), settings, parts)


def harvested(config: RunConfig) -> list[str]:
    """Return the names of the parts of the harvest. Raises: DataError, if there are none."""
    corpus = locate(config.corpus_directory)
    parts = [part.name for part, _ in list_parts(corpus / HARVEST)]
    if not parts:
        raise DataError(
            f"corpus.directory={corpus}: nothing is harvested; run `llavamed corpus harvest` first"
        )
    return parts


def finish(corpus: Location, settings: Select, parts: Iterable[str]) -> Selection:
    """Refuse the pictures that repeat an earlier one, and write the selection.

    Memory holds the hashes of all kept pictures, 32 bytes each, and one part.

    Raises:
        StorageError: A file cannot be read or written.
    """
    parts = list(parts)
    tables = [(corpus / SCREEN / part / HASHES).read_table() for part in parts]
    hashes = pa.concat_tables(tables)
    names: list[str] = hashes.column("id").to_pylist()
    repeats: dict[str, str] = {}
    if settings.duplicate_bits is not None and names:
        words = as_words(hashes.column("hash").combine_chunks())
        found = find_repeats(words, settings.duplicate_bits)
        repeats = {names[later]: names[first] for later, first in found.items()}
    refused: Counter[str] = Counter()
    modalities: Counter[str] = Counter()
    num_figures = 0
    for part, table in zip(parts, tables, strict=True):
        own = {name: repeats[name] for name in table.column("id").to_pylist() if name in repeats}
        _write_part(corpus, part, own)
        figures = read_figures(corpus / SELECT / part)
        num_figures += len(figures)
        refused.update(figure.refusal for figure in figures if not figure.is_kept)
        modalities.update(figure.modality for figure in figures if figure.is_kept)
    for name in (corpus / SELECT).children():
        if name.isdigit() and name not in parts:
            (corpus / SELECT / name).remove()
    return Selection(
        num_figures,
        sum(modalities.values()),
        dict(sorted(refused.items())),
        dict(sorted(modalities.items())),
    )


def _write_part(corpus: Location, part: str, repeats: dict[str, str]) -> None:
    """Write a part of the selection, unless it is there as it would be written."""
    before, after = corpus / SCREEN / part, corpus / SELECT / part
    screened = find(FiguresManifest, before)
    made_from = fingerprint([repeats, None if screened is None else screened.fingerprint])
    there = find(FiguresManifest, after)
    if there is not None and there.made_from == made_from:
        return
    (after / FiguresManifest.FILE).remove()
    figures = [
        figure.refused("duplicate", f"of {repeats[figure.id]}") if figure.id in repeats else figure
        for figure in read_figures(before)
    ]
    write_figures(after, figures, made_from)
