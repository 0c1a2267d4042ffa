"""Render a tokenizer's own chat template, and find out which of its text is trained.

A template is a program by another author, so nothing is assumed about it. A dialogue is rendered
twice, the second time with a mark after the words of each turn, which shows where they come out. A
dialogue that the template refuses, or whose words or images it changes, raises `SampleError`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError, TemplateSyntaxError

from llavamed.errors import ConfigError, SampleError
from llavamed.processor.templates import TOKENIZER, own_chat_template
from llavamed.processor.thinking import OPENING, mask_thinking, thinking_of, without_thinking
from llavamed.processor.token_labels import LabeledText, any_of, count_shared, special_token_pattern
from llavamed.processor.turns import IMAGE_PLACEHOLDER, Role, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")

_TODAY = datetime(2024, 7, 26)
"""The date that a template gets from `strftime_now`, so that tokens do not depend on the day. It is
the one that the template of LLaMA 3 uses without a clock."""

_FORMS: tuple[frozenset[Role], ...] = (
    frozenset(),
    frozenset({"system", "user", "assistant"}),
    frozenset({"user"}),
)
"""Roles whose content a template may expect as a list of parts instead of a string."""

_PROBE = (Turn("user", f"{IMAGE_PLACEHOLDER}\nquestion?"), Turn("assistant", "answer."))
_THOUGHT = (_PROBE[0], Turn("assistant", "<think>\nthought\n</think>\n\nanswer."))

_EXCERPT = 24
"""Characters shown on either side of the place where a text was changed."""


@dataclass(frozen=True, slots=True)
class _Written:
    """A rendered dialogue."""

    text: str
    words: dict[int, tuple[int, int]]
    """Start and stop of the words of each turn that has any, by the number of the turn."""
    spans: list[tuple[int, int]]
    """Start and stop of each span between `{% generation %}` marks, in order."""


def own_template(tokenizer: "PreTrainedTokenizerBase") -> "OwnTemplate":
    """Return the chat template of a tokenizer, made once for as long as neither changes.

    Raises:
        ConfigError: The tokenizer has no template, or the template is not valid Jinja.
    """
    return _make(tokenizer, own_chat_template(tokenizer), _turn_ends(tokenizer))


def end_of_answers(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the special token that the template trains after an answer; empty if there is none.

    Raises:
        ConfigError: The tokenizer has no template, or the template is not valid Jinja.
        SampleError: The template refuses a question with its answer.
    """
    words = "answer"
    text = own_template(tokenizer).label([Turn("user", "question"), Turn("assistant", words)])
    last = text.words.rindex(words) + len(words)
    rest = zip(text.words[last:], text.trained[last:], strict=True)
    trained = "".join(letter for letter, is_trained in rest if is_trained)
    found = re.search(special_token_pattern(tokenizer), trained)
    return found[0] if found else ""


