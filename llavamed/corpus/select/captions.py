"""Read what a caption says about its picture: panels, modality, and whether it shows a person.

The rules are words, in `lexicon.yaml`, and marks of panels: "(A)", "(B, C)", "a Text b Text",
"left panel". They need no model, and decide alone where none is configured.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from pydantic import BaseModel, ConfigDict

from llavamed.corpus.shipped import load_shipped
from llavamed.errors import ConfigError
from llavamed.storage.fingerprint import fingerprint

STRONG, WEAK = 1.0, 0.5
MARGIN = 0.3
"""A modality decides if no other kind of picture scores as much within this."""

_DASH = r"[-\u2010-\u2015\u2212]"
_BETWEEN = rf"(?:\s*(?:,|;|/|{_DASH})\s*|\s+(?:and|to|&)\s+)"
_MORE = "{0,23}"
"""How many letters may follow another: twice as many as there are, so that time is bounded."""
_LETTERS = rf"[A-La-l](?:{_BETWEEN}[A-La-l]){_MORE}"
_MARKS = (
    # "(A)", "(B, C)", "<A>", and letters that end a longer parenthesis: "(H&E; x 100; C,D)"
    re.compile(rf"[(\[<;,:]\s*(?P<letters>{_LETTERS})\s*[)\]>]"),
    # "(A)-(D)"
    re.compile(rf"[(\[](?P<letters>[A-La-l][)\]]\s*{_DASH}\s*[(\[][A-La-l])[)\]]"),
    # "(A: a text", "(A, arrow)"
    re.compile(r"[(\[](?P<letters>[A-La-l])\s*[:,;.]\s"),
    # "A) text", "A. Text", "A: text", "1A: text", "A - text", "A, Text"
    re.compile(
        rf"(?<!\S)\d{{0,2}}(?P<letters>[A-La-l])\s?"
        rf"(?:[.:)]\s*(?=\S)|(?<=\s){_DASH}\s+(?=\w)|,\s*(?=[A-Z]))"
    ),
    # "a Text", "2a Text", "a\u2013c Text": letters that the publisher prints bold
    re.compile(
        rf"(?<!\S)\d{{0,2}}(?P<letters>[a-l](?:\s*(?:,|and|{_DASH})\s*[a-l]){_MORE})\s+(?=[A-Z])"
    ),
    # "A Text. B Text", likewise, but "A" may be a word
    re.compile(rf"(?:^|(?<=[.;]\s))(?P<letters>[A-L](?:{_BETWEEN}[A-L]){_MORE})\s+(?=[A-Z])"),
    # "Text. b text in lower case", "a, text; b, text", likewise
    re.compile(r"(?:^|[.;)\]]\s+|,\s+(?!a))(?P<letters>[a-l])(?:\s+(?=[a-z])|,\s+(?=[a-z]{2}))"),
    # "panel A", "Figures A-C"
    re.compile(rf"\b(?:panels?|figures)\s+(?P<letters>{_LETTERS})\b", re.IGNORECASE),
)
_PLACE = r"(?:left|right|upper|lower|top|bottom)"
_PLACES = re.compile(
    rf"(?<!\w)(?:multi-?panel|(?:{_PLACE}|middle|cent(?:er|re)|first|second)\s+"
    r"(?:panels?|images?|rows?|columns?|pictures?|figures?|photos?|photographs?)"
    rf"|panels|\({_PLACE}\)|{_PLACE}:)(?!\w)",
    re.IGNORECASE,
)
_ROMAN = re.compile(r"(?<!\w)(i|ii|iii|iv)\)")
_ABBREVIATIONS = re.compile(
    r"\b([A-Z])[A-Za-z0-9-]{1,8}\s?[,=:]\s?(?i:\1)[^.;,]{3,60}(?=[.;,]|$)[.;,]?"
)
"""Definitions such as "CT, computed tomography;", which say nothing of the picture."""


class PictureKind(BaseModel):
    """A kind of picture, its words and its description."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str
    strong: tuple[str, ...]
    weak: tuple[str, ...] = ()

    @cached_property
    def _expressions(self) -> list[tuple[float, re.Pattern[str]]]:
        both = ((STRONG, self.strong), (WEAK, self.weak))
        return [(score, _whole_words(words)) for score, words in both if words]

    def score(self, text: str) -> float:
        """Return the score of the strongest word in a text, 0 without any."""
        return max((score for score, words in self._expressions if words.search(text)), default=0.0)


