"""Which licence an article states, and whether a figure belongs to somebody else.

The bucket's metadata decide about an article's licence; what the XML says may only contradict them.
Licences are read where a publisher states them, never by searching the whole document: the waiver
for an article's data is no licence of its figures, and a licence may quote a credit line.
"""

import re
from typing import Literal

from llavamed.corpus.pmc.jats import Element, attribute, children, descendants, local, text_of

ThirdParty = Literal["yes", "unclear", "no"]

_URL = re.compile(
    r"creativecommons\.org/(?:(?P<kind>licen[cs]es?|publicdomain)/(?P<terms>[a-z-]+)"
    r"|[\w/-]*public-domain/(?P<cc0>cc0))",
    re.IGNORECASE,
)
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
_HEAD = re.compile(r"\bcreative commons\b|\bcc ?(?:by|zero|0)\b|\bcc(?=by\b)|^(?=by\b)")
_CC0 = re.compile(r"\bcc ?0\b|\bzero\b|\bpublic domain\b")
_BY = re.compile(r"\bcc ?by\b|\bby\b|\battribution\b|\batribui[cç][aã]o\b|\batribuci[oó]n\b")
_NC = re.compile(r"\bn(?:on|[aã]o|o) ?co(?:mm|m)er[cz]ia[l\w]*|\bnc\b")
_ND = re.compile(r"\b(?:no|sem|sin) ?(?:obras? ?)?deriv|\bnd\b")
_SA = re.compile(r"\bshare ?alike\b|\bcompartir ?igual|\bcompartilha ?igual|\bsa\b")
_DASHES = re.compile(r"[\s_()/\u002d\u2010-\u2015\u2212]+")
_REACH = 160
"""Characters after the name of Creative Commons in which its terms stand."""
_PUBLIC_DOMAIN = re.compile(
    r"\b(?:in|lies\s+in|is\s+in|under)\s+the\s+public\s+domain\b", re.IGNORECASE
)

