"""The reader of articles finds what a person finds in them, however they are wrapped."""

import json
import re
from dataclasses import asdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from llavamed.cli.corpus import app
from llavamed.corpus.pmc.figures import read_article
from llavamed.corpus.pmc.jats import parse_articles
from llavamed.corpus.pmc.licence import code_of_url
from llavamed.errors import DataError

EQUAL = ["id", "label", "caption", "graphics", "group", "parent", "permissions", "third_party"]
EQUAL += ["mentions", "mentions_by_range"]


@pytest.fixture(scope="module")
def golden(reference_data):
    files = json.loads((reference_data / "golden/pmc_figures.json").read_text())["files"]
    return {
        name: ((reference_data / "data/pmc" / name).read_bytes(), expected)
        for name, expected in files.items()
    }


def read(data, name="article.xml"):
    [article] = parse_articles(data, name)
    return read_article(article)


def test_every_figure_of_the_golden_articles_is_read_as_a_person_reads_it(golden):
    number = 0
    for name, (data, expected) in golden.items():
        found = read(data, name)
        assert (found.licence, found.licence_url) == (expected["licence"], expected["licence_url"])
        assert found.pmcid == expected["pmcid"]
        assert len(found.figures) == len(expected["figures"]), name
        for figure, there in zip(found.figures, expected["figures"], strict=True):
            number += 1
            got = asdict(figure)
            for key in EQUAL:
                assert got[key] == there[key], (name, figure.id, key)
    assert number == 103


def in_a_set(text):
    if "<pmc-articleset" in text:
        return text
    body = re.sub(r"\A.*?(?=<article[ >])", "", text, flags=re.DOTALL)
    return f"<pmc-articleset>{body}</pmc-articleset>"


def in_a_namespace(text):
    return re.sub("<article ", '<article xmlns="http://jats.nlm.nih.gov" ', text, count=1)


def with_instructions(text):
    return re.sub(r"(<p[ >])", r"<?page-break 7?>\1", text)


def with_new_ids(text):
    return re.sub(r'pub-id-type="pmc(?:id)?">(?:PMC)?(\d+)', r'pub-id-type="pmcid">PMC\1', text)


@pytest.mark.parametrize("change", [in_a_set, in_a_namespace, with_instructions, with_new_ids])
def test_the_wrapping_of_an_article_changes_nothing(golden, change):
    for name, (data, _) in golden.items():
        encoding = "utf-8"
        text = re.sub(r"\A\s*<\?xml[^>]*>", "", data.decode(encoding))
        assert read(change(text).encode(encoding), name) == read(data, name), name


def article(body="", front="", floats=""):
    return (
        '<article xmlns:xlink="http://www.w3.org/1999/xlink"><front><article-meta>'
        f"{front}</article-meta></front><body>{body}</body>{floats}</article>"
    ).encode()


FIG = (
    '<fig id="f{0}"><label>Figure {0}</label><caption><p>{1}</p></caption>'
    '<graphic xlink:href="g{0}"/></fig>'
)


def test_a_figure_of_the_floats_group_is_mentioned_from_the_body():
    body = '<p>See <xref ref-type="fig" rid="f1">Figure 1</xref>.</p>'
    floats = f"<floats-group>{FIG.format(1, 'A lung.')}</floats-group>"
    [figure] = read(article(body, floats=floats)).figures
    assert (figure.caption, figure.graphics) == ("A lung.", [["g1"]])
    assert figure.mentions == ["See Figure 1."]


def test_a_paragraph_around_a_figure_does_not_swallow_its_caption():
    inside = FIG.format(1, "Inside.")
    body = f'<p>Before. <xref ref-type="fig" rid="f1">Fig. 1</xref> {inside} After.</p>'
    [figure] = read(article(body)).figures
    assert figure.mentions == ["Before. Fig. 1 After."]


