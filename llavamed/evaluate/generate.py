"""Answer questions under every condition, and write `answers.parquet`.

A chunk of questions under one condition is a part, written as soon as it is answered; a command
that was killed goes on with what is missing. A part is read again by content: an answer counts if
model, template, decoding, prompt and shown pictures are the same, so nothing else is asked twice.
Memory holds a chunk, whatever the number of questions.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from llavamed.errors import DamagedFileError, DataError
from llavamed.evaluate.answers import ASKED, TRAINED, Answer, iter_answers, to_table, write_tables
from llavamed.evaluate.candidate import Answerer, Candidate, Reply
from llavamed.evaluate.conditions import CONDITIONS, MAJORITY, UNTRAINED, Majority
from llavamed.evaluate.questions import Question, Questions
from llavamed.storage.location import Location, locate

PARTS = "parts"


@dataclass(frozen=True)
class Task:
    """The questions, the models and the output folder. It is sent to every worker."""

    questions: Questions
    candidates: Mapping[str, Candidate]
    """The model for each condition."""
    max_new_tokens: int
    folder: str
    """URI of the output folder."""

    @property
    def parts(self) -> list[tuple[str, int]]:
        """Return condition and chunk of every part, grouped by model."""
        return [
            (condition, chunk)
            for condition in self.candidates
            for chunk in range(self.questions.num_chunks)
        ]

    def place(self, condition: str, chunk: int) -> Location:
        """Return the file of a part."""
        return locate(self.folder) / PARTS / condition / f"{chunk:06d}.parquet"


@dataclass(frozen=True)
class AnswerCounts:
    """Number of answers of a part."""

    total: int
    generated: int
    missing: int
    """Questions without an answer."""


class Worker:
    """Answer parts of a task, with one model in memory at a time."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._loaded: tuple[Candidate, Answerer] | None = None

    def answer(self, condition: str, chunk: int) -> AnswerCounts:
        """Answer the missing questions of a part, and write it.

        Raises:
            LlavaMedError: The model cannot be loaded, or refuses all questions.
        """
        task = self._task
        candidate, place = task.candidates[condition], task.place(condition, chunk)
        asked = task.questions.read(chunk)
        if not asked:
            return AnswerCounts(0, 0, 0)
        # Pictures to borrow when a chunk has only one.
        others = self._next(chunk) if condition == "shuffled" else []
        kind = CONDITIONS[TRAINED if condition == UNTRAINED else condition]
        shown = kind.show(asked, others)
        keys = [answer_key(candidate, question, task.max_new_tokens) for question in shown]
        replies = _read_part(place)
        new = {
            key: question for key, question in zip(keys, shown, strict=True) if key not in replies
        }
        if new:
            found = self._answerer(candidate).answer(list(new.values()), task.max_new_tokens)
            replies |= {
                key: reply for key, reply in zip(new, found, strict=True) if reply is not None
            }
        rows = [
            _row(question, show, condition, key, replies[key])
            for question, show, key in zip(asked, shown, keys, strict=True)
            if key in replies
        ]
        place.write_table(to_table(rows))
        missing = len(asked) - len(rows)
        return AnswerCounts(len(rows), sum(key in replies for key in new), missing)

    def close(self) -> None:
        """Free the model."""
        if self._loaded is not None:
            self._loaded[1].close()
        self._loaded = None

    def _next(self, chunk: int) -> list[Question]:
        following = (chunk + 1) % self._task.questions.num_chunks
        return self._task.questions.read(following) if following != chunk else []

    def _answerer(self, candidate: Candidate) -> Answerer:
        if self._loaded is None or self._loaded[0] != candidate:
            self.close()  # drop the other one first: both may not fit
            self._loaded = candidate, candidate.load()
        return self._loaded[1]


def answer_key(candidate: Candidate, question: Question, max_new_tokens: int) -> str:
    """Return the hash of everything that decides the answer to a question."""
    facts = {
        "model": candidate.fingerprint,
        "template": candidate.template,
        "max_new_tokens": max_new_tokens,
        "turns": [[turn.role, turn.text] for turn in question.turns],
        "pictures": [picture.sha256 for picture in question.pictures],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def answer_here(task: Task) -> Iterator[AnswerCounts]:
    """Answer all parts of a task in this process, and yield the count of each."""
    worker = Worker(task)
    try:
        yield from (worker.answer(*part) for part in task.parts)
    finally:
        worker.close()


def add_up(counts: Iterable[AnswerCounts], on_progress: Callable[[int], None]) -> AnswerCounts:
    """Return the sum of counts, and report the number of answers after each."""
    done = AnswerCounts(0, 0, 0)
    for each in counts:
        done = AnswerCounts(
            done.total + each.total, done.generated + each.generated, done.missing + each.missing
        )
        on_progress(done.total)
    return done


def collect(task: Task, folder: Location, majority: Majority | None = None) -> int:
    """Write `answers.parquet` from the parts of a task; return the number of rows.

    Args:
        task: The task, all of whose parts are answered.
        majority: If given, its answers are added as a condition.

    Raises:
        DataError: A part is missing.
    """

    def tables() -> Iterator[pa.Table]:
        for condition, chunk in task.parts:
            place = task.place(condition, chunk)
            try:
                yield place.read_table()
            except FileNotFoundError as error:
                if task.questions.read(chunk, with_pictures=False):
                    raise DataError(
                        f"{place}: no such part; start again, which answers what is missing"
                    ) from error
        if majority is not None:
            first = next(iter(task.candidates))
            for chunk in range(task.questions.num_chunks):
                yield to_table(_constant(task, majority, first, chunk))

    return write_tables(folder, tables())


def _constant(task: Task, majority: Majority, like: str, chunk: int) -> Iterator[Answer]:
    asked = {each.id: each for each in task.questions.read(chunk, with_pictures=False)}
    for answer in iter_answers(task.place(like, chunk)) if asked else ():
        yield replace(
            answer,
            condition=MAJORITY,
            prediction=majority.answer(asked[answer.id]),
            shown_image="",
            outcome="answered",
            tokens=0,
            seconds=0.0,
            key="",
        )


def _row(question: Question, shown: Question, condition: str, key: str, reply: Reply) -> Answer:
    return Answer(
        id=question.id,
        condition=condition,
        **{name: getattr(question, name) for name in ASKED},
        shown_image=shown.image,
        prediction=reply.text,
        outcome=reply.outcome,
        tokens=reply.tokens,
        seconds=reply.seconds,
        key=key,
    )


def _read_part(place: Location) -> dict[str, Reply]:
    """Return the replies of a part by key; empty if it is absent or damaged."""
    if not place.exists():
        return {}
    try:
        return {
            answer.key: Reply(answer.prediction, answer.tokens, answer.outcome, answer.seconds)
            for answer in iter_answers(place)
        }
    except (DataError, DamagedFileError):
        return {}
