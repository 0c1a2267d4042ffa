"""List the questions of a benchmark once, so that workers read them by chunks.

Every picture is read, decoded and hashed here: what cannot be asked is known before a model is
loaded, and every condition has the same questions. Tables of `QUESTIONS_SCHEMA` hold the questions
and references to the pictures, which stay where they are.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import pyarrow as pa

from llavamed.data.record import QUARANTINE_SCHEMA, QuarantineRow, quarantine_row
from llavamed.errors import DataError, SampleError
from llavamed.evaluate.answers import from_options, to_options
from llavamed.evaluate.benchmarks import BENCHMARKS, open_items
from llavamed.evaluate.benchmarks.benchmark import Items
from llavamed.evaluate.questions import CHUNK, Question, QuestionImage
from llavamed.processor.turns import Turn
from llavamed.storage.location import Location, locate

QUESTIONS, QUARANTINE = "questions", "quarantine.parquet"
_NUM_THREADS = 8
_TURN = pa.struct([("role", pa.string()), ("text", pa.string())])
_OPTION = pa.struct([("letter", pa.string()), ("text", pa.string())])
_TEXTS = ("answer_type", "question_type", "organ", "modality", "domain", "language", "pair")
QUESTIONS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("question", pa.string()),
        pa.field("references", pa.list_(pa.string())),
        pa.field("options", pa.list_(_OPTION)),
        *(pa.field(name, pa.string()) for name in _TEXTS),
        pa.field("turns", pa.list_(_TURN)),
        pa.field("images", pa.list_(pa.string())),
        pa.field("image_hashes", pa.list_(pa.string())),
    ]
)
"""Schema of `questions/*.parquet`, one row per question in the order of the benchmark."""


@dataclass(frozen=True)
class ListedQuestions:
    """The questions of a benchmark, stored as tables."""

    folder: str
    """URI of the folder of tables."""
    num_chunks: int
    num_questions: int
    benchmark: str
    path: str
    split: str
    fingerprint: str
    """Hash of all questions and pictures."""
    quarantined: Mapping[str, int] = field(default_factory=dict)
    """Questions that cannot be asked, by reason."""

    def read(self, chunk: int, *, with_pictures: bool = True) -> list[Question]:
        """Read a chunk.

        Raises:
            DataError: A picture has changed since the questions were listed, or is gone.
        """
        rows = (locate(self.folder) / _name(chunk)).read_table().to_pylist()
        if not with_pictures:
            return [_question(row) for row in rows]
        items = open_items(BENCHMARKS[self.benchmark], self.path, self.split)
        # Neighbours share pictures.
        picture_of = lru_cache(4)(partial(_picture, items))
        return [
            replace(_question(row), pictures=tuple(self._pictures(row, picture_of))) for row in rows
        ]

    def _pictures(self, row: dict[str, Any], picture_of: Any) -> Iterator[QuestionImage]:
        for reference, sha256 in zip(row["images"], row["image_hashes"], strict=True):
            try:
                picture = picture_of(reference)
            except SampleError as error:
                raise self._changed(row["id"], str(error)) from error
            if picture.sha256 != sha256:
                raise self._changed(row["id"], "its bytes are others")
            yield picture

    def _changed(self, id_: str, fact: str) -> DataError:
        return DataError(
            f"data={self.path}: a picture of question {id_!r} has changed while it was evaluated "
            f"({fact}); start again when the data is complete"
        )


def list_questions(
    benchmark: str,
    split: str,
    path: str,
    folder: Location,
    *,
    instruction: str | None = None,
    max_bad_fraction: float = 0.0,
    limit: int | None = None,
) -> ListedQuestions:
    """Read all questions of a split, write their tables below a folder, and return them.

    Args:
        path: URI of the data.
        instruction: Line appended to every question; by default the benchmark's own.
        max_bad_fraction: Fraction of questions that may be unusable.
        limit: Number of questions to ask, counted from the first.

    Raises:
        DataError: A file is absent or damaged, there is no question, two have one id, or too many
            cannot be asked.
    """
    found = BENCHMARKS[benchmark]
    items = open_items(found, path, split)
    rows = islice(items.rows(), limit)
    seen: set[str] = set()
    digest = hashlib.sha256()
    bad: list[QuarantineRow] = []
    num_questions = num_chunks = number = 0
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        while some := list(islice(rows, CHUNK)):
            table = []
            for row, listed in zip(some, pool.map(partial(_listed, items), some), strict=True):
                if isinstance(listed, SampleError):
                    bad.append(quarantine_row(found.title, number, str(row["id"]), listed))
                else:
                    instruct = found.choice_instruction if listed["options"] else found.instruction
                    if line := instruct if instruction is None else instruction:
                        listed["turns"][-1]["text"] += f"\n{line}"
                    _check_id(listed["id"], seen, path)
                    digest.update(repr(sorted(listed.items())).encode())
                    table.append(listed)
                number += 1
            if table:
                place = folder / QUESTIONS / _name(num_chunks)
                place.write_table(pa.Table.from_pylist(table, QUESTIONS_SCHEMA))
                num_chunks += 1
                num_questions += len(table)
    (folder / QUARANTINE).write_table(pa.Table.from_pylist(bad, QUARANTINE_SCHEMA))
    _check_quarantine(f"{found.title} at {path}", number, bad, max_bad_fraction)
    return ListedQuestions(
        folder=str(folder / QUESTIONS),
        num_chunks=num_chunks,
        num_questions=num_questions,
        benchmark=benchmark,
        path=path,
        split=split,
        fingerprint=digest.hexdigest()[:16],
        quarantined=dict(sorted(Counter(row["reason"] for row in bad).items())),
    )


def _listed(items: Items, row: dict[str, Any]) -> dict[str, Any] | SampleError:
    """Return a question as a row of its table, or the reason why it cannot be asked."""
    try:
        question = items.ask(row)
        hashes = [_picture(items, reference).sha256 for reference in question.images]
    except SampleError as error:
        return error
    facts = asdict(replace(question, pictures=()))
    del facts["pictures"]
    turns = [{"role": turn.role, "text": turn.text} for turn in question.turns]
    options = from_options(question.options)
    return facts | {"options": options, "turns": turns, "image_hashes": hashes}


def _picture(items: Items, reference: str) -> QuestionImage:
    return QuestionImage.from_file(items.load_image(reference))


def _check_id(id_: str, seen: set[str], path: str) -> None:
    if id_ in seen:
        raise DataError(
            f"data={path}: id={id_!r} is the id of two questions; give every question its own"
        )
    seen.add(id_)


def _check_quarantine(
    name: str, num_rows: int, bad: list[QuarantineRow], max_bad_fraction: float
) -> None:
    if not num_rows:
        raise DataError(f"{name}: holds no question; check the path and the split")
    if len(bad) > max_bad_fraction * num_rows or len(bad) == num_rows:
        counts = Counter(row["reason"] for row in bad)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        raise DataError(
            f"{name}: {len(bad)} of {num_rows} questions cannot be asked ({reasons}), at most "
            f"{max_bad_fraction:g} of them may be; the first is {bad[0]['id']!r}: "
            f"{bad[0]['detail']}; fix the data, or leave them out with --max-bad-fraction"
        )


def _question(row: dict[str, Any]) -> Question:
    return Question(
        id=row["id"],
        question=row["question"],
        references=tuple(row["references"]),
        options=to_options(row["options"], row["id"]),
        turns=tuple(Turn(turn["role"], turn["text"]) for turn in row["turns"]),
        images=tuple(row["images"]),
        **{name: row[name] for name in _TEXTS},
    )


def _name(chunk: int) -> str:
    return f"{chunk:06d}.parquet"