@pytest.mark.parametrize("dash", ["-", "\u2013", " \u2014 ", " to "])
def test_a_range_names_the_figures_between(dash):
    one, three = (f'<xref ref-type="fig" rid="f{n}">{n}</xref>' for n in (1, 3))
    body = "".join(FIG.format(n, "x") for n in (1, 2, 3)) + f"<p>Figures {one}{dash}{three}.</p>"
    figures = read(article(body)).figures
    assert [len(figure.mentions) for figure in figures] == [1, 0, 1]
    assert [len(figure.mentions_by_range) for figure in figures] == [0, 1, 0]


@pytest.mark.parametrize("label", ["Figure {}", "图{}", "Рис. {}", "Figura {}.", "{}"])
@pytest.mark.parametrize("cited", ["{}", "Fig. {}", "{}a", "B"])
def test_the_ends_of_a_range_are_what_its_references_name(label, cited):
    figures = [FIG.format(n, "x").replace(f"Figure {n}", label.format(n)) for n in (1, 2, 3)]
    one, three = (f'<xref ref-type="fig" rid="f{n}">{cited.format(n)}</xref>' for n in (1, 3))
    found = read(article(f"{''.join(figures)}<p>{one}<!-- dash -->–<?pi?>{three}</p>")).figures
    assert [len(figure.mentions_by_range) for figure in found] == [0, 1, 0]


def test_a_range_of_panels_names_no_other_figure():
    panels = "–".join(f'<xref ref-type="fig" rid="f1">{text}</xref>' for text in ("1A", "C"))
    body = "".join(FIG.format(n, "x") for n in (1, 2, 3)) + f"<p>{panels}</p>"
    assert [figure.mentions_by_range for figure in read(article(body)).figures] == [[], [], []]


def test_a_comment_parts_no_word():
    [figure] = read(article(FIG.format(1, "Pneu<!-- page 3 -->monia<?break?>s."))).figures
    assert figure.caption == "Pneumonias."


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


@pytest.mark.parametrize("head", ["", '<!DOCTYPE article SYSTEM "jats.dtd">'])
def test_a_character_by_name_is_the_character(head):
    data = article(FIG.format(1, "5&nbsp;&mu;m &lt; 2&#xB5;m, R&amp;D, &NotEqualTilde;"))
    [figure] = read(head.encode() + data).figures
    assert figure.caption == "5 μm < 2µm, R&D, ≂̸"


def test_an_entity_that_nobody_knows_stays_as_it_is_written():
    head = b'<!DOCTYPE article SYSTEM "jats.dtd">'
    [figure] = read(head + article(FIG.format(1, "a &journalname; b"))).figures
    assert figure.caption == "a &journalname; b"
    with pytest.raises(DataError, match="is no XML"):
        read(article(FIG.format(1, "a &journalname; b")))


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


def in_floats(text):
    """Move every figure that stands alone in a section to the floats group."""
    figures = re.findall(r"(?<=</p>)\s*<fig [^>]*>(?:(?!<fig ).)*?</fig>", text, re.DOTALL)
    if not figures or "floats-group" in text or "<sub-article" in text:
        return text
    for figure in figures:
        text = text.replace(figure, "", 1)
    group = f"<floats-group>{''.join(figures)}</floats-group>"
    return text.replace("</article>", f"{group}</article>", 1)


def test_where_a_figure_stands_changes_neither_its_caption_nor_its_mentions(golden):
    moved = 0
    for name, (data, _) in golden.items():
        text = re.sub(r"\A\s*<\?xml[^>]*>", "", data.decode())
        other = in_floats(text)
        moved += other != text
        before, after = (
            {figure.id: figure for figure in read(each.encode(), name).figures}
            for each in (text, other)
        )
        assert before == after, name
    assert moved >= 3


def test_a_list_of_two_figures_is_no_range():
    one, three = (f'<xref ref-type="fig" rid="f{n}">{n}</xref>' for n in (1, 3))
    body = "".join(FIG.format(n, "x") for n in (1, 2, 3)) + f"<p>Figures {one}, {three}.</p>"
    assert [figure.mentions_by_range for figure in read(article(body)).figures] == [[], [], []]


