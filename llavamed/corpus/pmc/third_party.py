"""Whether a figure belongs to somebody else than the authors of its article.

An article under an open licence may show figures of others. They are recognized by what is written
next to the figure itself; the article's own licence may quote a credit line that is none.
"""

import bisect
import re
from collections.abc import Iterable, Iterator
from typing import Literal

from llavamed.corpus.pmc.jats import Element, children, descendants, text_of
from llavamed.corpus.pmc.licence import stated_licence

ThirdParty = Literal["yes", "unclear", "no"]

_SUBJECTS = (
    r"(?:patient|parent|mother|father|guardian|famil|relative|participant|volunteer|subject"
    r"|individual|proband|next\s+of\s+kin)"
)
_YES = re.compile(
    r"\b(?:with|by|under)\s+(?:the\s+)?(?:kind\s+|written\s+|express\s+|copyright\s+)*"
    r"permissions?(?![a-z])"
    rf"|\b(?:with|by)\s+(?:the\s+)?(?!{_SUBJECTS})\w+['\u2019]s?\s+permissions?(?![a-z])"
    r"|\bpermissions?\s+(?:of|from|to|by)\b"
    r"|\bpermissions?\s+(?:\w+\s+){0,4}?(?:obtained|granted|given|received)\b"
    r"|\bpermissions?\s+(?:\w+\s+){5,9}?(?:obtained|granted|given|received)\s+(?:from|by)\b"
    r"|\b(?:com|con|mit|avec)\s+(?:[\w'\u2019]+\s+){0,2}(?:permiss[a\u00e3]o|permiso|permission|autori\w+|genehmigung)\b"
    r"|\bunder\s+(?:an?\s+|the\s+)?licen[cs]e\s+(?:agreement\s+)?from\b"
    r"|\blicen[cs]e\s+(?:number|no\.|#)"
    r"|\u00a9|\(c\)\s*(?:19|20)\d\d|\bcopy(?:right|write)(?:ed)?(?:\s+notice)?"
    r"[\s:,\u00a9]*(?:\(c\)\s*|\()?(?:(?:19|20)\d\d|by\b|of\b|holder\b|(?-i:[A-Z]\w))|\ball\s+rights\s+reserved\b",
    re.IGNORECASE,
)
_OF_SUBJECTS = re.compile(
    r"[^.]{0,200}?\bpermissions?\s+(?:\w+\s+){0,6}?(?:of|from|by)\s+"
    rf"(?:(?:the|this|our|both|all|his|her|their)\s+)*{_SUBJECTS}",
    re.IGNORECASE,
)
"""A permission of the person who is shown, which says nothing of the picture's owner."""
_CONSENT = re.compile(
    r"\b(?:consent|ethic|review\s+board)"
    r"|\bpermissions?\s+(?:\w+\s+){0,4}?(?:to\s+publish|(?:for|of)\s+(?:the\s+)?publication)\b"
    r"(?!.*\b(?:from|by)\s+(?:the\s+)?(?:(?-i:[A-Z])|publisher|copyright|journal))"
    r"|\bdata\s+(?:\w+\s+){0,2}(?:used|obtained|collected|accessed|provided)\s+(?:with|by)\b",
    re.IGNORECASE,
)
"""A permission for something else than the picture, or to publish it for the first time."""
_COPYRIGHT = (
    r"(?i:(?:\u00a9|\(c\)|\bcopy(?:right|write)\b)[\s:,\u00a9]*(?:(?:19|20)\d\d)?[\s,]*(?:by\s+)?"
    r"(?:the\s+)?)(?:[A-Z][\w.]*\s+){0,2}"
)
"""A copyright up to the name of who has it."""
_PICTURE = (
    r"(?:image|photo|photograph|picture|figure|illustration|drawing|art(?:work)?|graphic|cartoon|sketch"
    r"|painting|engraving)s?"
)
_SHOWN = (
    rf"(?:{_PICTURE}"
    r"|(?:(?:micro|radio)graph|map|diagram|scheme|cartoon|sketch|slide|scan|fig)s?\.?)"
)
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\s+(?:\d|to\b)"
_CITATION = (
    r"(?:[\[(]\d{1,3}(?!\d)|\d{1,3}(?=[\].,;)]|$)|(?i:refs?)(?![a-z])|(?i:references?)\b"
    r"|(?i:https?:|www\.|the\s+(?:official\s+)?(?:web|home)\s?(?:site|page))"
    rf"|[\[(]?(?!{_MONTH})[A-Z][\w-]+,?\s+(?:et\s+al|and\s+[A-Z]|&|\(?(?:19|20)\d\d|[A-Z]{{1,2}}[,.]))"
)
"""Another work: its number in the list of references, its address, or the names of its authors."""
_LIBRARY = (
    r"(?:wiki(?:media|pedia)|human\s+protein\s+atlas|servier|smart\.servier|flickr|shutterstock"
    r"|istock|getty|pixabay|unsplash|google\s+(?:earth|maps|images)|openstreetmap|nasa|radiopaedia|medpix"
    r"|adobe\s+stock|dreamstime|123rf|depositphotos|vecteezy|freepik|flaticon|noun\s+project|phylopic"
    r"|bioicons|scidraw|netter|science\s+photo\s+library|public\s+health\s+image\s+library"
    r"|cancer\s+imaging\s+archive|isic\s+archive|allen\s+brain)\b"
)
_START = r"(?:^|(?<=[.;(\[])|(?<=[.;(\[]\s))"
_FROM = r"(?i:from|after)(?![a-z])\s*"
_NAME = r"[A-Z\u00c0-\u00de](?:\.|[a-z\u00df-\u024f]+)"
_PERSON = rf"(?-i:(?:Drs?\.?\s+|Prof\.?\s+)?{_NAME}(?:(?<=\.)|[\s-]+)\s*(?:[A-Z]\.[\s-]*)*{_NAME})"
_ORIGIN = (
    r"(?i:from\b(?!\s+(?:the\s+)?(?:baseline|onset|days?|weeks?|months?|years?)\b)"
    r"(?!\s+(?-i:(?!ref|fig|according)[a-z\d]\S*\s+){1,4}to\s+(?:the\b|an?\b|\d))"
    r"|(?:after|based\s+on)\b(?!\s+(?-i:(?!(?:an?|the|our|data|ref\w*|fig\w*)\b)[a-z]))"
    r"|with\s+(?:modifications?|approval)\b|under\s+(?:\w+\s+){0,4}(?:licen|cc\b|creative))"
)
"""Where a picture comes from: not a time, an event, or one end of "from 3 cm to 1 cm"."""
_ADAPTED = re.compile(
    r"\b(?i:adapted|redrawn|re-drawn|redesigned|reprinted|republished|reused|replotted|modified"
    r"|reproduced|simplified),?\s+(?i:(?:(?:and|in)\s+\w+\s+)?(?:\w+ly\s+)?(?:by\s+the\s+authors?\s+)?)"
    rf"{_ORIGIN}"
    r"|\b(?i:adaptad[oa]s?|adapt\u00e9e?s?|modificad[oa]s?|modifi\u00e9e?s?)\s+(?i:d[eoa'\u2019])"
    rf"|\b(?i:tomad[oa]s?|extra[\u00edi]d[oa]s?|retirad[oa]s?|tir\u00e9e?s?|tratt[oaie]"
    r"|d['\u2019]apr\u00e8s|aus)"
    rf"\s+(?:(?i:d[eoai]l?)\s+)?{_CITATION}"
    r"|\b(?i:modifiziert|ver\u00e4ndert|umgezeichnet)\s+nach\b"
    r"|\b(?<!(?i:data\s))(?i:taken|obtained|derived|extracted|excerpted|borrowed|copied|adopted"
    rf"|recreated)\s+{_FROM}{_CITATION}"
    rf"|(?:{_START}|\b(?i:{_SHOWN})\s+(?:\d+\w?\s+)?){_FROM}{_CITATION}"
    rf"|(?:{_START}|\b(?i:{_PICTURE})\s+(?:(?:is|was)\s+)?)(?i:based\s+on)\s+(?!\d){_CITATION}"
    rf"|\b(?i:(?:from|using|via)\s+(?:the\s+|www\.)?{_LIBRARY})"
    rf"|\b(?i:(?:{_PICTURE}|panels?)\s+(?:\w+\s+){{0,3}}(?:previously|originally)\s+published)\b"
    rf"|{_START}(?i:previously|originally)\s+(?i:published\s+(?:in|by|as))\b"
)
_CREDIT = re.compile(
    r"\bcourtesy\s*(?::|of\b|(?-i:Dr|Prof)\b)|\bcortes[i\u00ed]a\s+d|\bgentile\s+concessione\b"
    r"|\bcedid[oa]s?\s+p[eo]"
    r"|\bcr[e\u00e9]dit(?:os?|s)?(?:\s+(?:d[aeo]s?\s+)?(?:(?:ph|f)oto|ima?g)\w*)?\s*:"
    r"|\b(?:photograph(?:ers?|y)|illustrators?)\s*:|\bbase\s?maps?\s*:|\bpublic\s+domain\b"
    rf"|{_START}(?:{_PICTURE}\s*:\s*(?:{_PERSON}|(?-i:[A-Z])[\w-]+\s*(?:[.,;)/]|$))"
    rf"|(?:(?:re)?drawn|adapted|illustrated|photographed)\s+by\s+{_PERSON}"
    r"|kindly\s+(?:provided|supplied|contributed|shared|donated)\s+by"
    r"|from\s+the\s+(?:collections?|archives?|library)\s+of\b"
    r"|(?:foto(?:graf[i\u00ed]a)?s?|source|fonte|fuente|quelle)\s*:)"
    rf"|\b{_PICTURE}\s+(?:(?:credits?|acknowledge?ments?)\b|courtesy|source\s*:|by\s+{_PERSON}"
    r"|(?:(?:is|was|are|were)\s+)?(?:licen[cs]ed\s+(?:from|by|to)|(?:an?\s+)?derivative)\b"
    r"|(?:(?:was|were)\s+)?(?:provided|supplied|contributed)\s+by)"
    rf"|\b{_SHOWN}\s+(?:(?:was|were)\s+)?kindly\s+(?:provided|supplied|contributed|shared|donated)\s+by"
    rf"|\bsource\s+of\s+(?:the\s+)?{_PICTURE}\s*:"
    r"|\bphoto(?:graph)?s?\s+by\s+(?-i:[A-Z])"
    r"|\b(?:licen[cs]ed|used|available|published|distributed)\s+under\s+(?:an?\s+|the\s+)?"
    r"(?:cc|creative\s+commons)\b",
    re.IGNORECASE,
)
_OWN = re.compile(
    r"\baut(?:hors?|or(?:es|as?|en|i)?|eure?s?)\b|\bown\b|\bour\b|\b(?:this|present)\s+(?:study|work|article)\b"
    r"|\bpr[o\u00f3]pr?i[aoe]s?\b|\beigene\w*"
    r"|\b(?:archivo|arquivo|acervo)\s+(?:personal|pessoal)\b|\bfield\s?(?:survey|work)\b",
    re.IGNORECASE,
)
"""Words by which a source is the article itself."""
_OTHER_WORKS = frozenset({"fig", "supplementary-material"})
"""Elements inside a figure that may have rights of their own."""
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Z])(?<!\b[DM]r)(?<!\bDrs)(?<!\bProf)(?<!\bet al)[.!?](?=\s+[A-Z(][a-z]{2}|\s*$)"
)