_SUBJECTS = (
    r"(?:patient|parent|guardian|famil|relative|participant|volunteer|subject|individual|proband)"
)
_YES = re.compile(
    r"\b(?:with|by|under)\s+(?:the\s+)?(?:kind\s+|written\s+|express\s+|copyright\s+)*permissions?\b"
    r"|\bpermissions?\s+(?:of|from|to|by)\b"
    r"|\bpermissions?\s+(?:(?:was|were|has\s+been|have\s+been)\s+)?(?:kindly\s+)?"
    r"(?:obtained|granted|given|received)\b"
    r"|\b(?:com|con|mit|avec)\s+(?:\w+\s+){0,2}(?:permiss[aã]o|permiso|permission|autori\w+|genehmigung)\b"
    r"|\bunder\s+licen[cs]e\s+from\b"
    r"|©|\(c\)\s*(?:19|20)\d\d|\bcopy(?:right|write)(?:ed)?[\s:,©]*(?:\(c\)\s*)?"
    r"(?:(?:19|20)\d\d|by\b|of\b|holder\b|(?-i:[A-Z]\w))|\ball\s+rights\s+reserved\b",
    re.IGNORECASE,
)
_OF_SUBJECTS = re.compile(
    r"[^.]*?\bpermissions?\s+(?:\w+\s+){0,2}?(?:of|from|by)\s+"
    rf"(?:(?:the|this|our|both|all|his|her|their)\s+)*{_SUBJECTS}",
    re.IGNORECASE,
)
"""A permission of the person who is shown, which says nothing of the picture's owner."""
_OF_AUTHORS = re.compile(
    r"(?:©|\(c\)|\bcopy(?:right|write)\b)[\s:,©]*(?:(?:19|20)\d\d)?[\s,]*(?:by\s+)?(?:the\s+)?"
    r"authors?\b",
    re.IGNORECASE,
)
_PICTURE = r"(?:image|photo|photograph|picture|figure|illustration|drawing|artwork|graphic)s?"
_CITATION = r"(?:\[?\(?\d|ref|[\[(]?[A-Z][\w-]+\s+(?:et\s+al|and\s+[A-Z]|&))"
_START = r"(?:^|(?<=[.;(\[])|(?<=[.;(\[]\s))"
_ADAPTED = re.compile(
    r"\b(?i:adapted|redrawn|re-drawn|redesigned|reprinted|republished)\s+"
    r"(?i:(?:and\s+\w+\s+)?(?:\w+ly\s+)?(?:from|after|by|with|under))\b"
    r"|\b(?i:modified|reproduced)\s+"
    r"(?i:(?:and\s+\w+\s+)?(?:\w+ly\s+)?(?:from|after|with\s+modifications?|under))\b"
    rf"|\b(?i:taken|obtained|derived)\s+(?i:from|after)\s+{_CITATION}"
    rf"|(?:{_START}|\b(?i:{_PICTURE})\s+)(?i:from)\s+(?:(?i:ref)|{_CITATION})"
    rf"|\b(?i:{_PICTURE}\s+(?:\w+\s+){{0,3}}(?:previously|originally)\s+published)\b"
    rf"|\b(?i:{_PICTURE}\s+(?:\w+\s+){{0,2}}published\s+(?:previously|before|elsewhere))\b",
)
_CREDIT = re.compile(
    r"\bcourtesy\s*(?::|of\b)|\b(?:image|photo|picture|figure)\s+credits?\b"
    rf"|{_START}{_PICTURE}\s*:\s*(?-i:[A-Z])"
    rf"|\b{_PICTURE}\s+(?:courtesy|source\s*:|by\s+(?-i:[A-Z])"
    r"|(?:(?:was|were)\s+)?(?:kindly\s+)?(?:provided|supplied|contributed)\s+by)"
    rf"|\bcredits?\s*:|\bphotographers?\s*:|{_START}source\s*:",
    re.IGNORECASE,
)
_OWN = re.compile(
    r"\bauthors?\b|\bown\b|\bour\b|\b(?:this|present)\s+(?:study|work|article)\b|\bautor(?:es|as?)?\b",
    re.IGNORECASE,
)
"""Words by which a source is the article itself."""
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
    code, address = _permitted(meta)
    for custom in descendants(meta, "custom-meta"):
        names, values = children(custom, "meta-name"), children(custom, "meta-value")
        if names and values and text_of(names[0]) == "pmc-license-ref":
            reference = _code_of_words(text_of(values[0]))
            return reference, address if reference == code else None
    return code, address


def _permitted(meta: Element) -> tuple[str | None, str | None]:
    """Read the permissions of an article."""
    permissions = children(meta, "permissions")
    for block in permissions:
        # Some publishers place the reference beside the licence.
        loose = [each for each in block if local(each) == "license_ref"]
        for each in [*children(block, "license"), *loose]:
            code, address = _referred(each) if each in loose else _stated(each)
            if code:
                return code, address
    # Older files state the copyright beside the permissions, or without any.
    for statement in (each for block in [meta, *permissions] for each in block):
        if local(statement) == "copyright-statement" and (
            code := _code_of_words(text_of(statement))
        ):
            return code, None
    return None, None


def _referred(reference: Element) -> tuple[str | None, str | None]:
    """Read a `license_ref` element."""
    address = text_of(reference)
    content_type = attribute(reference, "content-type") or ""
    return _CONTENT_TYPES.get(content_type) or code_of_url(address), address or None


