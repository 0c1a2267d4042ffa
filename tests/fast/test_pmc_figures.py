"""The reader of articles finds what a person finds in them, however they are wrapped."""

import gzip
import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from llavamed.cli.corpus import app
from llavamed.corpus.pmc.figures import read_article
from llavamed.corpus.pmc.jats import parse_articles
from llavamed.errors import DataError
from tests.support.jats_articles import articles
from tests.support.jats_figures import FIG, article, read

EQUAL = ["id", "label", "caption", "graphics", "group", "parent", "permissions", "third_party"]
EQUAL += ["mentions", "mentions_by_range"]


@pytest.fixture(scope="module")
def golden(reference_data):
    files = json.loads((reference_data / "golden/pmc_figures.json").read_text())["files"]
    return {
        name: ((reference_data / "data/pmc" / name).read_bytes(), expected)
        for name, expected in files.items()
    }


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


SUPPORT = Path(__file__).parents[1] / "support"
PARTS = re.split(
    r"^=== (\w+)\n", (SUPPORT / "publisher_articles.txt").read_text(), flags=re.MULTILINE
)
PUBLISHED = dict(zip(PARTS[1::2], PARTS[2::2], strict=True))
EXPECTED = yaml.safe_load((SUPPORT / "publisher_figures.yaml").read_text())
NOTHING = dict.fromkeys(EQUAL) | {"graphics": [], "permissions": [], "third_party": "no"}
NOTHING |= {"mentions": [], "mentions_by_range": []}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_forms_of_publishers_are_read_by_the_same_rules(name):
    """The figures that are expected were written down by hand, before any reader saw them."""
    declared = re.search(r'\A<\?xml [^>]*encoding="([\w-]+)"', PUBLISHED[name])
    found = read(PUBLISHED[name].encode(declared[1] if declared else "utf-8"), name)
    expected = EXPECTED[name]
    head = {key: getattr(found, key) for key in ("pmcid", "licence", "licence_url")}
    assert head == dict.fromkeys(head) | expected["article"]
    assert len(found.figures) == len(expected["figures"])
    for figure, there in zip(found.figures, expected["figures"], strict=True):
        wanted = NOTHING | there
        if wanted["group"] is not None:
            wanted["group"] = {"id": None, "label": None, "caption": None} | wanted["group"]
        for key in ("mentions", "mentions_by_range"):
            wanted[key] = [expected["text"][letter] for letter in wanted[key]]
        got = asdict(figure)
        assert {key: got[key] for key in EQUAL} == wanted


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


@pytest.mark.parametrize("head", ["", '<!DOCTYPE article SYSTEM "jats.dtd">'])
def test_a_character_by_name_is_the_character(head):
    data = article(FIG.format(1, "5&nbsp;&mu;m &lt; 2&#xB5;m, R&amp;D, &NotEqualTilde;"))
    [figure] = read(head.encode() + data).figures
    assert figure.caption == "5 μm < 2µm, R&D, ≂̸"


def test_an_entity_that_nobody_knows_stays_as_it_is_written():
    head = b'<!DOCTYPE article SYSTEM "jats.dtd">'
    [figure] = read(head + article(FIG.format(1, "a &journalname; b"))).figures
    assert figure.caption == "a &journalname; b"
    with pytest.raises(DataError, match="is not XML"):
        read(article(FIG.format(1, "a &journalname; b")))


def in_floats(text):
    """Move every figure that stands alone in a section to the floats group."""
    figures = re.findall(r"(?<=</p>)\s*<fig [^>]*>(?:(?!<fig ).)*?</fig>", text, re.DOTALL)
    if not figures or "floats-group" in text or "<sub-article" in text:
        return text
    for figure in figures:
        text = text.replace(figure, "", 1)
    group = f"<floats-group>{''.join(figures)}</floats-group>"
    return text.replace("</article>", f"{group}</article>", 1)


def test_the_articles_of_a_set_keep_to_their_own_figures():
    one, two = (
        article(f'{FIG.format(1, n)}<p>{n} <xref ref-type="fig" rid="f1">1</xref></p>').decode()
        for n in ("One", "Two")
    )
    found = parse_articles(f"<pmc-articleset>{one}{two}</pmc-articleset>".encode(), "set.xml")
    [first], [second] = (read_article(each).figures for each in found)
    assert (first.mentions, second.mentions) == (["One 1"], ["Two 1"])


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


@settings(max_examples=60, deadline=None)
@given(articles())
def test_figures_and_mentions_are_those_that_an_article_is_made_of(drawn):
    data, expected = drawn
    found = [figure for figure in read(data).figures if figure.id != "other"]
    for figure, there in zip(found, expected, strict=True):
        got = asdict(figure)
        assert {key: got[key] for key in asdict(there)} == asdict(there)


WRAPS = ["{}", "<bold>{}</bold>", "<italic><bold>{}</bold></italic>"]


