"""Benchmarks: data in its published format, a prompt, and the scorer whose rules it uses."""

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Protocol

from llavamed.data.record import Record, check_unicode
from llavamed.data.sources.records import require
from llavamed.errors import SampleError
from llavamed.evaluate.questions import Question, words_of
from llavamed.processor.turns import IMAGE_PLACEHOLDER, Turn

_MARK = re.compile(r"<image (\d)>")
BY_LETTER = "Answer with the letter of the right option."
CHOICES = "Answer Choices:"
"""What stands between a question and its options where both are one text."""


class Items(Protocol):
    """One split of a benchmark in its published form. Opening it reads nothing."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the raw rows, each with an `id`. Raises: DataError."""

    def ask(self, row: dict[str, Any]) -> Question:
        """Interpret a row as a question whose pictures are not read yet. Raises: SampleError."""

    def load_image(self, reference: str) -> bytes:
        """Fetch the encoded bytes of a picture. Raises: SampleError."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark. Whoever changes its questions, prompt or scorer raises the version.

    Attributes:
        name: Its name on the command line.
        version: Version of everything below; reported with every score.
        splits: Names of the splits, the usual one first.
        open: Open a split, from the URI of the data and the name of the split.
        data: What the URI must point to.
        licence: Licence of the data.
        instruction: Line appended to a question that is answered in words.
        choice_instruction: Line appended to a question with lettered options.
        scorer: Name of the scorer of its headline score.
        language: Language of its questions.
        categories: Its categories in tables that also hold other questions; empty for all.
        is_on_hub: Whether Hugging Face has copies of it as `data/{split}-*.parquet`.
        is_published: Whether a table is of the published form, and no copy as kits make them.
    """

    name: str
    version: int
    splits: tuple[str, ...]
    open: Callable[[str, str], Items]
    data: str
    licence: str
    instruction: str = ""
    choice_instruction: str = ""
    scorer: str = "strict"
    language: str = "en"
    categories: tuple[str, ...] = ()
    is_on_hub: bool = False
    is_published: Callable[[str], bool] = lambda path: False

    @property
    def title(self) -> str:
        """Return the name and version."""
        return f"{self.name}/{self.version}"

    @property
    def prompt(self) -> str:
        """Return the lines appended to questions, for a manifest."""
        return " | ".join(filter(None, (self.instruction, self.choice_instruction)))


def question_of(
    record: Record, *, options: Mapping[str, str] | None = None, text: str = "", **groups: Any
) -> Question:
    """Turn a record of one question and its answer into a question.

    Args:
        record: A record as the sources of `llavamed.data` parse it.
        options: Lettered options.
        text: Text of the question, if the turn of the record contains the options too.
        **groups: `organ`, `modality`, `language` and the like, as far as they are known.
    """
    *turns, answer = record.turns
    return Question(
        id=record.id,
        question=text or words_of(turns[-1].text),
        references=(answer.text,),
        options=options,
        answer_type=record.answer_type,
        turns=tuple(turns),
        domain=record.domain,
        images=record.images,
        **({"question_type": record.question_type} | groups),
    )


def lettered_question(
    id: str,
    text: str,
    options: Mapping[str, str],
    letter: str,
    *,
    images: tuple[str, ...],
    **groups: Any,
) -> Question:
    """Return a question whose answer is the letter of an option.

    Args:
        text: The question. Pictures without a placeholder in it or in an option come first.
        options: The options by their letters.
        letter: The letter of the right option.
        images: References to the pictures, in the order of their placeholders.
        **groups: `question_type`, `organ`, `modality` and `domain`, as far as they are known.

    Raises:
        SampleError: `unknown_answer`, if no option has this letter; `missing_key`, if the question
            or an option has no text; or `not_unicode`.
    """
    if letter not in options:
        raise SampleError("unknown_answer", f"{letter!r} is none of {', '.join(options)}")
    if empty := [each for each, words in options.items() if not words.strip()]:
        raise SampleError("missing_key", f"no text of option {', '.join(empty)}")
    lines = [text.strip(), *(f"{key}: {words}" for key, words in options.items())]
    question = _placed(id, "\n".join(lines), images)
    return Question(
        id=id,
        question=words_of(text),
        references=(letter,),
        options={key: words_of(words) for key, words in options.items()},
        answer_type="CLOSED",
        turns=(Turn("user", question),),
        images=images,
        **groups,
    )


def open_question(
    id: str, text: str, references: tuple[str, ...], *, images: tuple[str, ...], **groups: Any
) -> Question:
    """Return a question that is answered in words. Raises: SampleError (`missing_key`)."""
    if not any(reference.strip() for reference in references):
        raise SampleError("missing_key", "no answer")
    return Question(
        id=id,
        question=words_of(text),
        references=references,
        options=None,
        answer_type="OPEN",
        turns=(Turn("user", _placed(id, text.strip(), images)),),
        images=images,
        **groups,
    )


def place_pictures(
    texts: Sequence[str], picture_of: Callable[[int], str]
) -> tuple[list[str], tuple[str, ...]]:
    """Put placeholders where texts name pictures as `<image 1>`.

    Args:
        texts: The question and its options.
        picture_of: Returns the reference to a picture by its number.

    Returns:
        The texts, and the pictures in the order of their placeholders.
    """
    pictures: list[str] = []

    def take(mark: re.Match[str]) -> str:
        pictures.append(picture_of(int(mark[1])))
        return IMAGE_PLACEHOLDER

    return [_MARK.sub(take, text) for text in texts], tuple(pictures)


def read_options(given: Any) -> dict[str, str]:
    """Return options by their letters: of a mapping, of a list of texts or of letters and texts.

    Raises:
        SampleError: `missing_key`, if they are anything else.
    """
    match given:
        case str() if given.lstrip().startswith("["):
            return read_options(read_list(given, "options"))
        case {**mapping} if mapping:
            return {str(key): str(text) for key, text in mapping.items() if text is not None}
        case [str(), *_] if all(isinstance(each, str) for each in given):
            return dict(zip(ascii_uppercase, given, strict=False))
        case [{}, *_] if all(isinstance(each, Mapping) for each in given):
            pairs: Any = [require(each, "letter", "content") for each in given]
            if len(dict(pairs)) == len(pairs):
                return dict(pairs)
    raise SampleError("missing_key", f"options are {given!r}, not texts by their letters")


def read_list(text: str, key: str) -> list[str]:
    """Return the texts of a Python list. Raises: SampleError (`unknown_answer`)."""
    try:
        listed = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise SampleError("unknown_answer", f"{key} is {text!r}, not a list") from error
    if not isinstance(listed, list) or len(listed) > len(ascii_uppercase):
        raise SampleError("unknown_answer", f"{key} is {text!r}, not a list")
    return [str(each) for each in listed]


def _placed(id: str, text: str, images: tuple[str, ...]) -> str:
    """Return a text with a placeholder for each picture; those it lacks come first.

    Raises:
        SampleError: `missing_key`, `placeholder_mismatch` or `not_unicode`.
    """
    if not words_of(text):
        raise SampleError("missing_key", "no question")
    check_unicode(Record(id, (), (Turn("user", text),)))
    missing = len(images) - text.count(IMAGE_PLACEHOLDER)
    if missing < 0:
        raise SampleError(
            "placeholder_mismatch",
            f"{text.count(IMAGE_PLACEHOLDER)} pictures in the text, {len(images)} next to it",
        )
    return f"{IMAGE_PLACEHOLDER}\n" * missing + text