class OwnTemplate:
    """The chat template of a tokenizer.

    Raises:
        ConfigError: The tokenizer has no template, or the template is not valid Jinja.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", source: str, ends: re.Pattern[str]
    ) -> None:
        """Find out in which form the template takes the content of a turn.

        Args:
            ends: Pattern of the special tokens that end a turn.
        """
        self._tokenizer = tokenizer
        self._source = _fix_date(source)
        self._thinking = thinking_of(source)
        self._ends = ends
        self._in_parts = _FORMS[0]
        self._in_parts = max(_FORMS, key=self._count_probes)
        self._forgets_thinking = self._drops_thinking()

    def label(self, turns: Sequence[Turn], *, prompt: bool = False) -> LabeledText:
        """Render a dialogue in which each answer is trained through its end.

        An answer begins where the generation prompt ends, or where `{% generation %}` says. It ends
        with the first special token after its words, and with eos_token if that follows. Spaces at
        the end of a generation prompt belong to the answer, since a tokenizer joins them to its
        first word; with `prompt`, the text stops before them. A prompt has no thinking parts of
        earlier answers if the template leaves them out.

        Raises:
            SampleError: `template_refuses`, `template_rewrites` or `template_marks`.
        """
        if self._thinking == "leave_out" or (prompt and self._forgets_thinking):
            turns = without_thinking(turns)
        spoken = [turn.role for turn in turns if turn.role != "system"]
        if spoken[:1] != ["user"]:
            raise SampleError("template_refuses", "a dialogue must begin with a question")
        written = self._write_marked(turns, prompt)
        has_marks = _GENERATION.search(self._source)
        find = self._marked_answers if has_marks else self._prompted_answers
        trained = [False] * len(written.text)
        try:
            spans = list(find(turns, written))
        except SampleError:
            # A template that begins thinking in its prompt writes none before earlier answers.
            if not (prompt and self._forgets_thinking):
                raise
            spans = []
        for start, stop in spans:
            trained[start:stop] = [True] * (stop - start)
            if self._thinking == "mask":
                mask_thinking(written.text, trained, start, stop)
        length = len(written.text.rstrip(" ")) if prompt else len(written.text)
        return LabeledText(written.text[:length], trained[:length])

    def _prompted_answers(
        self, turns: Sequence[Turn], written: _Written
    ) -> Iterator[tuple[int, int]]:
        """Yield the span of each trained answer, which begins after its generation prompt."""
        for number, turn in enumerate(turns):
            if turn.role != "assistant" or not turn.trained:
                continue
            start = self._prompt_length(turns[:number], written)
            first, last = written.words.get(number, (start or 0, start or 0))
            # A prompt may begin the thinking part of the answer.
            opened = start is not None and written.text[first:start].strip() == OPENING
            if start is None or (first < start and not opened):
                raise self._unlike_prompt(turns[:number])
            limit, end = self._find_end(turns[: number + 1], written, last)
            yield start, end or limit

    def _marked_answers(
        self, turns: Sequence[Turn], written: _Written
    ) -> Iterator[tuple[int, int]]:
        """Yield the span of each marked answer, with the white space before it and its end."""
        answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
        last = len(turns) - 1
        if last in answers and self._prompt_length(turns[:last], written) is None:
            raise self._unlike_prompt(turns[:last])
        owner = -1
        for start, stop in written.spans:
            touched = [
                number
                for number, (first, last) in written.words.items()
                if first < stop and start < last
            ]
            for number in touched:
                if number not in answers:
                    raise SampleError(
                        "template_marks",
                        f"the chat template marks turn {number} ({turns[number].role}) as answer",
                    )
            if not touched:  # an answer without words: the next one
                touched = [number for number in answers if number > owner][:1]
            if not touched:
                continue
            owner = touched[-1]
            if not turns[owner].trained:
                continue
            before = self._prompt_length(turns[:owner], written)
            if before is not None and not written.text[before:start].strip():
                start = min(start, before)
            words_end = written.words.get(owner, (start, start))[1]
            if start <= words_end <= stop:
                limit, end = self._find_end(turns[: owner + 1], written, words_end)
                stop = max(stop, end or len(written.text[:limit].rstrip()))
            yield start, stop

    def _unlike_prompt(self, turns: Sequence[Turn]) -> SampleError:
        """Return what to raise if the answer after these turns does not begin as its prompt ends.

        The prompts of some templates begin a thinking part that they write in no answer.
        """
        what = (
            f"writes something else before turn {len(turns)} (assistant) than the prompt that a "
            "model gets to answer there"
        )
        if self._write(turns, prompt=True).rstrip().endswith(OPENING):
            what += f" and which ends in {OPENING}; set model.thinking to leave_out"
        return _rewrites(what)

    def _prompt_length(self, turns: Sequence[Turn], written: _Written) -> int | None:
        """Return the length of the prompt after these turns, or None if the text differs."""
        prompt = self._write(turns, prompt=True).rstrip(" ")
        return len(prompt) if written.text.startswith(prompt) else None

    def _find_end(
        self, turns: Sequence[Turn], written: _Written, words_end: int
    ) -> tuple[int, int | None]:
        """Return where the last of these turns ends, and where the special tokens at its end do.

        If later turns change how these are rendered, only white space may precede such a token.
        """
        through = self._write(turns)
        if written.text.startswith(through):
            end = self._ends.search(written.text, words_end, len(through))
            return len(through), end and end.end()
        space = re.compile(r"\s*").match(written.text, words_end)
        end = self._ends.match(written.text, space.end() if space else words_end)
        return words_end, end and end.end()

    def _write_marked(self, turns: Sequence[Turn], prompt: bool) -> _Written:
        """Render a dialogue, and check that it holds all words and images.

        The words of a turn are its text without the white space around it and around images, which
        a template may change.

        Raises:
            SampleError: `template_refuses` or `template_rewrites`.
        """
        text = self._write(turns, prompt=prompt)
        used = {*text, *self._source, *(letter for turn in turns for letter in turn.text)}
        mark = next(letter for letter in map(chr, range(0xF0000, 0x10FFFE)) if letter not in used)
        marked_turns, pieces = _mark_words(turns, mark)
        plain, places = _take_out(self._write(marked_turns, prompt=prompt, mark=mark), mark)
        words: dict[int, tuple[int, int]] = {}
        for name, (number, piece) in enumerate(pieces):
            stops = places.get(str(name), [])
            turn = f"turn {number} ({turns[number].role})"
            if len(stops) != 1:
                how = "leaves out the" if not stops else f"writes {len(stops)} times the"
                raise _rewrites(f"{how} words of {turn}: {piece[:_EXCERPT]!r}")
            start, stop = stops[0] - len(piece), stops[0]
            if plain[max(0, start) : stop] != piece:
                theirs, ours = _differing(plain[:stop], piece)
                raise _rewrites(f"writes {theirs!r} for {ours!r} in {turn}")
            words[number] = (words.get(number, (start, 0))[0], stop)
        if plain != text:
            first, second = _differing(plain, text)
            raise _rewrites(f"writes {first!r} or {second!r} for the same turns")
        wanted = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns)
        if (found := text.count(IMAGE_PLACEHOLDER)) != wanted:
            raise _rewrites(f"writes {found} {IMAGE_PLACEHOLDER} for {wanted} images")
        spans = zip(places.get("generation", []), places.get("endgeneration", []), strict=False)
        return _Written(text, words, list(spans))

    def _write(self, turns: Sequence[Turn], *, prompt: bool = False, mark: str = "") -> str:
        """Render turns. With a mark, also put it where `{% generation %}` begins and ends."""
        source = self._source
        if mark:
            tag = rf"{{%\1 if true %}}{mark}\2generation{mark}{{% endif \3%}}"
            source = _GENERATION.sub(tag, source)
        messages = [{"role": turn.role, "content": self._content(turn)} for turn in turns]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, chat_template=source, tokenize=False, add_generation_prompt=prompt
            )
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"template={TOKENIZER}: the chat template of {self._tokenizer.name_or_path} is not "
                f"valid, line {error.lineno}: {error.message}; correct it, or use one of our "
                "templates"
            ) from error
        except TemplateError as error:
            raise SampleError("template_refuses", str(error)) from error
        except Exception as error:  # a template is a program, and can raise whatever Python can
            detail = f"{type(error).__name__}: {error}"
            raise SampleError("template_refuses", detail) from error
        return str(text)

    def _content(self, turn: Turn) -> str | list[dict[str, str]]:
        """Return the content of a turn in the form that the template expects.

        A line break separates an image from a text in a string; parts need none.
        """
        if turn.role not in self._in_parts:
            return turn.text
        parts: list[dict[str, str]] = []
        for number, piece in enumerate(turn.text.split(IMAGE_PLACEHOLDER)):
            if number:
                parts.append({"type": "image"})
            if text := piece.strip("\n") if IMAGE_PLACEHOLDER in turn.text else piece:
                parts.append({"type": "text", "text": text})
        return parts or [{"type": "text", "text": ""}]

    def _drops_thinking(self) -> bool:
        """Return whether the template leaves out how an earlier answer was thought of."""
        try:
            text = self._write([*_THOUGHT, _PROBE[0]], prompt=True)
        except SampleError:
            return False
        return "thought" not in text

    def _count_probes(self, in_parts: frozenset[Role]) -> int:
        """Count which of an image, a question and an answer are rendered in this form."""
        self._in_parts = in_parts
        try:
            text = self._write(_PROBE).casefold()
        except SampleError:
            return 0
        is_image_there = text.count(IMAGE_PLACEHOLDER) == 1
        return is_image_there + ("question?" in text) + ("answer." in text)


def _mark_words(turns: Sequence[Turn], mark: str) -> tuple[list[Turn], list[tuple[int, str]]]:
    """Put a numbered mark after the words of each turn, and of each text between its images.

    Returns:
        The marked turns, and for each number the number of its turn and the words.
    """
    marked: list[Turn] = []
    pieces: list[tuple[int, str]] = []
    for number, turn in enumerate(turns):
        texts = turn.text.split(IMAGE_PLACEHOLDER)
        for place, text in enumerate(texts):
            if words := text.strip():
                stop = text.index(words) + len(words)
                texts[place] = f"{text[:stop]}{mark}{len(pieces)}{mark}{text[stop:]}"
                pieces.append((number, words))
        marked.append(Turn(turn.role, IMAGE_PLACEHOLDER.join(texts)))
    return marked, pieces


def _take_out(text: str, mark: str) -> tuple[str, dict[str, list[int]]]:
    """Remove the marks from a text.

    Returns:
        The text, and the places of each mark by its name.
    """
    plain, *rest = text.split(mark)
    places: dict[str, list[int]] = {}
    for name, following in zip(rest[::2], rest[1::2], strict=False):
        places.setdefault(name, []).append(len(plain))
        plain += following
    return plain, places


def _rewrites(what: str) -> SampleError:
    return SampleError("template_rewrites", f"the chat template {what}")


_make = lru_cache(maxsize=4)(OwnTemplate)


def _turn_ends(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str]:
    """Return a pattern of the special tokens that end a turn, through eos_token if that follows."""
    tokens = {token for token in tokenizer.get_added_vocab() if token.strip()}
    special = any_of(tokens - {IMAGE_PLACEHOLDER})
    eos = any_of([tokenizer.eos_token] if tokenizer.eos_token else [])
    return re.compile(rf"{eos}|(?:{special})(?:(?:\s|{special})*?{eos})?")


def _fix_date(source: str) -> str:
    """Define `strftime_now` to return a fixed date, if the template uses it."""
    if "strftime_now" not in source:
        return source
    said = "".join(f"|replace('%{code}', '{_TODAY:%{code}}')" for code in "aAbBdHIjmMpSyY")
    return f"{{%- macro strftime_now(form) -%}}{{{{ form{said} }}}}{{%- endmacro -%}}{source}"


def _differing(theirs: str, ours: str) -> tuple[str, str]:
    """Return excerpts of two texts with the same end, around the place where they last differ."""
    same = count_shared(theirs[::-1], ours[::-1])
    before = min(_EXCERPT, len(ours) - same)

    def around(text: str) -> str:
        place = len(text) - same
        return text[max(0, place - before) : place + _EXCERPT]

    return around(theirs), around(ours)