def _stated(licence: Element) -> tuple[str | None, str | None]:
    """Read a `license` element: its reference, its address, its links, its type, its words."""
    for reference in descendants(licence, "license_ref"):
        code, address = _referred(reference)
        if code:
            return code, address
    target = attribute(licence, "href")
    if target is not None and code_of_url(target):
        return code_of_url(target), target
    words = _DATA_WAIVER.sub(" ", text_of(licence))
    links = [
        target
        for link in descendants(licence, "ext-link")
        if text_of(link) in words and (target := attribute(link, "href"))
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
    if found["cc0"]:
        return "CC0"
    kind, terms = found["kind"].lower(), found["terms"].lower().strip("-")
    if kind == "publicdomain":
        return "CC0" if terms == "zero" else "public domain" if terms == "mark" else None
    if terms == "publicdomain":
        return "public domain"
    words = set(terms.split("-"))
    return _code(words) if "by" in words and words <= {"by", "nc", "nd", "sa"} else None


def _code(terms: set[str]) -> str:
    """Return the code of a licence by its terms, whose order differs between versions."""
    last = "-ND" if "nd" in terms else "-SA" if "sa" in terms else ""
    return f"CC BY{'-NC' if 'nc' in terms else ''}{last}"


def _code_of_words(words: str) -> str | None:
    """Return the code of a licence that is named in words only."""
    if code := code_of_url(words):
        return code
    text = _DASHES.sub(" ", words.lower()).strip()
    if text in {"public domain", "publicdomain"}:
        return "public domain"
    head = _HEAD.search(text)
    if head is None:
        if text in {"0", "zero"}:
            return "CC0"
        return "public domain" if _PUBLIC_DOMAIN.search(words) else None
    terms = text[head.start() : head.start() + _REACH]
    # Terms stand in one sentence; the point of a version is none.
    terms = re.split(r"\.(?=\s)", terms)[0]
    by, cc0 = _BY.search(terms), _CC0.search(terms)
    if cc0 is not None and (by is None or cc0.start() < by.start()):
        return "CC0"
    if by is None:
        return None
    patterns = {"nc": _NC, "nd": _ND, "sa": _SA}
    return _code({term for term, pattern in patterns.items() if pattern.search(terms)})


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

    Read are the permissions, attribution, footnotes and caption of the figure and of its group.
    "yes" stands for a permission or a copyright, "unclear" for a credit, an adaptation or a
    courtesy. A copyright of the authors and a credit to one of them name nobody else.
    """
    around = [above for above in figure.iterancestors() if local(above) == "fig-group"][:1]
    for block in (each for node in [figure, *around] for each in children(node, "permissions")):
        statement = text_of(block)
        codes = [code for each in children(block, "license") if (code := _stated(each)[0])]
        is_own = _OF_AUTHORS.search(statement) is not None and _owner(statement) is None
        if statement and not is_own and not {"CC0", "CC BY"}.intersection(codes):
            return "yes", statement
    attributions = [
        text
        for node in [figure, *around]
        for each in children(node, "attrib")
        if (text := text_of(each))
    ]
    texts = [caption, *attributions, *(text_of(each) for each in descendants(figure, "fn"))]
    for text in texts:
        place = _owner(text)
        if place is not None:
            return "yes", _sentence(text, place)
    for text in texts:
        if found := _ADAPTED.search(text):
            return "unclear", _sentence(text, found.start())
        for credit in _CREDIT.finditer(text):
            sentence = _sentence(text, credit.start())
            if not _is_own(sentence, authors):
                return "unclear", sentence
    foreign = [text for text in attributions if not _is_own(text, authors)]
    return ("unclear", foreign[0]) if foreign else ("no", None)


def _owner(text: str) -> int | None:
    """Return the place of a permission or copyright of somebody else, None where there is none."""
    places = (stated.start() for stated in _YES.finditer(text))
    return next(
        (
            place
            for place in places
            if not (_OF_AUTHORS.match(text, place) or _OF_SUBJECTS.match(text, place))
        ),
        None,
    )


def _is_own(sentence: str, authors: frozenset[str]) -> bool:
    """Return whether a credit names the article itself, or one of its authors."""
    names = (name for name in authors if len(name) > 1)
    return _OWN.search(sentence) is not None or any(name in sentence for name in names)


def _sentence(text: str, place: int) -> str:
    """Return the sentence of a text around a place; the point of an initial ends none."""
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    start = max((end for end in ends if end <= place), default=0)
    stop = next((end for end in ends if end > place), len(text))
    return text[start:stop].strip()