def author_names(article: Element) -> frozenset[str]:
    """Return the surnames of an article's authors."""
    return frozenset(
        text_of(surname)
        for front in children(article, "front")
        for group in descendants(front, "contrib-group")
        for surname in descendants(group, "surname")
    )


def third_party(
    nodes: list[Element], caption: str, authors: frozenset[str] = frozenset()
) -> tuple[ThirdParty, str | None]:
    """Say whether a figure names an owner outside the article, and quote where.

    Read are the caption, the permissions and the attributions of the figure and of what it belongs
    to, those of their pictures, and the figure's footnotes. "yes" means a permission or a
    copyright, "unclear" a credit, an adaptation or a courtesy. A copyright of the authors and a
    credit to one of them name no third party.

    Args:
        nodes: The figure, and the elements around it whose rights are its own.
        caption: Their captions as one text.
        authors: Surnames of the article's authors.
    """
    own = _own_copyright(authors)
    for block in _rights(nodes, "permissions"):
        statement = text_of(block)
        codes = [code for each in children(block, "license") if (code := stated_licence(each)[0])]
        is_own = own.search(statement) is not None and _owner(statement, own) is None
        if statement and not is_own and not {"CC0", "CC BY"}.intersection(codes):
            return "yes", statement
    credits = map(text_of, _rights(nodes, "attrib"))
    attributions = [text for text in credits if text]
    texts = [caption, *attributions, *(text_of(each) for each in descendants(nodes[0], "fn"))]
    for text in texts:
        if quote := _owner(text, own):
            return "yes", quote
    for text in texts:
        if found := _ADAPTED.search(text):
            return "unclear", next(_sentences(text, [found.start()]))
        for sentence in _sentences(text, (each.start() for each in _CREDIT.finditer(text))):
            if not _is_own(sentence, authors):
                return "unclear", sentence
    foreign = [text for text in attributions if not _is_own(text, authors)]
    return ("unclear", foreign[0]) if foreign else ("no", None)


