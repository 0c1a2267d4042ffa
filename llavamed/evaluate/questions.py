"""Read questions in chunks, so that memory does not grow with their number."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from llavamed.data.prepared.dataset import PreparedDataset
from llavamed.data.record import AnswerType
from llavamed.errors import DataError
from llavamed.evaluate.scorers.item import Options
from llavamed.processor.image_files import Pixels, decode, to_png
from llavamed.processor.turns import IMAGE_PLACEHOLDER, Turn

CHUNK = 128
"""Questions per chunk: what a worker holds at once and repeats after it was killed."""
_COLUMNS = ["id", "turns", "domain", "answer_type", "question_type"]


@dataclass(frozen=True, slots=True)
class QuestionImage:
    """An image of a question."""

    pixels: Pixels
    """Pixels at the resolution of the file, or as a prepared dataset stores them."""
    sha256: str
    """Hash of the file's bytes, or of the pixels."""

    @classmethod
    def from_pixels(cls, pixels: Pixels) -> "QuestionImage":
        """Return the picture of these pixels."""
        shape = f"{pixels.shape}".encode()
        return cls(pixels, hashlib.sha256(shape + pixels.tobytes()).hexdigest())

    @classmethod
    def from_file(cls, data: bytes) -> "QuestionImage":
        """Decode a file. Raises: SampleError, as `llavamed.processor.image_files.decode` does."""
        return cls(decode(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True)
class Question:
    """One item. The fields that `Answer` has too are described there.

    Attributes:
        turns: The dialogue to continue, which ends with the user's turn; a placeholder in its text
            stands for each picture.
        images: References to the pictures, which a source resolves.
        pictures: The pictures, in the order of their placeholders; empty until they are read.
    """

    id: str
    question: str
    references: tuple[str, ...]
    options: Options
    answer_type: AnswerType
    turns: tuple[Turn, ...]
    question_type: str = ""
    organ: str = ""
    modality: str = ""
    domain: str = ""
    language: str = ""
    pair: str = ""
    images: tuple[str, ...] = ()
    pictures: tuple[QuestionImage, ...] = field(default=(), compare=False)

    @property
    def image(self) -> str:
        """Return the hash of the picture, or of the hashes of several pictures."""
        return hash_pictures([picture.sha256 for picture in self.pictures])


def hash_pictures(hashes: Sequence[str]) -> str:
    """Return one hash for all pictures of an item; empty if there are none."""
    if len(hashes) < 2:
        return "".join(hashes)
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


class Questions(Protocol):
    """A set of questions in chunks. It is sent to every worker, so it holds no question itself."""

    @property
    def num_chunks(self) -> int:
        """Return the number of chunks."""

    def read(self, chunk: int, *, with_pictures: bool = True) -> list[Question]:
        """Read a chunk, with or without its pictures."""


@dataclass(frozen=True)
class PreparedQuestions:
    """The questions of a prepared dataset."""

    dataset: PreparedDataset

    @cached_property
    def _chunks(self) -> list[list[tuple[int, int]]]:
        """Shard and row group of the row groups of each chunk."""
        places = self.dataset.row_groups()
        width = max(1, CHUNK // self.dataset.manifest.made_from.row_group_size)
        return [places[start : start + width] for start in range(0, len(places), width)]

    @property
    def num_chunks(self) -> int:
        """Return the number of chunks, which are row groups or several of them."""
        return len(self._chunks)

    def read(self, chunk: int, *, with_pictures: bool = True) -> list[Question]:
        """Read a chunk.

        Raises:
            DataError: Its shard is missing or damaged, or a sample lacks an answer type.
        """
        columns = [*_COLUMNS, *(["pixels"] if with_pictures else [])]
        return [
            self._question(row)
            for shard, row_group in self._chunks[chunk]
            for row in self.dataset.read_samples(shard, row_group, columns).to_pylist()
        ]

    def _question(self, row: dict[str, Any]) -> Question:
        *turns, answer = (Turn(turn["role"], turn["text"]) for turn in row["turns"])
        if not row["answer_type"]:
            raise DataError(
                f"{self.dataset.location}: sample {row['id']!r} has no answer_type, by which it "
                "would be scored; evaluate on a dataset whose source labels its questions"
            )
        pixels = [self.dataset.pixels(stored) for stored in row.get("pixels", ())]
        return Question(
            id=row["id"],
            question=words_of(turns[-1].text),
            references=(answer.text,),
            options=None,
            answer_type=row["answer_type"],
            turns=tuple(turns),
            question_type=row["question_type"],
            domain=row["domain"],
            pictures=tuple(map(QuestionImage.from_pixels, pixels)),
        )


def words_of(text: str) -> str:
    """Return the text of a turn without image placeholders."""
    return text.replace(IMAGE_PLACEHOLDER, "").strip()


def find_pictures(questions: Questions, ids: Collection[str]) -> dict[str, bytes]:
    """Return the first picture of some questions, as PNG by id.

    Chunks without such a question are read without their pictures.
    """
    found = {}
    for chunk in range(questions.num_chunks):
        if any(each.id in ids for each in questions.read(chunk, with_pictures=False)):
            for question in questions.read(chunk):
                if question.id in ids and question.pictures:
                    found[question.id] = to_png(question.pictures[0].pixels)
    return found
