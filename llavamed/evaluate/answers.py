"""Write and read `answers.parquet`, the only file that scoring reads.

One row is an item under one condition: what was asked, what was expected, and what was answered.
The rows of a condition are contiguous, and every condition has the same items in the same order. A
file may be ours or anyone's: it needs the columns `id`, `prediction`, `references` and
`answer_type`, and the others may be absent.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from llavamed.data.record import AnswerType
from llavamed.errors import DataError, LlavaMedError
from llavamed.evaluate.scorers.item import Item, Options
from llavamed.storage.location import Location
from llavamed.storage.manifest import Facts, Manifest
from llavamed.storage.scratch import scratch_folder

ANSWERS = "answers.parquet"

TRAINED = "trained"
"""The model under test with the unchanged question; every other condition is a control."""
Outcome = Literal["answered", "cut_off", "refused"]
"""`cut_off`: reached `max_new_tokens`. `refused`: by the endpoint or its content filter."""

_NEEDED = ("id", "prediction", "references", "answer_type")
_OPTION = pa.struct([("letter", pa.string()), ("text", pa.string())])
ANSWERS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("condition", pa.string()),
        pa.field("question", pa.string()),
        pa.field("references", pa.list_(pa.string())),
        pa.field("options", pa.list_(_OPTION)),  # without letters where the answers are a list
        pa.field("answer_type", pa.string()),
        pa.field("question_type", pa.string()),
        pa.field("organ", pa.string()),
        pa.field("modality", pa.string()),
        pa.field("domain", pa.string()),
        pa.field("language", pa.string()),
        pa.field("pair", pa.string()),
        pa.field("image", pa.string()),
        pa.field("shown_image", pa.string()),
        pa.field("prediction", pa.string()),
        pa.field("outcome", pa.string()),
        pa.field("tokens", pa.int32()),
        pa.field("seconds", pa.float32()),
        pa.field("key", pa.string()),
    ]
)
"""Schema of `answers.parquet`; the columns are the fields of `Answer`."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """One row of `answers.parquet`.

    Attributes:
        id: Id of the item; it occurs once in every condition.
        condition: What the model was given: `trained`, or the name of a control.
        question: Text of the question, without image placeholders and options.
        references: The right answers; an item is scored by the best match.
        options: Lettered options, candidate answers, or none.
        answer_type: `OPEN` or `CLOSED`.
        question_type: The benchmark's own category. It and the next four fields may be empty.
        organ: The part of the body.
        modality: Imaging modality.
        domain: What the dataset calls its domain.
        language: Code of the question's language, such as `en`.
        pair: Id of a probing pair, which is right only if both items are. Empty if there is none.
        image: SHA-256 of the item's image, or of the hashes of several; the same in every
            condition. Empty where the item has none.
        shown_image: The same hash of the image that was shown under this condition.
        prediction: The answer. It may be empty.
        outcome: How the answer ended.
        tokens: Number of tokens of the answer, 0 where none was generated.
        seconds: The item's share of the time of its batch.
        key: Hash of everything that decides the prediction; equal keys have equal answers.
    """

    id: str
    condition: str
    question: str
    references: tuple[str, ...]
    options: Options
    answer_type: AnswerType
    question_type: str = ""
    organ: str = ""
    modality: str = ""
    domain: str = ""
    language: str = ""
    pair: str = ""
    image: str = ""
    shown_image: str = ""
    prediction: str = ""
    outcome: Outcome = "answered"
    tokens: int = 0
    seconds: float = 0.0
    key: str = ""

    def items(self) -> list[Item]:
        """Return one item for scorers for each reference."""
        return [
            Item(
                id=self.id,
                question=self.question,
                prediction=self.prediction,
                reference=reference,
                answer_type=self.answer_type,
                options=self.options,
                image=self.image,
                question_type=self.question_type,
                domain=self.domain,
                organ=self.organ,
                modality=self.modality,
                given_id=self.id,
            )
            for reference in self.references
        ]


ASKED = tuple(field.name for field in fields(Answer)[2:13])
"""Fields that belong to the item and are the same in every condition."""


class Overlap(Facts):
    """How many samples of a training set also occur in an evaluation set."""

    dataset: str
    """Name of the training set."""
    num_samples: int
    """Number of samples of the training set."""
    shared: dict[str, int]
    """Number of samples that share an `image`, `question`, `pair` or `text` with it."""


class AnswersManifest(Manifest):
    """Everything that the rows of `answers.parquet` depend on. It is written after them."""

    VERSION: ClassVar[int] = 1
    FILE: ClassVar[str] = "answers.json"
    ERROR: ClassVar[type[LlavaMedError]] = DataError
    HINT: ClassVar[str] = "generate the answers again"

    model: str
    """URI or name of the model that was asked."""
    kind: Literal["export", "transformers", "endpoint"]
    """Our own export, another model of transformers, or a model behind an endpoint."""
    model_fingerprint: str
    """Training fingerprint of an export; otherwise a hash of the model's files or name."""
    template: str
    """Hash of the chat template."""
    max_new_tokens: int
    """Maximum number of tokens of an answer. Decoding is greedy."""
    questions: str
    """Name and version of the benchmark, or name of the dataset."""
    prompt: str
    """Text that the benchmark appends to each question; may be empty."""
    split: str
    """Split of the questions, or empty."""
    questions_fingerprint: str
    """Hash of the questions and images."""
    num_questions: int
    """Number of questions."""
    conditions: tuple[str, ...]
    """Conditions under which every question was answered."""
    num_generated: int
    """Number of answers that the last command generated; it reused the others."""
    quarantined: dict[str, int]
    """Questions that cannot be asked, by reason."""
    overlaps: tuple[Overlap, ...] | None = None
    """Overlap of each training set with the questions. None if a training set is unknown."""
    template_name: str | None = None
    """Name of the chat template. None if it is none of ours."""
    fingerprint: str
    """Hash of everything that decides the answers."""