@given(
    st.lists(st.sampled_from(WRAPS), min_size=3, max_size=3),
    st.sampled_from(["-", "\u2013", " to ", " through ", " to Fig. ", "\u2013Figure "]),
    st.sampled_from(["{}", "Fig. {}A", "{}B", ""]),
    st.sampled_from(["Figure {}", "Fig. {}", "Scheme {}", "{}."]),
)
def test_a_range_holds_whatever_its_ends_are_wrapped_in(wraps, dash, cited, label):
    figures = "".join(FIG.format(n, "x").replace(f"Figure {n}", label.format(n)) for n in (1, 2, 3))
    first, sign, last = (
        wrap.format(text)
        for wrap, text in zip(
            wraps,
            [
                f'<xref ref-type="fig" rid="f1">{cited.format(1)}</xref>',
                dash,
                f'<xref ref-type="fig" rid="f3">{cited.format(3)}</xref>',
            ],
            strict=True,
        )
    )
    found = read(article(f"{figures}<p>In {first}{sign}{last}.</p>")).figures
    assert [len(figure.mentions) for figure in found] == [1, 0, 1]
    assert [len(figure.mentions_by_range) for figure in found] == [0, 1, 0]


def test_a_range_names_all_figures_of_the_groups_between():
    group = '<fig-group id="g{0}"><label>Figure {0}</label>{1}</fig-group>'
    pair = "".join(f'<fig id="f{{0}}{panel}"><label>({panel})</label></fig>' for panel in "ab")
    one, three = (f'<xref ref-type="fig" rid="g{n}">{n}</xref>' for n in (1, 3))
    body = "".join(group.format(n, pair.format(n)) for n in (1, 2, 3))
    found = read(article(f"{body}<p>Figures {one}\u2013{three}.</p>")).figures
    assert [len(figure.mentions) for figure in found] == [1, 1, 0, 0, 1, 1]
    assert [len(figure.mentions_by_range) for figure in found] == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("words", ["", " and ", ", ", " (", "; see "])
def test_only_the_sign_of_a_range_makes_one(words):
    one, three = (f'<xref ref-type="fig" rid="f{n}">{n}</xref>' for n in (1, 3))
    body = "".join(FIG.format(n, "x") for n in (1, 2, 3)) + f"<p>Figures {one}{words}{three}.</p>"
    assert [figure.mentions_by_range for figure in read(article(body)).figures] == [[], [], []]


def test_a_supplement_that_no_reference_names_is_no_mention():
    body = FIG.format(1, "x") + "<p>See Fig. S1, Fig. 1 of [3] and Supplementary Figure 1.</p>"
    assert read(article(body)).figures[0].mentions == []


def test_a_number_of_any_length_is_a_label():
    """Neither does the time grow with the numbers between two labels."""
    one = FIG.format(1, "x")
    far, long = one.replace("Figure 1", "Figure 999999999"), one.replace("Figure 1", "9" * 9000)
    ends = "–".join(f'<xref ref-type="fig" rid="{name}">1</xref>' for name in ("f1", "far"))
    body = one + far.replace('"f1"', '"far"') + long.replace('"f1"', '"long"') + f"<p>{ends}</p>"
    found = read(article(body)).figures
    assert [len(figure.mentions) for figure in found] == [1, 1, 0]


def test_a_list_of_two_figures_is_no_range():
    one, three = (f'<xref ref-type="fig" rid="f{n}">{n}</xref>' for n in (1, 3))
    body = "".join(FIG.format(n, "x") for n in (1, 2, 3)) + f"<p>Figures {one}, {three}.</p>"
    assert [figure.mentions_by_range for figure in read(article(body)).figures] == [[], [], []]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"a\.xml: is not XML: .*; fetch the file again"),
        (b"<article><body>", r"a\.xml: is not XML: .*; fetch the file again"),
        (b"<article>\0</article>", r"a\.xml: is not XML: .* range , line 1, column 10; fetch"),
        (b"<html/>", r"a\.xml: holds no article; give a JATS file"),
        (gzip.compress(b"<article/>", mtime=0), r"a\.xml: is packed by gzip; unpack it"),
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


def test_a_file_that_cannot_be_read_hides_no_other(tmp_path):
    file, torn = tmp_path / "PMC1.xml", tmp_path / "PMC2.xml"
    file.write_bytes(article(FIG.format(1, "A lung.")))
    torn.write_bytes(file.read_bytes()[:-20])
    absent, deep = tmp_path / "absent.xml", tmp_path / "deep.xml"
    deep.write_bytes(article(FIG.format(1, "<bold>" * 1500 + "</bold>" * 1500)))
    result = CliRunner().invoke(app, ["figures", str(torn), str(absent), str(deep), str(file)])
    assert [json.loads(line)["file"] for line in result.output.splitlines()] == ["PMC1.xml"]
    first, second, third = str(result.exception).splitlines()
    assert re.search(r"PMC2\.xml: is not XML: .*; fetch the file again", first)
    assert re.search(r"absent\.xml: no such file; check the path", second)
    assert re.search(r"deep\.xml: its elements are nested too deeply; skip it", third)


def test_a_label_inside_a_caption_is_the_label_of_the_figure():
    inside = "<caption><label>Figure 1</label><title>A lung.</title></caption>"
    [found] = read(article(f'<fig id="f1">{inside}<graphic xlink:href="g"/></fig>')).figures
    assert (found.label, found.caption) == ("Figure 1", "A lung.")


@pytest.mark.parametrize("sign", ["\u00ad", "\u200b", "\u2060", "\ufeff"])
def test_signs_that_nobody_sees_hide_no_word(sign):
    caption = f"Reprint{sign}ed with per{sign}mission from Smith. C{sign}T scan."
    [found] = read(article(FIG.format(1, caption))).figures
    assert found.caption == "Reprinted with permission from Smith. CT scan."
    assert found.third_party == "yes"
