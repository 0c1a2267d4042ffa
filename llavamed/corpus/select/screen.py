"""Screen one part of a harvest: every figure gets its verdicts, and its picture a hash.

A part is read, judged and written as a whole, on any machine, without Ray. Pictures are in memory
a few at a time.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa

from llavamed.config.corpus import Select
from llavamed.corpus.figures import FigureRow, read_figures, write_figures
from llavamed.corpus.select.captions import Lexicon, load_lexicon
from llavamed.corpus.select.faces import FaceFinder, check_face_finder
from llavamed.corpus.select.gates import EvaluationSet, Judged, read_picture, read_words
from llavamed.corpus.select.text_in_picture import TextReader, check_text_reader, identifying
from llavamed.data.prepared.content import as_words, hash_image
from llavamed.data.prepared.dataset import CONTENT, open_prepared
from llavamed.data.record import IMAGE_HASH_BYTES
from llavamed.processor.image_files import Pixels, to_png
from llavamed.processor.images import ImageSettings
from llavamed.storage.fingerprint import fingerprint
from llavamed.storage.location import Location, locate
from llavamed.storage.manifest import FiguresManifest, find, read

if TYPE_CHECKING:
    from llavamed.corpus.select.zero_shot import ZeroShot

HARVEST, SCREEN = "harvest", "screen"
HASHES = "hashes.parquet"
HASHES_SCHEMA = pa.schema([("id", pa.string()), ("hash", pa.binary(IMAGE_HASH_BYTES))])
"""Schema of `hashes.parquet`, one row per figure that the screening keeps."""

_AT_ONCE = 32
"""Figures whose pictures are in memory together."""
_NUM_THREADS = 8
"""Number of pictures read at once, because an object store takes a while for each."""


@dataclass(frozen=True)
class Screen:
    """The judges of figures. Models are loaded when the first picture needs them."""

    corpus: Location
    settings: Select
    lexicon: Lexicon
    evaluation: tuple[EvaluationSet, ...]
    evaluation_hash: str
    """Fingerprint of the evaluation sets."""

    @classmethod
    def load(cls, corpus: str, settings: Select) -> "Screen":
        """Read the lexicon and the evaluation sets.

        Raises:
            ConfigError: The lexicon cannot be read, or a package is not installed.
            DataError: An evaluation set is not prepared.
        """
        lexicon = load_lexicon(settings.lexicon)
        lexicon.check(settings.modalities)
        if settings.find_faces:
            check_face_finder()
        if settings.read_text:
            check_text_reader()
        sets, marks = [], []
        for uri in settings.evaluation_sets:
            dataset = open_prepared(locate(uri))
            facts = dataset.manifest.made_from.images
            hashes = dataset.read(CONTENT).column("image_hashes").combine_chunks().flatten()
            sets.append(
                EvaluationSet(
                    dataset.name, ImageSettings(**facts.model_dump()), as_words(hashes.unique())
                )
            )
            marks.append(dataset.manifest.fingerprint)
        return cls(locate(corpus), settings, lexicon, tuple(sets), fingerprint(marks))

    def run(self, part: str) -> FiguresManifest:
        """Screen a part of the harvest, unless it is done with these settings.

        Raises:
            StorageError: A file cannot be read or written.
        """
        before, after = self.corpus / HARVEST / part, self.corpus / SCREEN / part
        made_from = self._made_from(read(FiguresManifest, before))
        there = find(FiguresManifest, after)
        if there is not None and there.made_from == made_from:
            return there
        (after / FiguresManifest.FILE).remove()
        figures: list[FigureRow] = []
        hashes: list[dict[str, object]] = []
        for figure, hashed in self._judged(read_figures(before)):
            figures.append(figure)
            if hashed is not None:
                hashes.append({"id": figure.id, "hash": hashed})
        (after / HASHES).write_table(pa.Table.from_pylist(hashes, HASHES_SCHEMA))
        return write_figures(after, figures, made_from)

    def _made_from(self, before: FiguresManifest) -> str:
        where = {"classifier": {"batch_size", "use_gpu", "num_workers"}, "duplicate_bits": True}
        settings = self.settings.model_dump(mode="json", exclude=where)  # type: ignore[arg-type]
        return fingerprint([settings, self.lexicon.hash, self.evaluation_hash, before.fingerprint])

    def _judged(self, figures: list[FigureRow]) -> Iterator[tuple[FigureRow, bytes | None]]:
        """Yield every figure with its verdicts, and the hash of its picture where it is kept."""
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            for start in range(0, len(figures), _AT_ONCE):
                some = [
                    read_words(each, self.settings, self.lexicon) if each.is_kept else each
                    for each in figures[start : start + _AT_ONCE]
                ]
                yield from self._with_pictures(some, pool)

    def _with_pictures(
        self, figures: list[FigureRow], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[FigureRow, bytes | None]]:
        data = pool.map(self._read, figures)
        judged = [
            each
            for figure, read in zip(figures, data, strict=True)
            for each in self._picture(figure, read)
        ]
        if self._zero_shot is not None:
            self._compare(self._zero_shot, judged)
        for figure, pixels in judged:
            if figure.is_kept and pixels is not None:
                figure = self._person(figure, pixels)
            hashed = None
            if figure.is_kept and pixels is not None:
                hashed = hash_image(pixels)
                figure = self._store_panel(figure, pixels) if figure.panel else figure
            yield figure, hashed

    def _compare(self, model: "ZeroShot", judged: list[Judged]) -> None:
        """Add the verdict of the zero-shot model to the figures whose pixels are there."""
        from llavamed.corpus.select.zero_shot import agree

        places = [place for place, (_, pixels) in enumerate(judged) if pixels is not None]
        pictures = [pixels for _, pixels in judged if pixels is not None]
        for place, scores in zip(places, model.scores(pictures), strict=True):
            figure, pixels = judged[place]
            judged[place] = (agree(figure, scores, model.min_score), pixels)

    def _read(self, figure: FigureRow) -> bytes | None:
        """Return the encoded picture of a figure that is still kept, None where it is absent."""
        if not figure.is_kept:
            return None
        try:
            return (self.corpus / figure.pictures[0].path).read_bytes()
        except FileNotFoundError:
            return None

    def _picture(self, figure: FigureRow, data: bytes | None) -> list[Judged]:
        if not figure.is_kept:
            return [(figure, None)]
        if data is None:
            return [(figure.refused("missing_picture", figure.pictures[0].path), None)]
        return read_picture(figure, data, self.settings, self.lexicon, self.evaluation)

    def _store_panel(self, figure: FigureRow, pixels: Pixels) -> FigureRow:
        """Write the picture of a panel, and return the panel with its size and hashes."""
        data = to_png(pixels)
        facts = {
            "md5": hashlib.md5(data, usedforsecurity=False).hexdigest(),
            "sha256": hashlib.sha256(data).hexdigest(),
            "num_bytes": len(data),
        }
        picture = replace(figure.pictures[0], **facts)  # type: ignore[arg-type]
        (self.corpus / picture.path).write_bytes(data)
        return replace(figure, pictures=(picture,))

    def _person(self, figure: FigureRow, pixels: Pixels) -> FigureRow:
        """Return the figure, refused where its picture shows a face or names somebody."""
        if self.settings.find_faces and (count := self._face_finder.count(pixels)):
            return figure.refused("face", f"{count} in the picture")
        if self.settings.read_text and (found := identifying(self._text_reader.read(pixels))):
            return figure.refused("identifying_text", found)
        return figure

    @cached_property
    def _face_finder(self) -> FaceFinder:
        return FaceFinder()

    @cached_property
    def _text_reader(self) -> TextReader:
        return TextReader()

    @cached_property
    def _zero_shot(self) -> "ZeroShot | None":
        if self.settings.classifier is None:
            return None
        from llavamed.corpus.select.zero_shot import ZeroShot

        kinds = {**self.lexicon.modalities, **self.lexicon.others}
        descriptions = {name: kind.description for name, kind in kinds.items()}
        return ZeroShot(self.settings.classifier, descriptions)