def to_table(answers: Iterable[Answer]) -> pa.Table:
    """Return answers as a table of `ANSWERS_SCHEMA`."""
    names = [name for name in ANSWERS_SCHEMA.names if name != "options"]
    rows = [
        {name: getattr(answer, name) for name in names} | {"options": from_options(answer.options)}
        for answer in answers
    ]
    return pa.Table.from_pylist(rows, ANSWERS_SCHEMA)


def write_tables(folder: Location, tables: Iterable[pa.Table]) -> int:
    """Write tables as `answers.parquet`, atomically, and return the number of rows.

    Only one table is in memory at once; each becomes a row group.

    Raises:
        StorageError: It cannot be written.
    """
    count = 0
    with scratch_folder() as scratch:
        with pq.ParquetWriter(
            scratch / ANSWERS, ANSWERS_SCHEMA, compression="zstd", write_page_checksum=True
        ) as file:
            for table in tables:
                file.write_table(table)
                count += table.num_rows
        folder.upload(scratch)
    return count


def iter_answers(file: Location) -> Iterator[Answer]:
    """Yield the rows of a file, with one row group in memory at a time.

    Raises:
        DataError: There is no such file, a column is missing or of another type, or a row is no
            answer.
        DamagedFileError: It is not a Parquet file, or is damaged.
    """
    for table in _row_groups(file):
        for number, row in enumerate(_typed(table, file).to_pylist()):
            yield _answer(row, f"{file}: row {number} of a row group")


def read_answers(file: Location) -> dict[str, list[Answer]]:
    """Read all rows of a file by condition, the items in the order of the first condition.

    A warning counts empty predictions; they are scored as empty answers.

    Raises:
        DataError: As `iter_answers` does; or an id occurs twice in a condition, or conditions
            have other items or state them differently.
        DamagedFileError: It is not a Parquet file, or is damaged.
    """
    by_id: dict[str, dict[str, Answer]] = {}
    for answer in iter_answers(file):
        there = by_id.setdefault(answer.condition, {})
        if answer.id in there:
            raise DataError(
                f"{file}: id={answer.id!r} occurs twice under condition {answer.condition!r}; give "
                "every item an id of its own"
            )
        there[answer.id] = answer
    if not by_id:
        raise DataError(f"{file}: holds no answer; generate the answers first")
    first = TRAINED if TRAINED in by_id else next(iter(by_id))
    for condition, answers in by_id.items():
        _check_same_items(file, (first, by_id[first]), (condition, answers))
        if num_empty := sum(not answer.prediction.strip() for answer in answers.values()):
            logger.warning(
                "%s: %d of %d predictions of %s are empty",
                *(file, num_empty, len(answers), condition),
            )
    conditions = [first, *(name for name in by_id if name != first)]
    return {name: [by_id[name][id_] for id_ in by_id[first]] for name in conditions}


