"""Read the front matter of an article: journal, date, kind."""

import re
from dataclasses import dataclass

from llavamed.corpus.pmc.jats import Element, attribute, children, descendants, text_of

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


@dataclass(frozen=True)
class Front:
    """Facts about an article that it is selected by."""

    journal: str
    published: tuple[int, int, int]
    """Year, month and day of the first publication; 1 for a month or day that is not stated, and
    (0, 0, 0) where no year is."""
    article_type: str
    """The type in JATS's words, such as `research-article`; empty where it states none."""
    has_body: bool
    language: str
    """Code of the language that it states, such as `en`; empty where it states none."""


def read_front(article: Element) -> Front:
    """Read the facts about an article that it is selected by."""
    fronts = children(article, "front")
    dates = [
        found
        for front in fronts
        for node in descendants(front, "pub-date")
        if (found := _date(node))
    ]
    journals = [
        title
        for front in fronts
        for node in descendants(front, "journal-title")
        if (title := text_of(node))
    ]
    bodies = children(article, "body")
    return Front(
        journal=journals[0] if journals else "",
        published=min(dates, default=(0, 0, 0)),
        article_type=attribute(article, "article-type") or "",
        has_body=any(len(body) for body in bodies),
        language=(attribute(article, "lang") or "").strip().partition("-")[0].lower(),
    )


def _date(node: Element) -> tuple[int, int, int] | None:
    year, month, day = (
        "".join(text_of(each) for each in children(node, name)[:1])
        for name in ("year", "month", "day")
    )
    if not re.fullmatch(r"\d{4}", year):
        return None
    return int(year), _month(month), int(day) if re.fullmatch(r"\d{1,2}", day) else 1


def _month(text: str) -> int:
    if re.fullmatch(r"\d{1,2}", text):
        return int(text)
    name = text[:3].lower()
    return _MONTHS.index(name) + 1 if name in _MONTHS else 1
