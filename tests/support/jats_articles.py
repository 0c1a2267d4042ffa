"""Articles in JATS drawn together with what a reader must find in them."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

INLINE = [
    ("A lung.", "A lung."),
    ("CO<sub>2</sub> at 10<sup>-3</sup> M.", "CO2 at 10-3 M."),
    ("<italic>E. <bold>coli</bold></italic> (arrow)", "E. coli (arrow)"),
    ("5&#160;&#x2009;&#181;m", "5 \u00b5m"),
    ("first<break/>second", "first second"),
    ("see <xref ref-type='bibr' rid='b1'>[3]</xref>.", "see [3]."),
    (
        "with <inline-formula><alternatives><tex-math>$x^2$</tex-math><mml:math><mml:msup>"
        "<mml:mi>x</mml:mi> <mml:mn>2</mml:mn></mml:msup><mml:annotation>x</mml:annotation>"
        "</mml:math></alternatives></inline-formula> here",
        "with x2 here",
    ),
    ("a <inline-graphic xlink:href='i1'><alt-text>sign</alt-text></inline-graphic> sign", "a sign"),
    ("Pneu<!-- page -->mo<?break?>nia", "Pneumonia"),
    ("of <list><list-item><p>one</p></list-item><list-item><p>two</p></list-item></list>", ""),
]
INLINE[-1] = (INLINE[-1][0], "of one two")
"""Inline content and its text."""

PICTURES = [
    ('<graphic xlink:href="{0}.tif"/>', [["{0}.tif"]]),
    ('<graphic xlink:href="{0}a"/><graphic xlink:href="{0}b"/>', [["{0}a"], ["{0}b"]]),
    (
        '<alternatives><graphic xlink:href="{0}.tif"/><graphic xlink:href="{0}.jpg"/>'
        "</alternatives>",
        [["{0}.tif", "{0}.jpg"]],
    ),
    (
        '<alternatives><alternatives><graphic xlink:href="{0}.tif"/></alternatives>'
        '<graphic xlink:href="{0}.png"/></alternatives>',
        [["{0}.tif", "{0}.png"]],
    ),
    ('<media mimetype="video" xlink:href="{0}.mp4"/>', []),
    ('<p><graphic xlink:href="info:doi/10.1/{0}"/></p>', [["info:doi/10.1/{0}"]]),
    (
        '<graphic xlink:href="{0}"/><supplementary-material><label>S</label><caption><p>Data.</p>'
        '</caption><graphic xlink:href="s"/></supplementary-material>',
        [["{0}"]],
    ),
]
PLACES = {
    "body": "<sec><title>Results</title>{}</sec>",
    "paragraph": "<p>Around {} it.</p>",
    "boxed": "<boxed-text><caption><title>Box</title></caption>{}</boxed-text>",
    "nested": "<sec><sec><boxed-text><p>Deep {}</p></boxed-text></sec></sec>",
    "group": '<fig-group id="group{1}"><label>Plate {1}</label><caption><title>All.</title>'
    "<p>Of them.</p></caption>{0}</fig-group>",
    "floats": "",
    "app": "",
}
COUNTED = ["<p>{}</p>", "<list><list-item><p>{}</p></list-item></list>"]
COUNTED += ["<boxed-text><sec><p>{}</p></sec></boxed-text>", "<disp-quote><p>{}</p></disp-quote>"]
NOT_COUNTED = [
    "<table-wrap><caption><p>{}</p></caption><table><tr><td>{}</td></tr></table></table-wrap>",
    "<fig id='other'><caption><p>{}</p></caption></fig>",
    "<supplementary-material><caption><p>{}</p></caption></supplementary-material>",
    "<p>Text.<fn><p>{}</p></fn></p>",
    "<sec><title>{}</title></sec>",
    "<media><caption><p>{}</p></caption></media>",
]


@dataclass
class Drawn:
    """A figure as a reader must find it."""

    id: str | None
    label: str | None
    caption: str | None
    graphics: list[list[str]]
    group: dict[str, str] | None
    mentions: list[str] = field(default_factory=list)
    mentions_by_range: list[str] = field(default_factory=list)


def _figure(draw: Any, number: int, place: str) -> tuple[str, Drawn]:
    id_ = f"f{number}" if draw(st.integers(0, 5)) else None
    label = draw(st.sampled_from([f"Figure {number}", f"Fig. {number}.", None]))
    pieces = draw(st.lists(st.sampled_from(INLINE), max_size=3))
    shape, addresses = draw(st.sampled_from(PICTURES))
    captions = "".join(
        f"<{name}>{piece}</{name}>"
        for name, (piece, _) in zip(["title", "p", "p"], pieces, strict=False)
    )
    named = f' id="{id_}"' if id_ else ""
    xml = (
        f"<fig{named}><object-id>10.1/{number}</object-id>"
        f"{f'<label>{label}</label>' if label else ''}"
        f"{f'<caption>{captions}</caption>' if pieces else ''}"
        f"{shape.format(f'g{number}')}<attrib>Own work.</attrib></fig>"
    )
    group = {"id": f"group{number}", "label": f"Plate {number}", "caption": "All. Of them."}
    caption = " ".join(text for _, text in pieces) or None
    graphics = [[address.format(f"g{number}") for address in picture] for picture in addresses]
    return xml, Drawn(id_, label, caption, graphics, group if place == "group" else None)


def _reference(draw: Any, names: list[str]) -> tuple[str, str]:
    """A reference to some ids, and its text."""
    text = draw(st.sampled_from(["1", "Fig. 1A", "Figure 3B&#8211;D", ""]))
    xml = f'<xref ref-type="fig" rid="{" ".join(names)}">{text}</xref>'
    wrap = draw(st.sampled_from(["{}", "<bold>{}</bold>", "<italic><sup>{}</sup></italic>"]))
    return wrap.format(xml), text.replace("&#8211;", "\u2013")


def _behind(place: str) -> int:
    return {"app": 1, "floats": 2}.get(place, 0)


@st.composite
def articles(draw: Any) -> tuple[bytes, list[Drawn]]:
    """An article, and its figures in order with all that is to be read of them."""
    count = draw(st.integers(1, 5))
    places = [draw(st.sampled_from(sorted(PLACES))) for _ in range(count)]
    # Appendices and floats stand behind the body, in this order.
    places.sort(key=_behind)
    drawn = [_figure(draw, number, place) for number, place in enumerate(places, start=1)]
    figures = [figure for _, figure in drawn]
    body = "".join(
        PLACES[place].format(xml, number)
        for number, ((xml, _), place) in enumerate(zip(drawn, places, strict=True), start=1)
    )
    ids = [
        name
        for figure in figures
        for name in (figure.id, figure.group["id"] if figure.group else None)
        if name
    ]
    for number in range(draw(st.integers(0, 4)) if ids else 0):
        names = draw(st.lists(st.sampled_from(ids), min_size=1, max_size=3, unique=True))
        xml, text = _reference(draw, names)
        shape = draw(st.sampled_from(COUNTED + NOT_COUNTED))
        body += shape.format(*[f"Sentence {number} {xml} ends."] * 2)
        if shape in COUNTED:
            for figure in figures:
                if {figure.id, figure.group["id"] if figure.group else None}.intersection(names):
                    figure.mentions.append(" ".join(f"Sentence {number} {text} ends.".split()))
    parts = {
        name: "".join(xml for (xml, _), place in zip(drawn, places, strict=True) if place == name)
        for name in ("app", "floats")
    }
    reviews = '<sub-article><body><fig id="f1"><caption><p>Review.</p></caption></fig>'
    reviews += '<p><xref ref-type="fig" rid="f1">1</xref></p></body></sub-article>'
    return (
        '<article xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:mml="http://math">'
        f"<front><article-meta/></front><body>{body}</body><back><app-group><app>{parts['app']}"
        f"</app></app-group></back><floats-group>{parts['floats']}</floats-group>"
        f"{draw(st.sampled_from(['', reviews]))}</article>"
    ).encode(), figures
