"""The reader tells the licence of an article, and a figure that belongs to somebody else."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.corpus.pmc.licence import code_of_url
from tests.support.jats_figures import FIG, article, read

AUTHOR = "<contrib-group><contrib><name><surname>Writer</surname></name></contrib></contrib-group>"


CREDIT_LINES = [
    tuple(line.split("|", 1))
    for line in (Path(__file__).parents[1] / "support/credit_lines.txt").read_text().splitlines()
]


@pytest.mark.parametrize(("verdict", "caption"), CREDIT_LINES)
def test_a_caption_tells_whose_the_figure_is(verdict, caption):
    [figure] = read(article(FIG.format(1, caption), AUTHOR)).figures
    assert figure.third_party == verdict
    assert (figure.third_party_quote is None) == (verdict == "no")


def test_the_point_of_a_title_ends_no_quote():
    [figure] = read(
        article(FIG.format(1, "A lung. Courtesy of Dr. John Smith. Bar, 1 mm."))
    ).figures
    assert figure.third_party_quote == "Courtesy of Dr. John Smith."


@pytest.mark.parametrize(
    ("owner", "verdict"), [("Lippincott Press", "unclear"), ("Dr. Li", "no"), ("H. Li-Wu", "no")]
)
def test_an_author_is_named_by_a_whole_word(owner, verdict):
    li = AUTHOR.replace("Writer", "Li")
    [figure] = read(article(FIG.format(1, f"A lung. Courtesy of {owner}."), li)).figures
    assert figure.third_party == verdict


@pytest.mark.parametrize(
    ("rights", "verdict"),
    [
        ("<attrib>Photo: A. Stranger</attrib>", "unclear"),
        ("<attrib>City Museum</attrib>", "unclear"),
        ("<attrib>Source: the authors</attrib>", "no"),
        ("<permissions><copyright-statement>© Elsevier</copyright-statement></permissions>", "yes"),
        (
            "<permissions><copyright-statement>© 2020 The Author(s)</copyright-statement>"
            "</permissions>",
            "no",
        ),
    ],
)
@pytest.mark.parametrize("group", [False, True])
def test_rights_stand_at_a_figure_or_at_its_group(rights, verdict, group):
    figure = FIG.format(1, "A lung.")
    body = (
        f"<fig-group>{rights}{figure}</fig-group>"
        if group
        else figure.replace("</fig>", f"{rights}</fig>")
    )
    [found] = read(article(body)).figures
    assert found.third_party == verdict


@pytest.mark.parametrize("words", ["Courtesy of own. ", "courtesy of own ", "consent \u00a9 "])
def test_the_time_to_read_a_credit_line_grows_with_its_length(words):
    start = time.process_time()
    [figure] = read(article(FIG.format(1, words * 4000))).figures
    assert figure.third_party == "no"
    assert time.process_time() - start < 5  # a minute where it grows with the square


@pytest.mark.parametrize(
    "rights",
    [
        "<graphic xlink:href='x'><attrib>City Museum</attrib></graphic>",
        "<alternatives><graphic xlink:href='x'><permissions><copyright-statement>© City Museum"
        "</copyright-statement></permissions></graphic></alternatives>",
        "<caption><p>A lung.</p><attrib>City Museum</attrib></caption>",
    ],
)
def test_rights_stand_at_a_picture_or_in_a_caption(rights):
    [found] = read(article(f"<fig>{rights}</fig>")).figures
    assert found.third_party != "no"
    assert "City Museum" in found.third_party_quote
    whole, inside = read(article(f"<fig><caption/><fig>{rights}</fig></fig>")).figures
    assert (whole.third_party, inside.third_party) == ("no", found.third_party)


def test_a_panel_without_a_caption_has_the_rights_of_its_figure():
    own = "<caption><p>Drawn by us.</p></caption>"
    body = "<fig><caption><p>Reprinted with permission from X.</p></caption>{}</fig>"
    found = read(article(body.format(f"<fig id='a'/><fig id='b'>{own}</fig>"))).figures
    assert [figure.third_party for figure in found] == ["yes", "yes", "no"]


TERMS = {"nc": ["NonCommercial", "Non-Commercial", "NC"], "sa": ["ShareAlike", "Share Alike", "SA"]}
TERMS |= {"nd": ["NoDerivs", "No-Derivatives", "NoDerivatives", "ND"]}


@given(
    st.sets(st.sampled_from(["nc", "nd"])) | st.sets(st.sampled_from(["nc", "sa"])),
    st.data(),
    st.sampled_from(["-", " ", "—", "–", "/"]),
    st.sampled_from(["Creative Commons Attribution", "CC BY", "CC-BY", "Creative Commons CC BY"]),
    st.sampled_from(["", " 4.0", " 4.0 International License", " License (CC 3.0)"]),
)
def test_a_licence_in_words_is_the_one_of_its_terms(terms, data, dash, name, version):
    ordered = [term for term in ("nc", "nd", "sa") if term in terms]
    spelled = [data.draw(st.sampled_from(TERMS[term])) for term in ordered]
    words = dash.join([name, *spelled]) + version
    permissions = f"<permissions><license><license-p>{words}</license-p></license></permissions>"
    expected = "CC BY" + "".join(f"-{term.upper()}" for term in ordered)
    assert read(article(front=permissions)).licence == expected


@pytest.mark.parametrize(
    ("words", "licence"),
    [
        ("Attribution", "CC BY"),
        ("Attribution - Pas d\u2019Utilisation Commerciale", "CC BY-NC"),
        (
            "Attribution - Pas d'Utilisation Commerciale - Partage dans les M\u00eames Conditions",
            "CC BY-NC-SA",
        ),
        ("Attribution - Pas de Modification", "CC BY-ND"),
        ("Namensnennung - Nicht kommerziell - Keine Bearbeitungen", "CC BY-NC-ND"),
        ("Attribuzione - Non commerciale - Non opere derivate", "CC BY-NC-ND"),
        ("Reconocimiento-NoComercial-SinObraDerivada", "CC BY-NC-ND"),
        ("Atribui\u00e7\u00e3o-N\u00e3oComercial-SemDeriva\u00e7\u00f5es", "CC BY-NC-ND"),
    ],
)
def test_terms_in_other_languages_are_not_lost(words, licence):
    licence_p = f"<license-p>Creative Commons {words} 4.0</license-p>"
    front = f"<permissions><license>{licence_p}</license></permissions>"
    assert read(article(front=front)).licence == licence


@given(st.permutations(["by", "nc", "nd"]), st.sampled_from(["licenses", "licences"]))
def test_the_order_of_terms_in_an_address_does_not_matter(terms, word):
    address = f"https://creativecommons.org/{word}/{'-'.join(terms)}/1.0/"
    assert code_of_url(address) == "CC BY-NC-ND"


def test_the_reference_of_the_bucket_keeps_the_address_that_agrees_with_it():
    stated = '<license xlink:href="http://creativecommons.org/licenses/by/4.0/"/>'
    reference = (
        "<custom-meta-group><custom-meta><meta-name>pmc-license-ref</meta-name>"
        "<meta-value>{}</meta-value></custom-meta></custom-meta-group>"
    )
    for code, address in (("CC BY", "http://creativecommons.org/licenses/by/4.0/"), ("CC0", None)):
        front = f"<permissions>{stated}</permissions>{reference.format(code)}"
        found = read(article(front=front))
        assert (found.licence, found.licence_url) == (code, address)


def test_the_link_of_a_waiver_for_data_is_no_licence():
    zero = "http://creativecommons.org/publicdomain/zero/1.0/"
    words = (
        "Distributed under the terms of the Creative Commons Attribution License, which permits "
        "use. The Creative Commons Public Domain Dedication waiver "
        f'(<ext-link xlink:href="{zero}">{zero}</ext-link>) applies to the data made available.'
    )
    front = f"<permissions><license><license-p>{words}</license-p></license></permissions>"
    assert read(article(front=front)).licence == "CC BY"


@pytest.mark.parametrize(
    ("permissions", "licence"),
    [
        ('<license xlink:href="https://creativecommons.org/licenses/by/4.0/"/>', "CC BY"),
        ('<license xlink:href="http://creativecommons.org/licenses/by-nc-nd/4.0"/>', "CC BY-NC-ND"),
        ("<license><license-p>Creative Commons Attribution License</license-p></license>", "CC BY"),
        (
            "<license><license-p>the Creative Commons Attribution-NonCommercial-NoDerivs "
            "License</license-p></license>",
            "CC BY-NC-ND",
        ),
        (
            "<license><license-p>Creative Commons Attribution Non-Commercial License "
            "</license-p></license>",
            "CC BY-NC",
        ),
        (
            "<license><license-p>Creative Commons Attribution (CC-BY) 4.0; not for commercial use"
            "</license-p></license>",
            "CC BY-NC",
        ),
        ('<license license-type="CC BY-SA"/>', "CC BY-SA"),
        (
            '<license xlink:href="http://creativecommons.org/publicdomain/zero/1.0/"/>',
            "CC0",
        ),
        (
            "<license><license-p>All rights reserved. The Creative Commons Public Domain "
            "Dedication waiver (http://creativecommons.org/publicdomain/zero/1.0/) applies to the "
            "data made available in this article.</license-p></license>",
            None,
        ),
        (
            "<license><license-p>Licensed under CC BY-NC-SA; the Creative Commons Public Domain "
            "Dedication waiver applies to the data made available.</license-p></license>",
            "CC BY-NC-SA",
        ),
        ("<license><license-p>All rights reserved.</license-p></license>", None),
        # The time to read it grows with its length, not with a power of it.
        (f"<license><license-p>CC BY. {'waiver ' * 999}</license-p></license>", "CC BY"),
        ("", None),
        (
            "<license><license-p>CC Attribution-NonCommercial 3.0 License.</license-p></license>",
            "CC BY-NC",
        ),
        (
            "<license><license-p>All content is public domain unless otherwise noted.</license-p>"
            "</license>",
            "public domain",
        ),
        ("<license><license-p>It is not in the public domain.</license-p></license>", None),
        (
            "<license><license-p>Work of the U.S. Government; public domain.</license-p></license>",
            "public domain",
        ),
        (
            "<license><license-p>The Public Domain Dedication (CC0 1.0) applies to metadata of "
            "this article.</license-p></license>",
            None,
        ),
        (
            '<license license-type="creativeCommonsBy"><license-p>Open.</license-p></license>',
            "CC BY",
        ),
        ('<license license-type="CCBYNCND"/>', "CC BY-NC-ND"),
        ('<license license-type="CC-BY-NC"/>', "CC BY-NC"),
        ("<license><license-p>the License 4.0 (CCBY-NC-ND)</license-p></license>", "CC BY-NC-ND"),
        (
            '<license><ali:license_ref content-type="ccbynclicense">x</ali:license_ref></license>',
            "CC BY-NC",
        ),
        (
            "<license><license-p>Licen\u00e7a Creative Commons "
            "Atribui\u00e7\u00e3o-N\u00e3oComercial</license-p></license>",
            "CC BY-NC",
        ),
        (
            "<license><license-p>This is a U.S. Government work and is in the public domain in the "
            "USA.</license-p></license>",
            "public domain",
        ),
    ],
)
def test_an_article_states_its_licence(permissions, licence):
    front = f"<permissions>{permissions}</permissions>"
    assert read(article(front=front)).licence == licence


@pytest.mark.parametrize("dash", ["-", "%2D", "%2d", "\u2010", "\u2013", "- ", " - ", "-\n"])
@pytest.mark.parametrize("terms", ["by-nc", "by-nd", "by-sa", "by-nc-nd"])
@pytest.mark.parametrize(
    "form",
    [
        '<license xlink:href="{}"/>',
        "<license><ali:license_ref>{}</ali:license_ref></license>",
        "<license><license-p><uri xlink:href='{}'>CC BY</uri></license-p></license>",
        "<license><license-p><ext-link xlink:href='{}'>CC BY</ext-link></license-p></license>",
    ],
)
def test_a_term_is_not_lost_by_how_a_dash_of_an_address_is_written(dash, terms, form):
    address = f"http://creativecommons.org/licenses/{terms.replace('-', dash)}/4.0/"
    front = f"<permissions>{form.format(address)}</permissions>"
    assert read(article(front=front)).licence == f"CC {terms.upper()}"


def test_an_address_broken_after_a_dash_is_read_to_its_end():
    words = "<license-p>http://creativecommons.org/licenses/by-nc- nd/4.0/</license-p>"
    front = f"<permissions><license>{words}</license></permissions>"
    assert read(article(front=front)).licence == "CC BY-NC-ND"


def test_non_commercial_and_no_derivatives_are_different_words():
    found = {
        terms: code_of_url(f"https://creativecommons.org/licenses/{terms}/4.0/")
        for terms in ("by", "by-sa", "by-nc", "by-nd", "by-nc-sa", "by-nc-nd")
    }
    assert len(set(found.values())) == len(found)


def test_the_signs_around_an_address_are_not_of_it():
    address = "http://creativecommons.org/licenses/by-nc-sa/2.5/"
    words = f"<license><license-p>its licence &lt;{address}&gt;.</license-p></license>"
    found = read(article(front=f"<permissions>{words}</permissions>"))
    assert (found.licence, found.licence_url) == ("CC BY-NC-SA", address)
