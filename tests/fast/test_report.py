import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from llavamed.errors import DataError
from llavamed.evaluate.report import THUMBNAIL_PIXELS, Heading, render_page, render_results
from llavamed.evaluate.vqa import SCORER, Answer

HEADING = Heading("rad-7b", "s3://runs/rad-7b/exports/instruct", "mistral", "VQA-RAD test")
EVIL = """</dd><script>alert("x")</script><img src=x onerror='alert(1)'>"""


def png(size=(900, 600), mode="L"):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


def controls():
    """Four questions: the model has one closed of two right and 1 and 1/2 of two open."""
    trained = [
        Answer("q1", png(), "Is there a mass?", "no", "No.", "CLOSED", "PRES", "chest"),
        Answer("q2", b"", "Is it enlarged?", "yes", "normal", "CLOSED", "SIZE", "chest"),
        Answer("q3", b"", "Which organ?", "liver", "The liver", "OPEN", "ORGAN", "abdomen"),
        Answer("q4", b"", "Which plane?", "mid sagittal", "sagittal", "OPEN", "PRES", "head"),
    ]
    untrained = [replace(answer, prediction="yes") for answer in reversed(trained)]
    return {"trained": trained, "untrained": untrained}


class Page(HTMLParser):
    """The tags of a page with their attributes, and its visible text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.inside = [], "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.inside not in ("style", "script"):
            self.text += " " + " ".join(data.split())

    def handle_endtag(self, tag):
        self.inside = ""

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def cards(self):
        return [li["class"].split() for li in self.all("li") if "card" in li["class"].split()]


def table_rows(html):
    """Every table row as its texts."""
    rows = re.findall(r"<tr.*?</tr>", html, re.DOTALL)
    return [" ".join(Page(row).text.split()) for row in rows]


def test_results_hold_every_question_once_with_every_control_joined_by_id():
    rows = [json.loads(line) for line in render_results(controls()).decode().splitlines()]
    assert [row["id"] for row in rows] == ["q1", "q2", "q3", "q4"]
    assert rows[1] == {
        "id": "q2",
        "question": "Is it enlarged?",
        "reference": "yes",
        "answer_type": "CLOSED",
        "question_type": "SIZE",
        "domain": "chest",
        "scorer": SCORER,
        "predictions": {"trained": "normal", "untrained": "yes"},
        "scores": {"trained": 0, "untrained": 1},
    }
    assert rows[3]["scores"] == {"trained": 0.5, "untrained": 0}


def test_results_keep_a_line_a_question_whatever_the_text():
    odd = "one\ntwo\u2028three \u03bcm"
    answers = {"trained": [replace(controls()["trained"][0], prediction=odd)]}
    (line,) = render_results(answers).removesuffix(b"\n").split(b"\n")
    assert json.loads(line)["predictions"]["trained"] == odd


def test_the_page_says_what_was_evaluated():
    page = Page(render_page(HEADING, controls()))
    for fact in (HEADING.run, HEADING.export, HEADING.template, HEADING.dataset, SCORER):
        assert fact in page.text
    assert "4 (2 closed, 2 open)" in page.text


def test_the_page_shows_the_scores_of_every_control():
    rows = table_rows(render_page(HEADING, controls(), majority="no"))
    assert "Trained 50.0 75.0" in rows
    assert "Untrained 50.0 0.0" in rows
    assert 'Always "no" 50.0 \u2013' in rows


def test_the_page_leaves_the_majority_out_where_there_is_none():
    assert "Always" not in render_page(HEADING, controls())


def test_the_page_breaks_down_by_question_type_and_domain():
    rows = table_rows(render_page(HEADING, controls(), majority="no"))
    # closed: n, trained, untrained, majority; open: n, trained, untrained
    assert "PRES 1 100.0 0.0 100.0 1 50.0 0.0" in rows
    assert "SIZE 1 0.0 100.0 0.0 0 \u2013 \u2013" in rows
    assert "abdomen 0 \u2013 \u2013 \u2013 1 100.0 0.0" in rows


def test_a_property_that_no_question_has_gives_no_table():
    plain = {
        control: [replace(answer, question_type="", domain="") for answer in answers]
        for control, answers in controls().items()
    }
    assert len(Page(render_page(HEADING, plain)).all("table")) == 1


def test_a_card_is_marked_by_what_the_first_control_answered():
    page = Page(render_page(HEADING, controls()))
    assert page.cards() == [
        ["card", "closed"],
        ["card", "closed", "missed"],
        ["card", "open"],
        ["card", "open", "missed"],
    ]
    assert "50 % recalled" in page.text


def test_every_filter_says_how_many_it_shows():
    html = render_page(HEADING, controls())
    buttons = Page(html).all("button")
    assert [button["data-show"] for button in buttons] == ["all", "wrong", "closed", "open"]
    assert [button["aria-pressed"] for button in buttons] == ["true", "false", "false", "false"]
    assert re.findall(r"<span>(\d+)</span></button>", html) == ["4", "2", "2", "2"]


@pytest.mark.parametrize(
    ("max_cards", "shown"), [(0, []), (1, ["q1"]), (2, ["q1", "q3"]), (9, ["q1", "q2", "q3", "q4"])]
)
def test_cards_are_limited_and_spread_over_the_dataset(max_cards, shown):
    html = render_page(HEADING, controls(), max_cards=max_cards)
    assert re.findall(r"<span>(q\d)</span>", html) == shown
    assert (f"{len(shown)} of 4" in html) == (len(shown) < 4)
    assert "4 (2 closed, 2 open)" in html, "the limit must not touch the counts"


def test_no_text_can_become_markup():
    evil = Answer(EVIL, b"", EVIL, EVIL, EVIL, "OPEN", EVIL, EVIL)
    html = render_page(
        Heading(EVIL, EVIL, EVIL, EVIL),
        {"trained": [evil], EVIL: [evil]},
        majority=EVIL,
    )
    page = Page(html)
    assert len(page.all("script")) == 1
    assert page.all("img") == []
    assert "<script>alert" not in html
    assert 'alert("x")' in page.text, "shown as text instead"


def test_the_page_needs_no_network():
    html = render_page(HEADING, controls())
    page = Page(html)
    loaded = [
        value
        for _, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "href", "srcset", "action", "data")
    ]
    assert all(value.startswith("data:image/jpeg;base64,") for value in loaded)
    assert "@import" not in html
    assert "url(" not in html
    policies = [meta for meta in page.all("meta") if "http-equiv" in meta]
    assert policies[0]["content"].startswith("default-src 'none';")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
def test_images_are_embedded_as_thumbnails_with_a_name(mode):
    answer = replace(controls()["trained"][0], image=png((900, 600), mode))
    (image,) = Page(render_page(HEADING, {"trained": [answer]})).all("img")
    assert image["alt"] == "Image of question q1"
    decoded = base64.b64decode(image["src"].partition(",")[2])
    with Image.open(io.BytesIO(decoded)) as thumbnail:
        assert thumbnail.size == (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS * 2 // 3)


def test_a_question_without_image_or_answer_says_so():
    answer = replace(controls()["trained"][1], prediction=" \n")
    page = Page(render_page(HEADING, {"trained": [answer]}))
    assert "no image" in page.text
    assert "no answer" in page.text


def test_an_empty_dataset_gives_a_page():
    assert "0 (0 closed, 0 open)" in render_page(HEADING, {"trained": [], "untrained": []})
    assert render_results({"trained": []}) == b""


@pytest.mark.parametrize("render", [render_results, lambda answers: render_page(HEADING, answers)])
def test_controls_that_answered_other_questions_are_refused(render):
    answers = controls()
    del answers["untrained"][0]
    match = r"control='untrained': answers other questions than 'trained', 1 differ.*'q4'"
    with pytest.raises(DataError, match=match):
        render(answers)


def test_an_id_given_twice_is_refused():
    answers = controls()
    answers["trained"].append(answers["trained"][0])
    with pytest.raises(DataError, match="control='trained': 5 answers to 4 questions"):
        render_results(answers)
