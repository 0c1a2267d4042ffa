"""Which licence an article states, and whether a figure belongs to somebody else.

The bucket's metadata decide about an article's licence; what the XML says may only contradict them.
Licences are read where a publisher states them, never by searching the whole document: the waiver
for an article's data is no licence of its figures, and a licence may quote a credit line.
"""

import re
from typing import Literal

from llavamed.corpus.pmc.jats import Element, attribute, children, descendants, local, text_of

ThirdParty = Literal["yes", "unclear", "no"]

_CODES = {"by": "CC BY", "by-sa": "CC BY-SA", "by-nd": "CC BY-ND", "by-nc": "CC BY-NC"}
_CODES |= {"by-nc-sa": "CC BY-NC-SA", "by-nc-nd": "CC BY-NC-ND"}
_URL = re.compile(r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)", re.IGNORECASE)
_CONTENT_TYPES = {
    "cc0license": "CC0",
    "ccbylicense": "CC BY",
    "ccbysalicense": "CC BY-SA",
    "ccbyndlicense": "CC BY-ND",
    "ccbynclicense": "CC BY-NC",
    "ccbyncsalicense": "CC BY-NC-SA",
    "ccbyncndlicense": "CC BY-NC-ND",
}
_DATA_WAIVER = re.compile(
    r"[^.]*\b(?:waiver|dedication)\b[^.]*(?:\([^)]*\))?[^.]*\bdata\b[^.]*(?:\.|$)", re.IGNORECASE
)
_WORDS = re.compile(
    r"(?:creative\s+commons|\bcc\b)[\s-]*(?P<terms>(?:\(?cc\)?[\s-]*)?"
    r"(?:attribution|by\b|zero|public\s+domain|0\b)[\w\s,()/.–-]*)",
    re.IGNORECASE,
)
_PUBLIC_DOMAIN = re.compile(
    r"\b(?:in|lies\s+in|is\s+in|under)\s+the\s+public\s+domain\b", re.IGNORECASE
)

