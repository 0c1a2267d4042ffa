"""Read JATS, the XML of journal articles: elements by local name, and their text.

The files of PubMed Central, Europe PMC and publishers differ in version, namespace and wrapping, so
that elements are told by their local names alone.
"""

import html.entities
import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

from lxml import etree

from llavamed.errors import DataError

Element: TypeAlias = etree._Element

MAX_BYTES = 50 << 20
"""Articles above this size are refused; real ones rarely reach a tenth of it."""

_GZIP = b"\x1f\x8b"
_NAMED = re.compile(rb"&([A-Za-z][A-Za-z0-9]{1,31});")
"""An entity by its name, which a file without a document type may not have, and some do."""
_CDATA = re.compile(rb"(<!\[CDATA\[.*?(?:\]\]>|\Z))", re.DOTALL)
"""A CDATA section, in which "&name;" is not an entity."""

_OF_XML = frozenset({"amp", "lt", "gt", "quot", "apos"})
_ASIDE = frozenset({"tex-math", "annotation", "annotation-xml", "alt-text", "long-desc"})
"""Second spellings of a formula, and descriptions for readers who see no picture."""
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
"""Marks of where a line may break. In the middle of a word, they would hide it from a search."""
_BLOCKS = frozenset(
    {
        "license_ref",
        "break",
        "p",
        "title",
        "label",
        "list",
        "list-item",
        "def",
        "term",
        "disp-formula",
    }
    | {"disp-quote", "preformat", "verse-line", "tr", "td", "th", "attrib", "license-p"}
)
"""Elements that stand on a line of their own: no word goes on over their edge."""


def parse_articles(data: bytes, name: str) -> list[Element]:
    """Parse a file and return its articles: one, or those of a `pmc-articleset`.

    Nothing outside the file is read: no document type, no entity and no network.

    Args:
        data: The file's bytes.
        name: Its name, for errors.

    Raises:
        DataError: The file is too large, packed, not XML, or has no article.
    """
    if len(data) > MAX_BYTES:
        raise DataError(f"{name}: has {len(data):,} bytes, at most {MAX_BYTES:,} are read; skip it")
    if data.startswith(_GZIP):
        raise DataError(f"{name}: is packed by gzip; unpack it")
    pieces = _CDATA.split(data.lstrip())
    pieces[::2] = [_NAMED.sub(_numbered, piece) for piece in pieces[::2]]
    parser = etree.XMLParser(
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        huge_tree=True,
        remove_comments=True,
        remove_pis=True,  # so that the text around them is one text
    )
    try:
        root = etree.fromstring(b"".join(pieces), parser)
    except etree.XMLSyntaxError as error:
        reason = " ".join(str(error.msg).split())
        raise DataError(f"{name}: is not XML: {reason}; fetch the file again") from error
    found = [root] if local(root) == "article" else list(descendants(root, "article"))
    if not found:
        raise DataError(f"{name}: holds no article; give a JATS file")
    return found


def _numbered(entity: re.Match[bytes]) -> bytes:
    """Write a character that HTML and JATS have a name for by its number; leave other entities."""
    name = entity[1].decode()
    characters = html.entities.html5.get(f"{name};")
    if characters is None or name in _OF_XML:
        return entity[0]
    return "".join(f"&#{ord(each)};" for each in characters).encode()


def local(node: Element) -> str:
    """Return an element's name without its namespace; empty for comments and the like."""
    return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""


def attribute(node: Element, name: str) -> str | None:
    """Return an attribute by its local name."""
    for key, value in node.attrib.items():
        if str(key).rpartition("}")[2] == name:
            return str(value)
    return None


def children(node: Element, *names: str) -> list[Element]:
    """List the child elements of some names, in order."""
    return [child for child in node if local(child) in names]


def descendants(
    node: Element, name: str, *, outside: frozenset[str] = frozenset()
) -> Iterator[Element]:
    """Yield the elements of a name below a node, in document order.

    Args:
        node: Where to begin.
        name: Local name of the elements.
        outside: Elements that are not entered, one of the name itself included.
    """
    for found in node.iter(f"{{*}}{name}"):
        if found is not node and not (outside and _is_within(found, node, outside)):
            yield found


def _is_within(found: Element, node: Element, names: frozenset[str]) -> bool:
    """Return whether an element of some names stands between one and the node around it."""
    for above in found.iterancestors():
        if above is node:
            return False
        if local(above) in names:
            return True
    return False


def ancestors(node: Element) -> Iterator[str]:
    """Yield the local names of all elements around a node, the nearest first."""
    for above in node.iterancestors():
        yield local(above)


def edges(node: Element) -> Iterator[tuple[str, Element]]:
    """Yield the `start` and the `end` of a node and of all elements in it, in document order."""
    return etree.iterwalk(node, events=("start", "end"))


def text_of(node: Element, without: frozenset[str] = frozenset()) -> str:
    """Return the text of an element, with single spaces and without invisible characters.

    Subscripts and superscripts stay in line; a line break or an item of a list begins a new word.
    A formula counts by its MathML, without spaces of its own; its TeX is left out. `without` names
    elements that are left out with all they hold.
    """
    pieces: list[str] = []
    _collect(node, without, pieces.append)
    return " ".join("".join(pieces).translate(_INVISIBLE).split())


def _collect(node: Element, without: frozenset[str], add: Callable[[str], None]) -> None:
    if node.text:
        add(node.text)
    for child in node:
        name = local(child)
        edge = " " if name in _BLOCKS else ""
        if child.tag is etree.Entity:
            add(html.unescape(child.text or ""))
        elif name == "math":
            formula: list[str] = []
            _collect(child, _ASIDE, formula.append)
            add("".join("".join(formula).split()))
        elif name and name not in without and name not in _ASIDE:
            add(edge)
            _collect(child, without, add)
            add(edge)
        if child.tail:
            add(child.tail)
