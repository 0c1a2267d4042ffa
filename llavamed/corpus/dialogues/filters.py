"""Rules that say which written exchanges become training data; they are data, `filters.yaml`.

A dialogue that a model wrote is kept as it came. A verdict on it is a pure function of the turns,
the notes they were written from and the rules, so rules change and run again for nothing. Every
rule looks at every exchange, whatever the others found, so its count does not depend on its place.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from llavamed.corpus.dialogues.prompt import Speaker, SpokenTurn
from llavamed.corpus.dialogues.repeats import Repeats
from llavamed.corpus.shipped import load_shipped
from llavamed.data.prepared.content import fold
from llavamed.storage.fingerprint import fingerprint

_NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Exchange:
    """A question and its answer."""

    question: str
    answer: str

    def spoken(self, speakers: Sequence[Speaker]) -> Iterator[str]:
        """Yield the texts of these speakers."""
        if "user" in speakers:
            yield self.question
        if "assistant" in speakers:
            yield self.answer


@dataclass(frozen=True)
class RuleMatch:
    """What a rule found: in which exchange (None: in the whole dialogue), and its words."""

    rule: str
    exchange: int | None
    found: str


@dataclass(frozen=True)
class FilterResult:
    """The exchanges that passed, none where the dialogue did not, and all that was found."""

    kept: tuple[Exchange, ...]
    findings: tuple[RuleMatch, ...]


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    drops: Literal["exchange", "dialogue"]


class Phrases(_Rule):
    """A text holds one of the expressions."""

    kind: Literal["phrases"]
    speakers: tuple[Speaker, ...]
    expressions: tuple[str, ...]

    @field_validator("expressions")
    @classmethod
    def _compile(cls, expressions: tuple[str, ...]) -> tuple[str, ...]:
        for each in expressions:
            try:
                re.compile(each)
            except re.error as error:
                raise ValueError(f"{each!r} is not a regular expression: {error}") from error
        return expressions

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        return re.compile(rf"(?<!\w)(?:{'|'.join(self.expressions)})(?!\w)", re.IGNORECASE)

    def find(self, exchange: Exchange, notes: str) -> str | None:
        """Return the words that are found, or None."""
        for text in exchange.spoken(self.speakers):
            if found := self._expression.search(text):
                return found[0]
        return None


class Numbers(_Rule):
    """An answer holds a number that the notes do not."""

    kind: Literal["numbers"]
    ignored: tuple[str, ...] = ()

    def find(self, exchange: Exchange, notes: str) -> str | None:
        """Return the first number without a ground, or None."""
        known = set(map(_value, _NUMBER.findall(notes)))
        text = exchange.answer
        for each in self.ignored:
            text = text.replace(each, " ")
        return next((each for each in _NUMBER.findall(text) if _value(each) not in known), None)


class Length(_Rule):
    """A text has too few or too many characters."""

    kind: Literal["length"]
    speakers: tuple[Speaker, ...]
    at_least: int = 0
    at_most: int | None = None

    def find(self, exchange: Exchange, notes: str) -> str | None:
        """Return the number of characters of a text beyond the bounds, or None."""
        for text in exchange.spoken(self.speakers):
            length = len(text.strip())
            if length < self.at_least or (self.at_most is not None and length > self.at_most):
                return str(length)
        return None


class Leak(_Rule):
    """An answer of at least this many words is part of its own question."""

    kind: Literal["leak"]
    words: Annotated[int, Field(ge=1)]

    def find(self, exchange: Exchange, notes: str) -> str | None:
        """Return the answer where its question holds it, or None."""
        answer = fold(exchange.answer)
        is_leak = len(answer.split()) >= self.words and f" {answer} " in (
            f" {fold(exchange.question)} "
        )
        return answer if is_leak else None


class Order(_Rule):
    """User and assistant do not take turns, or the user does not begin, or speaks last."""

    kind: Literal["order"]


class Count(_Rule):
    """Too few or too many questions are left."""

    kind: Literal["count"]
    at_least: int = 1
    at_most: int


class Score(_Rule):
    """The checking model gave a lower score."""

    kind: Literal["score"]
    score: str
    at_least: float


class Repetition(_Rule):
    """The dialogue is a near-duplicate of an earlier one."""

    kind: Literal["repeats"]
    similarity: Annotated[float, Field(gt=0, le=1)]


Rule = Annotated[
    Phrases | Numbers | Length | Leak | Order | Count | Score | Repetition,
    Field(discriminator="kind"),
]


class Filters(BaseModel):
    """All rules, in order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    rules: tuple[Rule, ...]

    @property
    def hash(self) -> str:
        """Return the hash of the rules, which a verdict names."""
        return fingerprint(self.model_dump(mode="json"))

    def judge(
        self,
        turns: Sequence[SpokenTurn],
        notes: str,
        *,
        name: str,
        scores: Mapping[str, float] | None,
        earlier: Repeats,
    ) -> FilterResult:
        """Judge one dialogue.

        Args:
            turns: What the model wrote.
            notes: What it wrote it from.
            name: Id of the dialogue, for later ones that repeat it.
            scores: What the checking model gave it, None where none was asked.
            earlier: The dialogues that were kept so far, to which this one is added if it is.
        """
        exchanges = pair(turns)
        if exchanges is None:
            speakers = ", ".join(turn.speaker for turn in turns)
            orders = [each for each in self.rules if isinstance(each, Order)]
            name_of_rule = orders[0].name if orders else "turn_order"
            return FilterResult((), (RuleMatch(name_of_rule, None, speakers),))
        findings: list[RuleMatch] = []
        dropped: set[int] = set()
        is_dropped = False
        for rule in self.rules:
            left = [each for number, each in enumerate(exchanges) if number not in dropped]
            for place, found in _found(rule, exchanges, left, notes, scores):
                findings.append(RuleMatch(rule.name, place, found))
                is_dropped |= rule.drops == "dialogue"
                if place is not None:
                    dropped.add(place)
        kept = tuple(each for number, each in enumerate(exchanges) if number not in dropped)
        if not is_dropped and kept:
            for rule in self.rules:
                if isinstance(rule, Repetition):
                    text = " ".join(f"{each.question} {each.answer}" for each in kept)
                    if other := earlier.add(name, text, rule.similarity):
                        findings.append(RuleMatch(rule.name, None, other))
                        is_dropped |= rule.drops == "dialogue"
        return FilterResult(() if is_dropped else kept, tuple(findings))