_YES = re.compile(
    r"\b(?:with|by|under)\s+(?:the\s+)?(?:kind\s+|written\s+|express\s+)*permissions?\b"
    r"|\bpermission\s+(?:of|from|to)\b"
    r"|\bpermission\s+(?:was|has\s+been)\s+(?:obtained|granted)\b|\bunder\s+licen[cs]e\s+from\b"
    r"|©|\(c\)\s*(?:19|20)\d\d|\bcopyright\s+(?:©\s*)?(?:\(c\)\s*)?(?:19|20)\d\d"
    r"|\bcopyright(?:ed)?\s+(?:by|of|holder)\b|\ball\s+rights\s+reserved\b",
    re.IGNORECASE,
)
_PICTURE = r"(?:image|photo|photograph|picture|figure|illustration|drawing|artwork|graphic)s?"
_CITATION = r"(?:\[?\(?\d|ref|[\[(]?[A-Z][\w-]+\s+(?:et\s+al|and\s+[A-Z]|&))"
_ADAPTED = re.compile(
    r"\b(?i:adapted|modified|redrawn|re-drawn|redesigned|reproduced|reprinted|republished)\s+"
    r"(?i:(?:and\s+\w+\s+)?(?:\w+ly\s+)?(?:from|after|by|with))\b"
    rf"|\b(?i:taken|obtained|derived)\s+(?i:from|after)\s+{_CITATION}",
)
_CREDIT = re.compile(
    r"\bcourtesy\s*(?::|of\b)|\b(?:image|photo|picture|figure)\s+credits?\b"
    rf"|\b{_PICTURE}\s*(?::|courtesy|source\s*:|by\s+(?-i:[A-Z])|(?:(?:was|were)\s+)?(?:kindly\s+)?"
    r"(?:provided|supplied|contributed)\s+by)|\b(?:credits?|source)\s*:",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<!\b[A-Z])[.!?](?=\s+[A-Z(][a-z]{2}|\s*$)")


def article_licence(article: Element) -> tuple[str | None, str | None]:
    """Return the licence that an article states, as NLM's code, and its address as written.

    The code is one of the Creative Commons' (`CC0`, `CC BY`, ... `CC BY-NC-ND`), `public domain`,
    or None where none is stated that we know.
    """
    for front in children(article, "front", "front-stub"):
        for name in ("article-meta", "front-stub"):
            for meta in [front] if local(front) == name else children(front, name):
                return _licence_of(meta)
    return None, None


def _licence_of(meta: Element) -> tuple[str | None, str | None]:
    for custom in descendants(meta, "custom-meta"):
        names, values = children(custom, "meta-name"), children(custom, "meta-value")
        if names and values and text_of(names[0]) == "pmc-license-ref":
            return _code_of_words(text_of(values[0])), None
    permissions = children(meta, "permissions")
    licences = [each for block in permissions for each in children(block, "license")]
    for licence in licences:
        code, address = _stated(licence)
        if code:
            return code, address
    # Older files state the copyright beside the permissions, or without any.
    for statement in (each for block in [meta, *permissions] for each in block):
        if local(statement) == "copyright-statement" and (
            code := _code_of_words(text_of(statement))
        ):
            return code, None
    return None, None


def _stated(licence: Element) -> tuple[str | None, str | None]:
    """Read a `license` element: its reference, its address, its links, its type, its words."""
    for reference in descendants(licence, "license_ref"):
        address = text_of(reference)
        content_type = attribute(reference, "content-type") or ""
        code = _CONTENT_TYPES.get(content_type) or code_of_url(address)
        if code:
            return code, address or None
    target = attribute(licence, "href")
    if target is not None and code_of_url(target):
        return code_of_url(target), target
    words = _DATA_WAIVER.sub(" ", text_of(licence))
    links = [
        target for link in descendants(licence, "ext-link") if (target := attribute(link, "href"))
    ]
    for target in [*links, *re.findall(r"https?://\S+", words)]:
        if code := code_of_url(target):
            return code, target.rstrip(").,;")
    kind = attribute(licence, "license-type") or ""
    return _code_of_words(words) or _code_of_words(kind.replace("-", " ")), None


def code_of_url(address: str) -> str | None:
    """Return the code of a Creative Commons address, or None."""
    found = _URL.search(address)
    if not found:
        return None
    kind, terms = found[1].lower(), found[2].lower().strip("-")
    if kind == "publicdomain":
        return "CC0" if terms == "zero" else "public domain" if terms == "mark" else None
    return _CODES.get(terms)


def _code_of_words(words: str) -> str | None:
    """Return the code of a licence that is named in words only."""
    if code := code_of_url(words):
        return code
    text = words.replace("‐", "-").replace("–", "-")
    exact = re.sub(r"[\s_-]+", "-", text.strip().lower()).removeprefix("cc-")
    if exact in _CODES:
        return _CODES[exact]
    if exact in {"cc0", "0", "zero"}:
        return "CC0"
    if exact in {"public-domain", "publicdomain"}:
        return "public domain"
    found = _WORDS.search(text)
    if not found:
        return "public domain" if _PUBLIC_DOMAIN.search(text) else None
    terms = found["terms"].lower()
    head = terms[:120]
    if re.search(r"zero|\b0\b|public\s+domain", head[:25]):
        return "CC0"
    code = "CC BY"
    if re.search(r"non[\s-]*commercial|\bnc\b", head):
        code += "-NC"
    if re.search(r"no[\s-]*deriv|\bnd\b", head):
        return code + "-ND"
    return code + ("-SA" if re.search(r"share[\s-]*alike|\bsa\b", head) else "")


def author_names(article: Element) -> frozenset[str]:
    """Return the surnames of an article's authors."""
    return frozenset(
        text_of(surname)
        for front in children(article, "front")
        for group in descendants(front, "contrib-group")
        for surname in descendants(group, "surname")
    )


def third_party(
    figure: Element, caption: str, authors: frozenset[str] = frozenset()
) -> tuple[ThirdParty, str | None]:
    """Say whether a figure names an owner outside the article, and quote where.

    Read are the figure's own permissions, attribution, footnotes and caption. "yes" stands for a
    permission or a copyright, "unclear" for a credit, an adaptation or a courtesy. A credit to one
    of the authors names nobody else.
    """
    for block in children(figure, "permissions"):
        statement = text_of(block)
        codes = [code for each in children(block, "license") if (code := _stated(each)[0])]
        if statement and not {"CC0", "CC BY"}.intersection(codes):
            return "yes", statement
    attributions = [text_of(each) for each in children(figure, "attrib")]
    texts = [caption, *attributions, *(text_of(each) for each in descendants(figure, "fn"))]
    for text in texts:
        if found := _YES.search(text):
            return "yes", _sentence(text, found.start())
    for text in texts:
        if found := _ADAPTED.search(text):
            return "unclear", _sentence(text, found.start())
        for credit in _CREDIT.finditer(text):
            sentence = _sentence(text, credit.start())
            if not any(name in sentence for name in authors if len(name) > 1):
                return "unclear", sentence
    return ("unclear", attributions[0]) if any(attributions) else ("no", None)


def _sentence(text: str, place: int) -> str:
    """Return the sentence of a text around a place; the point of an initial ends none."""
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    start = max((end for end in ends if end <= place), default=0)
    stop = next((end for end in ends if end > place), len(text))
    return text[start:stop].strip()