def _check_same_items(
    file: Location, first: tuple[str, Mapping[str, Answer]], other: tuple[str, Mapping[str, Answer]]
) -> None:
    (name, wanted), (condition, there) = first, other
    missing = [id_ for id_ in wanted if id_ not in there]
    foreign = [id_ for id_ in there if id_ not in wanted]
    if missing or foreign:
        raise DataError(
            f"{file}: condition={condition}: of the {len(wanted)} items of {name} it lacks "
            f"{count_ids(missing)}, and it has {count_ids(foreign)} besides; generate all "
            "conditions from the same questions"
        )
    for id_, answer in there.items():
        for key in ASKED:
            if getattr(answer, key) != getattr(wanted[id_], key):
                raise DataError(
                    f"{file}: id={id_!r}: {key} is {getattr(answer, key)!r} under {condition} and "
                    f"{getattr(wanted[id_], key)!r} under {name}; generate all conditions from the "
                    "same questions"
                )


def count_ids(ids: list[str]) -> str:
    """Count ids and name the first few."""
    if not ids:
        return "none"
    more = ", ..." if len(ids) > 3 else ""
    return f"{len(ids)} ({', '.join(map(repr, ids[:3]))}{more})"


def _row_groups(file: Location) -> Iterator[pa.Table]:
    def read(number: int) -> Callable[[Any], pa.Table]:
        return lambda raw: pq.ParquetFile(raw, page_checksum_verification=True).read_row_group(
            number
        )

    try:
        count = file.read_parquet(lambda raw: pq.ParquetFile(raw).num_row_groups)
        for number in range(count):
            yield file.read_parquet(read(number))
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file; check the path") from error


def _typed(table: pa.Table, file: Location) -> pa.Table:
    """Return a table with every column of the schema; columns that are absent become null."""
    there = set(table.column_names)
    if missing := [name for name in _NEEDED if name not in there]:
        raise DataError(f"{file}: has no column {', '.join(missing)}; add it, or name another file")
    columns = []
    for field in ANSWERS_SCHEMA:
        if field.name not in there:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        try:
            columns.append(column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"{file}: column {field.name} is {column.type}, not {field.type}; write it as that"
            ) from error
    return pa.table(columns, schema=ANSWERS_SCHEMA)


def _answer(row: dict[str, Any], place: str) -> Answer:
    id_ = row["id"]
    if not id_:
        raise DataError(f"{place}: has no id; give every item one")
    if row["prediction"] is None:
        raise DataError(f"{place}: id={id_!r}: has no prediction; write '' for an empty answer")
    references = row["references"]
    if not references or not all(each and each.strip() for each in references):
        raise DataError(f"{place}: id={id_!r}: has no reference to score by; add one")
    answer_type = (row["answer_type"] or "").strip().upper()
    if answer_type not in {"OPEN", "CLOSED"}:
        raise DataError(
            f"{place}: id={id_!r}: answer_type={row['answer_type']!r} must be OPEN or CLOSED; "
            "correct it"
        )
    outcome = row["outcome"] or "answered"
    if outcome not in get_args(Outcome):
        raise DataError(
            f"{place}: id={id_!r}: outcome={outcome!r} must be one of "
            f"{', '.join(get_args(Outcome))}; correct it"
        )
    known = {
        "condition": row["condition"] or TRAINED,
        "references": tuple(references),
        "options": to_options(row["options"], f"{place}: id={id_!r}"),
        "answer_type": answer_type,
        "outcome": outcome,
        "tokens": row["tokens"] or 0,
        "seconds": row["seconds"] or 0.0,
    }
    texts: dict[str, Any] = {name: value or "" for name, value in row.items()}
    return Answer(**(texts | known))


def from_options(options: Options) -> list[dict[str, str | None]]:
    """Return options as a list of letters and texts; the letter is null if there is none."""
    if isinstance(options, Mapping):
        return [{"letter": letter, "text": text} for letter, text in options.items()]
    return [{"letter": None, "text": text} for text in options or ()]


def to_options(listed: list[dict[str, str | None]] | None, place: str) -> Options:
    """Return the options that a list of letters and texts holds.

    Args:
        listed: As `from_options` returns it.
        place: The row, for errors.

    Raises:
        DataError: A text is missing, or letters are missing or repeated.
    """
    if not listed:
        return None
    letters = [option["letter"] for option in listed]
    texts = [option["text"] for option in listed]
    has_letters = all(letters)
    if None in texts or len(set(letters)) != (len(letters) if has_letters else 1):
        raise DataError(
            f"{place}: options={listed} must have a text each, and a letter of their own or none; "
            "correct them"
        )
    given = [str(text) for text in texts]
    if has_letters:
        return dict(zip(map(str, letters), given, strict=True))
    return tuple(given)