def _rights(nodes: list[Element], name: str) -> Iterator[Element]:
    """Yield the elements of this name that apply to the nodes, not to a figure inside one."""
    for node in nodes:
        yield from descendants(node, name, outside=_OTHER_WORKS)


def _own_copyright(authors: frozenset[str]) -> re.Pattern[str]:
    """Return the expression for a copyright of the authors of an article."""
    names = "|".join(sorted(re.escape(name) for name in authors if len(name) > 1) or ["(?!)"])
    return re.compile(rf"{_COPYRIGHT}(?:(?i:authors?)|{names})(?![\w-])")


def _owner(text: str, own: re.Pattern[str]) -> str | None:
    """Return the sentence with a permission or copyright of somebody else, None without any."""
    places = (
        stated.start()
        for stated in _YES.finditer(text)
        if not own.match(text, stated.start()) and not _OF_SUBJECTS.match(text, stated.start())
    )
    return next((each for each in _sentences(text, places) if not _CONSENT.search(each)), None)


def _is_own(sentence: str, authors: frozenset[str]) -> bool:
    """Return whether a credit names the article itself, or one of its authors."""
    names = (re.escape(name) for name in authors if len(name) > 1 and name in sentence)
    is_named = any(re.search(rf"(?<!\w){name}(?!\w)", sentence) for name in names)
    return is_named or _OWN.search(sentence) is not None


def _sentences(text: str, places: Iterable[int]) -> Iterator[str]:
    """Yield the sentences of a text that ascending places are in, each once.

    The point of an initial ends none. Each sentence is looked at once, however many places are in
    it, so that the time grows with the length of the text.
    """
    ends: list[int] = []
    stop = 0
    for place in places:
        if place < stop:
            continue
        ends = ends or [*(found.end() for found in _SENTENCE_END.finditer(text)), len(text)]
        number = bisect.bisect_right(ends, place)
        start, stop = (ends[number - 1] if number else 0), ends[number]
        yield text[start:stop].strip()