@pytest.mark.parametrize(
    ("caption", "verdict"),
    [
        ("Chest radiograph of the patient.", "no"),
        ("Images were obtained from the patient at admission.", "no"),
        ("Reproduced with permission from Elsevier.", "yes"),
        ("Copyright 2017 Nature Publishing Group.", "yes"),
        ("\u00a9 2016 The Society.", "yes"),
        ("Used by permission of the museum.", "yes"),
        ("Adapted from Miller et al. [3].", "unclear"),
        ("Redrawn after reference 5.", "unclear"),
        ("Image courtesy of the hospital.", "unclear"),
        ("Photo: A. Stranger.", "unclear"),
        ("Photo: B. Writer.", "no"),
        ("Permission obtained from Elsevier.", "yes"),
        ("Copyright Elsevier 2018.", "yes"),
        ("Reproduzida com permissão de Elsevier.", "yes"),
        ("Photograph published with permission of the patient's family.", "no"),
        ("© 2018 The Author(s).", "no"),
        ("© The Authors 2018. Insert © 2016 The Society.", "yes"),
        ("Source: prepared by the authors.", "no"),
        ("Source: World Bank.", "unclear"),
        ("Light source: LED.", "no"),
        ("Left image: Axial CT.", "no"),
        ("From Smith et al. [3].", "unclear"),
        ("Figure previously published in [3].", "unclear"),
        ("The results were reproduced with antibody B.", "no"),
        ("Cells were modified by heat.", "no"),
        ("Reproduced under the terms of its licence from [3].", "unclear"),
    ],
)
def test_a_caption_tells_whose_the_figure_is(caption, verdict):
    front = (
        "<contrib-group><contrib><name><surname>Writer</surname></name></contrib></contrib-group>"
    )
    [figure] = read(article(FIG.format(1, caption), front)).figures
    assert figure.third_party == verdict
    assert (figure.third_party_quote is None) == (verdict == "no")


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
        ("<license><license-p>All rights reserved.</license-p></license>", None),
        ("", None),
    ],
)
def test_an_article_states_its_licence(permissions, licence):
    front = f"<permissions>{permissions}</permissions>"
    assert read(article(front=front)).licence == licence


def test_non_commercial_and_no_derivatives_are_different_words():
    found = {
        terms: code_of_url(f"https://creativecommons.org/licenses/{terms}/4.0/")
        for terms in ("by", "by-sa", "by-nc", "by-nd", "by-nc-sa", "by-nc-nd")
    }
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"a\.xml: is no XML: .*; fetch the file again"),
        (b"<article><body>", r"a\.xml: is no XML: .*; fetch the file again"),
        (b"<html/>", r"a\.xml: holds no article; give a JATS file"),
        (b" " * ((50 << 20) + 1), r"a\.xml: has 52,428,801 bytes, at most 52,428,800 are read"),
    ],
)
def test_a_file_that_is_no_article_is_refused(data, message):
    with pytest.raises(DataError, match=message):
        parse_articles(data, "a.xml")


def test_nothing_outside_the_file_is_read(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("SECRET")
    data = article(FIG.format(1, "Before &x; after &alpha;."))
    head = f'<!DOCTYPE article SYSTEM "a.dtd" [<!ENTITY x SYSTEM "file://{secret}">]>'.encode()
    [figure] = read(head + data).figures
    assert "SECRET" not in figure.caption
    assert "\u03b1" in figure.caption


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.text("ab <>&x", max_size=40))
def test_any_caption_comes_back_with_single_spaces(text):
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    [figure] = read(article(FIG.format(1, escaped))).figures
    assert figure.caption == (" ".join(text.split()) or None)


def test_the_command_prints_a_line_a_figure(tmp_path):
    file = tmp_path / "PMC1.xml"
    file.write_bytes(article(FIG.format(1, "A lung.")))
    lines = CliRunner().invoke(app, ["figures", str(file), str(file)]).output.splitlines()
    assert len(lines) == 2
    row = json.loads(lines[0])
    assert (row["file"], row["id"], row["caption"]) == ("PMC1.xml", "f1", "A lung.")
    assert {"graphics", "mentions", "group", "parent", "permissions", "licence"} <= set(row)
    absent = CliRunner().invoke(app, ["figures", str(tmp_path / "absent.xml")])
    assert "no such file; check the path" in str(absent.exception)
