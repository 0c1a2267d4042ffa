"""The figures of an article: label, caption, pictures, and the paragraphs that mention them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from llavamed.corpus.pmc.jats import (
    Element,
    ancestors,
    attribute,
    children,
    descendants,
    edges,
    local,
    text_of,
)
from llavamed.corpus.pmc.licence import article_licence
from llavamed.corpus.pmc.third_party import ThirdParty, author_names, third_party

_NOT_OURS = frozenset({"sub-article", "response"})
"""Reviews and translations; their figures are not the article's."""
_NOT_CAPTION = frozenset(
    {"label", "fig", "fig-group", "supplementary-material", "media", "permissions", "attrib"}
    | {"object-id"}
)
_NOT_MENTION = frozenset(
    {"fig", "fig-group", "table-wrap", "table-wrap-group", "boxed-text", "supplementary-material"}
    | {"media"}
)
"""Elements of a paragraph that are not part of its text."""
_NO_PARAGRAPH = (_NOT_MENTION - {"boxed-text"}) | {"fn", "ref"} | _NOT_OURS
"""Elements whose paragraphs are not of the article's text."""
_NO_PICTURE = frozenset(
    {"fig", "caption", "disp-formula", "inline-formula", "supplementary-material", "permissions"}
    | {"media"}
)
_DASH = r"[-\u2010-\u2015\u2212~\u301c\uff5e\u81f3]"
_FIRST_DASH, _LAST_DASH = re.compile(rf"\s*{_DASH}"), re.compile(rf"{_DASH}\s*$")
_RANGE = re.compile(
    rf"\s*(?:{_DASH}|\b(?:to|through|thru|until|bis|hasta|at\u00e9|a|\u00e0)\b)\s*"
    r"(?:fig(?:ur[ea])?s?\b\.?)?\s*",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?<!\d)\d{1,9}(?=\W*$)")
_FIGURE = re.compile(r"^(?:figures?|figs?|abb(?:ildung)?|figura)\b")
_Label: TypeAlias = tuple[str, int]


@dataclass(frozen=True)
class FigureGroup:
    """The group that a figure belongs to; its caption may be the only one."""

    id: str | None
    label: str | None
    caption: str | None


@dataclass(frozen=True)
class Permissions:
    """Rights that a figure states of its own."""

    copyright: str | None
    holder: str | None
    licence_url: str | None
    licence_text: str | None


@dataclass(frozen=True)
class Figure:
    """One figure of an article, as its XML has it."""

    id: str | None
    label: str | None
    caption: str | None
    graphics: list[list[str]]
    """A list a picture, in order: its address as written, or those of its alternatives."""
    group: FigureGroup | None
    parent: str | None
    """Id of the figure that contains this one."""
    permissions: list[Permissions]
    third_party: ThirdParty
    third_party_quote: str | None
    mentions: list[str] = field(default_factory=list)
    """The paragraphs that cite the figure or its group, in order, each once."""
    mentions_by_range: list[str] = field(default_factory=list)
    """Paragraphs that name it only by a range: "Figures 4-6" for figure 5."""


@dataclass(frozen=True)
class Article:
    """The facts about an article from its XML."""

    pmcid: str | None
    licence: str | None
    licence_url: str | None
    figures: list[Figure]


def read_article(article: Element) -> Article:
    """Read the figures of an article, in document order, with their mentions.

    Figures of sub-articles and responses are left out.
    """
    nodes = list(descendants(article, "fig", outside=_NOT_OURS))
    authors = author_names(article)
    figures = [_figure(node, authors) for node in nodes]
    _add_mentions(article, figures)
    code, address = article_licence(article)
    return Article(_pmcid(article), code, address, figures)


def _pmcid(article: Element) -> str | None:
    for front in children(article, "front"):
        for each in descendants(front, "article-id"):
            if attribute(each, "pub-id-type") in {"pmc", "pmcid"}:
                digits = re.sub(r"\D", "", text_of(each).partition(".")[0])
                return f"PMC{digits}" if digits else None
    return None


def _figure(node: Element, authors: frozenset[str]) -> Figure:
    caption = caption_of(node)
    group = _around(node, "fig-group")
    parent = _around(node, "fig")
    # A panel without a caption has that of the figure that it stands in, and its rights.
    around = [each for each in (group, parent if caption is None else None) if each is not None]
    notes = " ".join(filter(None, [caption, *map(caption_of, around)]))
    verdict, quote = third_party([node, *around], notes, authors)
    return Figure(
        id=attribute(node, "id"),
        label=_label(node),
        caption=caption,
        graphics=_graphics(node),
        group=None if group is None else _group(group),
        parent=None if parent is None else attribute(parent, "id"),
        permissions=[_permissions(each) for each in children(node, "permissions")],
        third_party=verdict,
        third_party_quote=quote,
    )


def _around(node: Element, name: str) -> Element | None:
    return next((above for above in node.iterancestors() if local(above) == name), None)


def _group(node: Element) -> FigureGroup:
    return FigureGroup(attribute(node, "id"), _label(node), caption_of(node))


def _label(node: Element) -> str | None:
    places = [node, *children(node, "caption")]  # some publishers put it into the caption
    labels = [label for place in places for label in children(place, "label")]
    return text_of(labels[0]) or None if labels else None


