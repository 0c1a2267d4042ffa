"""Which licence an article states.

The bucket's metadata decide about an article's licence; what the XML says may only contradict them.
Licences are read where a publisher states them, never by searching the whole document: the waiver
for an article's data is not a licence for its figures, and a licence may quote a credit line.
"""

import re
from urllib.parse import unquote

from llavamed.corpus.pmc.jats import Element, attribute, children, descendants, local, text_of

_URL = re.compile(
    r"creativecommons\.org/(?:(?P<kind>licen[cs]es?|publicdomain)/(?P<terms>[a-z-]+)"
    r"|[\w/-]*public-domain/(?P<cc0>cc0))",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"https?://(?:[^\s<>]|(?<=-)\s)+")
"""An address in words, where a line may have been broken after a dash."""
_CONTENT_TYPES = {
    "cc0license": "CC0",
    "ccbylicense": "CC BY",
    "ccbysalicense": "CC BY-SA",
    "ccbyndlicense": "CC BY-ND",
    "ccbynclicense": "CC BY-NC",
    "ccbyncsalicense": "CC BY-NC-SA",
    "ccbyncndlicense": "CC BY-NC-ND",
}
_WAIVER = re.compile(
    r"\b(?:waiver|dedication)\b(?P<rest>(?:[^.(]|\([^()]*\)|\()*\.?)", re.IGNORECASE
)
"""A waiver, and the rest of its sentence, in which an address in brackets may hold points."""
_OF_DATA = re.compile(r"\W*(?:\w+\s+){0,2}data(?:sets?)?\b", re.IGNORECASE)
"""The start of a licence that is that of an article's data."""
_DATA = re.compile(r"\b(?:meta)?data\b", re.IGNORECASE)
_HEAD = re.compile(r"\bcreative commons\b|\bcc ?(?:by|zero|0|attribution)\b|\bcc(?=by\b)|^(?=by\b)")
_CC0 = re.compile(r"\bcc ?0\b|\bzero\b|\bpublic domain\b")
_BY = re.compile(
    r"\bcc ?by\b|\bby\b|\battribution\b|\batribui[cç][aã]o\b|\batribuci[oó]n\b|\breconocimiento\b"
    r"|\battribuzione\b|\bnamensnennung\b"
)
_NC = re.compile(
    r"\bn(?:on|[aã]o|o|icht|ot for) ?(?:co(?:mm|m)er[cz]ia[l\w]*|kommerziell)|\bnc\b"
    r"|\bpas d\W?utilisation commerciale"
)
_ND = re.compile(
    r"\b(?:no|non|sem|sin) ?(?:obras? ?|opere ?)?deriv|\bnd\b"
    r"|\bpas de modification|\bkeine bearbeitung"
)
_SA = re.compile(
    r"\bshare ?alike\b|\bcompartir ?igual|\bcompartilha ?igual|\bsa\b"
    r"|\bpartage dans les m[eê]mes conditions|\bcondividi allo stesso modo"
    r"|\bweitergabe unter gleichen bedingungen"
)
_JOINED = re.compile(r"\s*[\u002d\u2010-\u2015\u2212]\s*")
_DASHES = re.compile(r"[\s_()/\u002d\u2010-\u2015\u2212]+")
_GLUED = re.compile(r"\bcc ?by ?(nc)? ?(nd|sa)?\b")
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
"""Where a word begins in a name such as "creativeCommonsBy"."""
_REACH = 160
"""Characters after the name of Creative Commons in which its terms stand."""
_PUBLIC_DOMAIN = re.compile(
    r"\b(?<!not )(?:(?:in|under)\s+the|is)\s+public\s+domain\b|[;,]\s*public\s+domain\b",
    re.IGNORECASE,
)


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
    # Before its version 2.2, the schema has the licence next to the permissions, or without any.
    blocks = [*children(meta, "permissions"), meta]
    for block in blocks:
        # Some publishers place the reference next to the licence.
        loose = [each for each in block if local(each) == "license_ref"]
        licences = [
            each for each in children(block, "license") if not _OF_DATA.match(text_of(each))
        ]
        for each in [*licences, *loose]:
            code, address = _referred(each) if each in loose else stated_licence(each)
            if code:
                return code, address
    for statement in (each for block in [meta, *blocks[:-1]] for each in block):
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


def stated_licence(licence: Element) -> tuple[str | None, str | None]:
    """Return the code and the address of a `license` element, as `article_licence` does.

    Read are its reference, its address, its links, its words and its type, in this order.
    """
    for reference in descendants(licence, "license_ref"):
        code, address = _referred(reference)
        if code:
            return code, address
    target = attribute(licence, "href")
    if target is not None and code_of_url(target):
        return code_of_url(target), target
    words = _without_data_waiver(text_of(licence))
    links = [
        target
        for link in licence.iterdescendants()
        if local(link) in {"ext-link", "uri"}
        and text_of(link) in words
        and (target := attribute(link, "href"))
    ]
    for target in [*links, *_ADDRESS.findall(words)]:
        if code := code_of_url(target):
            return code, target.rstrip(").,;")
    kind = _CAPITAL.sub(" ", attribute(licence, "license-type") or "")
    return _code_of_words(words) or _code_of_words(kind), None


def _without_data_waiver(words: str) -> str:
    """Return the words of a licence without the sentences that waive rights in data only."""
    kept, start = [], 0
    for waiver in _WAIVER.finditer(words):
        if _DATA.search(waiver["rest"]):
            end = max(words.rfind(sign, start, waiver.start()) for sign in ".;")
            kept.append(words[start : end + 1])
            start = waiver.end()
    return " ".join([*kept, words[start:]])


def code_of_url(address: str) -> str | None:
    """Return the code of a Creative Commons address, or None."""
    found = _URL.search(_JOINED.sub("-", unquote(address)))  # "by%2Dnc" and "by- nc" are no "by"
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
    text = _GLUED.sub(r" cc by \1 \2 ", _DASHES.sub(" ", words.lower())).strip()
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
