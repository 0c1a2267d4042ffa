"""Articles of a few figures, written by hand."""

from llavamed.corpus.pmc.figures import Article, read_article
from llavamed.corpus.pmc.jats import parse_articles

FIG = (
    '<fig id="f{0}"><label>Figure {0}</label><caption><p>{1}</p></caption>'
    '<graphic xlink:href="g{0}"/></fig>'
)


def article(body: str = "", front: str = "", floats: str = "") -> bytes:
    """An article with a body, and more of its front matter and behind it where given."""
    return (
        '<article xmlns:xlink="http://www.w3.org/1999/xlink" '
        'xmlns:ali="http://www.niso.org/schemas/ali/1.0/"><front><article-meta>'
        f"{front}</article-meta></front><body>{body}</body>{floats}</article>"
    ).encode()


def read(data: bytes, name: str = "article.xml") -> Article:
    """Read the one article of a file."""
    [found] = parse_articles(data, name)
    return read_article(found)