def caption_of(node: Element) -> str | None:
    """Return the title and paragraphs of an element's caption as one text, or None."""
    pieces = [
        text_of(piece, _NOT_CAPTION)
        for caption in children(node, "caption")
        for piece in caption
        if local(piece) and local(piece) not in _NOT_CAPTION
    ]
    loose = [
        text for caption in children(node, "caption") if (text := (caption.text or "").strip())
    ]
    return " ".join(filter(None, [*loose, *pieces])) or None


def _graphics(node: Element) -> list[list[str]]:
    pictures: dict[Element, list[str]] = {}
    for graphic in descendants(node, "graphic", outside=_NO_PICTURE):
        if address := attribute(graphic, "href"):
            pictures.setdefault(_choice(graphic), []).append(address)
    return list(pictures.values())


def _choice(graphic: Element) -> Element:
    """Return the outermost `alternatives` around a graphic, or itself where there is none."""
    found = graphic
    for above in graphic.iterancestors():
        if local(above) != "alternatives":
            break
        found = above
    return found


def _permissions(node: Element) -> Permissions:
    def first(name: str) -> str | None:
        found = children(node, name)
        return text_of(found[0]) or None if found else None

    licences = children(node, "license")
    return Permissions(
        copyright=first("copyright-statement"),
        holder=first("copyright-holder"),
        licence_url=attribute(licences[0], "href") if licences else None,
        licence_text=text_of(licences[0]) or None if licences else None,
    )


def _add_mentions(article: Element, figures: list[Figure]) -> None:
    """Give every figure the paragraphs that cite it."""
    by_id: dict[str, list[Figure]] = {}
    for figure in figures:
        for name in {figure.id, figure.group.id if figure.group else None} - {None}:
            by_id.setdefault(str(name), []).append(figure)
    by_label: dict[_Label, list[Figure]] = {}
    for figure in figures:
        if label := _series_of(figure):
            by_label.setdefault(label, []).append(figure)
    paragraphs: dict[Element, list[Element]] = {}
    for reference in descendants(article, "xref", outside=_NOT_OURS):
        if _is_citation(reference) and (paragraph := _paragraph(reference)) is not None:
            paragraphs.setdefault(paragraph, []).append(reference)
    for paragraph, references in paragraphs.items():
        text = text_of(paragraph, _NOT_MENTION)
        for figure in (each for found in references for each in _cited(found, by_id)):
            _append(figure.mentions, text)
        for first, last in _ranges(paragraph) if len(references) > 1 else ():
            for figure in _between(_labels(first, by_id), _labels(last, by_id), by_label):
                _append(figure.mentions_by_range, text)
    for figure in figures:
        figure.mentions_by_range[:] = [
            text for text in figure.mentions_by_range if text not in figure.mentions
        ]


def _is_citation(node: Element) -> bool:
    return local(node) == "xref" and attribute(node, "ref-type") == "fig"


def _cited(reference: Element, by_id: dict[str, list[Figure]]) -> Iterator[Figure]:
    for token in (attribute(reference, "rid") or "").split():
        yield from by_id.get(token, ())


def _append(texts: list[str], text: str) -> None:
    if text and text not in texts:
        texts.append(text)


def _paragraph(reference: Element) -> Element | None:
    """Return the nearest paragraph around a reference, if it is one of the article's own text."""
    for above in reference.iterancestors():
        if local(above) == "p":
            return None if _NO_PARAGRAPH.intersection(ancestors(above)) else above
        if local(above) in _NOT_MENTION or local(above) in _NO_PARAGRAPH:
            return None
    return None


def _ranges(paragraph: Element) -> Iterator[tuple[Element, Element]]:
    """Yield the references of a paragraph between which nothing stands but the sign of a range.

    The sign may belong to one of the two.
    """
    first: Element | None = None
    pieces: list[str] = []
    for event, node in edges(paragraph):
        if not _is_citation(node):
            pieces.append((node.text if event == "start" else node.tail) or "")
        elif event == "start":
            dash = _FIRST_DASH.match(text_of(node))
            if first is not None and _RANGE.fullmatch("".join(pieces) + (dash[0] if dash else "")):
                yield first, node
        else:
            dash = _LAST_DASH.search(text_of(node))
            first, pieces = node, [dash[0] if dash else "", node.tail or ""]


def _between(
    first: list[_Label], last: list[_Label], by_label: dict[_Label, list[Figure]]
) -> Iterator[Figure]:
    """Yield the figures between the last of one reference and the first of the next.

    The figures that they refer to give the ends, because their own text may name panels only.
    """
    if first and last and first[-1][0] == last[0][0]:
        for label, figures in by_label.items():
            if first[-1] < label < last[0]:
                yield from figures


def _labels(reference: Element, by_id: dict[str, list[Figure]]) -> list[_Label]:
    """Return series and number of the figures that a reference names, in their order."""
    labels = map(_series_of, _cited(reference, by_id))
    return sorted(label for label in labels if label is not None)


def _series_of(figure: Figure) -> _Label | None:
    """Return series and number of a figure, ("s", 4), by its label or by that of its group."""
    for label in (figure.label, figure.group.label if figure.group else None):
        if label and (number := _NUMBER.search(label)):
            return _series(label[: number.start()]), int(number[0])
    return None


def _series(words: str) -> str:
    return _FIGURE.sub("", words.strip().lower()).strip(" .")