class Lexicon(BaseModel):
    """The words for kinds of pictures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    modalities: dict[str, PictureKind]
    others: dict[str, PictureKind]
    faces: tuple[str, ...]

    @property
    def hash(self) -> str:
        """Return the hash of the words."""
        return fingerprint(self.model_dump(mode="json"))

    def check(self, modalities: tuple[str, ...]) -> None:
        """Raise ConfigError unless every name is a modality of the lexicon."""
        for name in modalities:
            if name not in self.modalities:
                known = ", ".join(self.modalities)
                raise ConfigError(
                    f"corpus.select.modalities: {name} is not in the lexicon; use some of: {known}"
                )

    @cached_property
    def _faces(self) -> re.Pattern[str]:
        return _whole_words(self.faces)

    def scores(self, caption: str) -> dict[str, float]:
        """Return the kinds of pictures that a caption names, each with its score."""
        text = _ABBREVIATIONS.sub(" ", caption)
        kinds = {**self.modalities, **self.others}
        return {name: score for name, kind in kinds.items() if (score := kind.score(text))}

    def face(self, caption: str) -> str | None:
        """Return the words that speak of a person in the picture, or None."""
        found = self._faces.search(caption)
        return found[0] if found else None


@dataclass(frozen=True)
class Modality:
    """The kind of picture according to its caption, or none and the reason."""

    name: str | None
    score: float
    reason: str = ""
    detail: str = ""


def decide(scores: dict[str, float], wanted: tuple[str, ...], least: float) -> Modality:
    """Return the modality that scores of kinds give a picture.

    Args:
        scores: By kind, modalities and others.
        wanted: The modalities to keep.
        least: Smallest score that decides.
    """
    ranked = sorted(scores.items(), key=lambda each: (-each[1], each[0]))
    if not ranked or ranked[0][1] < least:
        found = ", ".join(f"{name} {score:g}" for name, score in ranked) or "no word for one"
        return Modality(None, ranked[0][1] if ranked else 0.0, "no_modality", found)
    rivals = [name for name, score in ranked if ranked[0][1] - score < MARGIN]
    if len(rivals) > 1:
        return Modality(None, ranked[0][1], "modality_conflict", ", ".join(rivals))
    if rivals[0] not in wanted:
        return Modality(None, ranked[0][1], "other_modality", rivals[0])
    return Modality(rivals[0], ranked[0][1])


def panel_cue(caption: str) -> str | None:
    """Return the words by which a caption speaks of several panels, or None for one picture.

    Letters count if two or more are named and the first of the alphabet is among them.
    """
    for size in (str.islower, str.isupper):
        named = {letter for _, letters in _marks(caption) for letter in letters if size(letter)}
        if len(named) > 1 and named & {"a", "A"} and named & {"b", "B"}:
            return ", ".join(sorted(named))
    if found := _PLACES.search(caption):
        return found[0]
    roman = set(_ROMAN.findall(caption.lower()))
    return ", ".join(sorted(roman)) if {"i", "ii"} <= roman else None


def split_caption(caption: str) -> dict[str, str]:
    """Return the part of a caption that belongs to each panel, by letter in upper case.

    The letters must come before their texts, as in "Liver. (A) CT. (B) MRI.". What stands before
    the first letter belongs to all. A caption of another form gives nothing.
    """
    marks: list[tuple[re.Match[str], list[str]]] = []
    for found, named in sorted(_marks(caption), key=lambda mark: (mark[0].start(), -len(mark[1]))):
        if not marks or found.start() >= marks[-1][0].end():
            marks.append((found, sorted(set(named.upper()))))
    letters = [letter for _, named in marks for letter in named]
    if letters != [chr(ord("A") + number) for number in range(len(letters))] or len(letters) < 2:
        return {}
    shared = caption[: marks[0][0].start()].strip()
    if shared and not shared.endswith((".", ":", ";")):
        return {}  # the letters may follow their texts
    ends = [each.start() for each, _ in marks[1:]] + [len(caption)]
    return {
        letter: " ".join([shared, caption[found.end() : end].strip(" ,;")]).strip()
        for (found, named), end in zip(marks, ends, strict=True)
        for letter in named
    }


def load_lexicon(path: str | None) -> Lexicon:
    """Read the words of a file at any URI, or those of the package.

    Raises:
        ConfigError: The file cannot be read or is not a lexicon.
    """
    return load_shipped(
        Lexicon,
        path,
        package="llavamed.corpus.select",
        key="lexicon",
        verdict="is not a lexicon",
        parts="version, modalities, others and faces",
    )


def _marks(caption: str) -> Iterator[tuple[re.Match[str], str]]:
    """Yield each mark of panels, and the letters that it names, with those of a range."""
    for pattern in _MARKS:
        for found in pattern.finditer(caption):
            yield found, _letters(found["letters"])


def _letters(text: str) -> str:
    """Return the letters of "A", "A,C" or "A-D" in a row."""
    text = re.sub(r"\band\b|[\s,;/&()\[\]]", "", text)
    text = re.sub(r"(?<=.)to(?=.)", "-", text)

    def between(found: re.Match[str]) -> str:
        return "".join(map(chr, range(ord(found[1]), ord(found[2]) + 1)))

    return re.sub(rf"(\w){_DASH}(\w)", between, text)


def _whole_words(expressions: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{'|'.join(expressions)})(?!\w)", re.IGNORECASE)