def pair(turns: Sequence[SpokenTurn]) -> list[Exchange] | None:
    """Return the exchanges of turns that alternate, None where they do not."""
    wanted = ["user", "assistant"] * (len(turns) // 2)
    if [turn.speaker for turn in turns] != wanted or not turns:
        return None
    texts = [turn.text for turn in turns]
    return [Exchange(*both) for both in zip(texts[::2], texts[1::2], strict=True)]


def load_filters(path: str | None) -> Filters:
    """Read the rules of a file at any URI, or those of the package.

    Raises:
        ConfigError: The file cannot be read or breaks the form of rules.
    """
    return load_shipped(
        Filters,
        path,
        package="llavamed.corpus.dialogues",
        key="filters",
        verdict="are not rules",
        parts="version and rules",
    )


def _found(
    rule: Rule,
    exchanges: Sequence[Exchange],
    left: Sequence[Exchange],
    notes: str,
    scores: Mapping[str, float] | None,
) -> Iterator[tuple[int | None, str]]:
    """Yield the places at which a rule is broken, each with what was found there."""
    if isinstance(rule, Phrases | Numbers | Length | Leak):
        for number, exchange in enumerate(exchanges):
            if (found := rule.find(exchange, notes)) is not None:
                yield number, found
    elif isinstance(rule, Count):
        if not rule.at_least <= len(left) <= rule.at_most:
            yield None, str(len(left))
    elif isinstance(rule, Score):
        score = None if scores is None else scores.get(rule.score)
        if score is not None and score < rule.at_least:
            yield None, f"{score:g}"


def _value(number: str) -> Decimal:
    """Return the value of a number as written; 1,200 and 1200 and 1200.0 are one."""
    digits = re.sub(r",(?=\d{3}(?!\d))", "", number).replace(",", ".")
    whole, point, rest = digits.partition(".")
    return Decimal(whole + point + rest.replace(".", "")).normalize()
