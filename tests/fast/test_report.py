"""Answers in a folder become scores and a page that people read without a network."""

import base64
import io
import re
from dataclasses import replace

import pytest
from PIL import Image

from llavamed.cli.tables import show_scores
from llavamed.errors import DataError
from llavamed.evaluate.answers import ANSWERS, Answer, AnswersManifest, Overlap
from llavamed.evaluate.failures import CATEGORIES, categorize
from llavamed.evaluate.measures import RULES, measure
from llavamed.evaluate.publish import REPORT, publish_scores
from llavamed.evaluate.published import CAVEATS, PUBLISHED
from llavamed.evaluate.report import THUMBNAIL_PIXELS
from llavamed.storage.location import locate
from llavamed.storage.manifest import ScoresManifest, read, row_name, write
from tests.support.answer_files import write_answers
from tests.support.html_page import Page

EVIL = """</dd><script>alert("x")</script><img src=x onerror='alert(1)'>"""


def png(size=(900, 600), mode="L"):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


def answer(id_, question, reference, prediction, kind, **others):
    options = others.pop("options", None)
    return Answer(
        *(id_, "trained", question, (reference,), options, kind), prediction=prediction, **others
    )


def four():
    """Four questions: the model has one closed of two right, and one and a half of two open."""
    return [
        answer("q1", "Is there a mass?", "no", "No.", "CLOSED", question_type="PRES", image="a"),
        answer("q2", "Is it enlarged?", "yes", "normal", "CLOSED", question_type="SIZE", image="a"),
        answer("q3", "Which organ?", "liver", "The liver", "OPEN", domain="abdomen"),
        answer("q4", "Which findings?", "mass and effusion", "mass", "OPEN", domain="head"),
    ]


def conditions(answers):
    return [
        *answers,
        *(replace(each, condition="blank_image", prediction="yes") for each in reversed(answers)),
        *(replace(each, condition="majority", prediction="no") for each in answers),
    ]


def answers_manifest(**facts):
    known = {
        "model": "s3://runs/rad-7b/export",
        "kind": "export",
        "model_fingerprint": "model0",
        "template": "template0",
        "max_new_tokens": 64,
        "questions": "VQA-RAD",
        "prompt": "Answer briefly.",
        "split": "test",
        "questions_fingerprint": "questions0",
        "num_questions": 4,
        "conditions": ("trained", "blank_image", "majority"),
        "num_generated": 12,
        "quarantined": {},
        "overlaps": None,
        "fingerprint": "answers0",
    }
    return AnswersManifest.model_validate(known | facts)


def publish(folder, rows=None, facts=None, **options):
    """Return the scores and the text of the page."""
    where = locate(str(folder))
    write_answers(where, conditions(four()) if rows is None else rows)
    write(where, answers_manifest(**(facts or {})))
    found = publish_scores(where, title="rad-7b", **options)
    return found, (where / REPORT).read_bytes().decode()


def cards(page):
    """The classes of every card of a page."""
    return [li["class"].split() for li in page.all("li") if "card" in li.get("class", "")]


def table_rows(html):
    """Every table row as its texts."""
    rows = re.findall(r"<tr.*?</tr>", html, re.DOTALL)
    return [" ".join(Page(row).text.split()) for row in rows]


def test_the_scores_are_a_manifest_that_names_all_they_depend_on(tmp_path):
    found, _ = publish(tmp_path)
    assert read(ScoresManifest, locate(str(tmp_path))) == found
    assert found.rules == RULES
    assert (found.dataset, found.split, found.questions_fingerprint) == (
        *("VQA-RAD", "test"),
        "questions0",
    )
    assert (found.model_fingerprint, found.template) == ("model0", "template0")
    assert (found.decoding, found.prompt) == ("greedy, at most 64 tokens", "Answer briefly.")
    assert (found.num_questions, found.num_images) == (4, 3)
    assert found.scores["trained"]["closed_strict"] == 0.5
    assert found.scores["trained"]["closed_legacy"] == 0.5  # "normal" holds no "yes"
    assert found.scores["trained"]["open_strict"] == 0.75
    assert found.scores["blank_image"]["closed_strict"] == 0.5
    assert found.failures == {"right": 2, "partial": 1, "no_choice": 1}
    assert [each["question"] for each in found.samples] == [each.question for each in four()]


def test_a_template_of_ours_is_shown_by_its_name(tmp_path):
    _, html = publish(tmp_path, facts={"template_name": "vicuna_v1"})
    assert "vicuna_v1" in Page(html).text


def test_only_a_model_beside_an_untrained_one_is_called_trained():
    assert row_name("trained", ("trained", "untrained")) == "trained"
    assert row_name("trained", ("trained", "blank_image")) == "model"
    assert row_name("blank_image", ("trained", "blank_image")) == "blank_image"


def test_the_page_says_what_was_evaluated_and_by_which_rules(tmp_path):
    found, html = publish(tmp_path)
    page = Page(html)
    for fact in (
        *("rad-7b", found.model, "VQA-RAD, test", "template0", "model0", "questions0"),
        *(f"{RULES['strict']} and {RULES['legacy']}", found.decoding, "Answer briefly."),
        "4 questions of 3 images",
    ):
        assert fact in page.text


def test_the_page_shows_strict_beside_legacy_with_intervals_for_every_condition(tmp_path):
    _, html = publish(tmp_path)
    rows = table_rows(html)
    [closed] = [row for row in rows if row.startswith("Model 50.0") and row.count(" to ") == 3]
    assert re.match(r"Model 50\.0 [\d.]+ to [\d.]+ 50\.0 [\d.]+ to [\d.]+ 50\.0", closed)
    assert any(row.startswith("Blank image 50.0") for row in rows)
    assert any(row.startswith("Majority 50.0") for row in rows)
    [grounding] = [row for row in rows if row.startswith("Blank image (grounding) open")]
    assert "+75.0 [" in grounding


def test_the_page_breaks_down_by_what_questions_have(tmp_path):
    _, html = publish(tmp_path)
    rows = table_rows(html)
    assert any(row.startswith("PRES closed 1 1 100.0") for row in rows)
    assert any(row.startswith("abdomen open 1 1 100.0") for row in rows)
    assert {tag["id"] for tag in Page(html).all("h2") if tag.get("id", "").startswith("by-")} == {
        *("by-1", "by-2")
    }
    plain = [replace(each, question_type="", domain="") for each in four()]
    _, html = publish(tmp_path, plain)
    assert 'id="by-1"' not in html
    assert 'id="gains"' not in html


def test_a_card_is_marked_by_what_the_first_condition_answered(tmp_path):
    _, html = publish(tmp_path)
    page = Page(html)
    assert cards(page) == [
        ["card", "closed"],
        ["card", "closed", "missed"],
        ["card", "open"],
        ["card", "open", "missed"],
    ]
    assert "strict 50 %" in page.text
    assert CATEGORIES["no_choice"] in page.text


def test_every_filter_says_how_many_it_shows(tmp_path):
    _, html = publish(tmp_path)
    buttons = Page(html).all("button")
    assert [button["data-show"] for button in buttons] == ["all", "wrong", "closed", "open"]
    assert [button["aria-pressed"] for button in buttons] == ["true", "false", "false", "false"]
    assert re.findall(r"<span>(\d+)</span></button>", html) == ["4", "2", "2", "2"]


@pytest.mark.parametrize(
    ("num_cards", "shown"), [(0, []), (1, ["q1"]), (2, ["q1", "q3"]), (9, ["q1", "q2", "q3", "q4"])]
)
def test_cards_are_limited_and_spread_and_only_their_pictures_are_asked_for(
    tmp_path, num_cards, shown
):
    wanted = []

    def find_pictures(ids):
        wanted.append(sorted(ids))
        return {"q1": png()}

    found, html = publish(tmp_path, num_cards=num_cards, find_pictures=find_pictures)
    assert re.findall(r"<span>(q\d)</span>", html) == shown
    assert (f"{len(shown)} of 4" in html) == (len(shown) < 4)
    assert wanted == [shown]
    assert found.num_questions == 4, "the limit must not touch the counts"


def test_no_text_can_become_markup(tmp_path):
    evil = answer(EVIL, EVIL, EVIL, EVIL, "OPEN", question_type=EVIL, domain=EVIL, organ=EVIL)
    rows = [replace(evil, options={"A": EVIL}), replace(evil, options={"A": EVIL}, condition=EVIL)]
    facts = dict.fromkeys(("model", "questions", "split", "prompt", "template"), EVIL)
    overlaps = (Overlap(dataset=EVIL, num_samples=1, shared={"image": 1}),)
    _, html = publish(tmp_path, rows, facts | {"overlaps": overlaps})
    page = Page(html)
    assert len(page.all("script")) == 1
    assert page.all("img") == []
    assert "<script>alert" not in html
    assert 'alert("x")' in page.text, "shown as text instead"


def test_the_page_needs_no_network(tmp_path):
    _, html = publish(tmp_path, find_pictures=lambda ids: dict.fromkeys(ids, png()))
    page = Page(html)
    loaded = [
        value
        for _, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "href", "srcset", "action", "data")
    ]
    assert len(loaded) == 4
    assert all(value.startswith("data:image/jpeg;base64,") for value in loaded)
    assert "@import" not in html
    assert "url(" not in html
    policies = [meta for meta in page.all("meta") if "http-equiv" in meta]
    assert policies[0]["content"].startswith("default-src 'none';")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
def test_images_are_embedded_as_thumbnails_with_a_name(tmp_path, mode):
    _, html = publish(tmp_path, find_pictures=lambda _: {"q1": png((900, 600), mode)})
    (image,) = Page(html).all("img")
    assert image["alt"] == "Image of question q1"
    decoded = base64.b64decode(image["src"].partition(",")[2])
    with Image.open(io.BytesIO(decoded)) as thumbnail:
        assert thumbnail.size == (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS * 2 // 3)


def test_a_question_without_image_or_answer_says_so(tmp_path):
    _, html = publish(tmp_path, [replace(four()[1], prediction=" \n")])
    page = Page(html)
    assert "no image" in page.text
    assert "no answer" in page.text


@pytest.mark.parametrize(
    ("overlaps", "said"),
    [
        (None, "Unknown: a training set of the model is not recorded or is gone."),
        ((), "No training set is known to this run."),
        (
            (Overlap(dataset="rad", num_samples=1793, shared={"image": 1793, "pair": 12}),),
            "rad 1,793 1,793 12",
        ),
    ],
)
def test_what_the_model_has_seen_stands_beside_the_scores(tmp_path, overlaps, said):
    found, html = publish(tmp_path, facts={"overlaps": overlaps})
    assert said in " ".join(Page(html).text.split())
    if overlaps:
        assert found.overlaps == {"rad": {"samples": 1793, "image": 1793, "pair": 12}}


def test_the_published_table_stands_beside_ours_with_its_caveats(tmp_path):
    _, html = publish(tmp_path)
    rows, text = table_rows(html), Page(html).text
    assert f"rad-7b, {RULES['legacy']} VQA-RAD 66.7 50.0" in rows
    assert len(PUBLISHED) == 4
    assert "LLaVA-Med from Vicuna VQA-RAD 64.4 82.0" in rows
    assert all(caveat in text for caveat in CAVEATS)


def test_answers_without_their_manifest_are_not_scored(tmp_path):
    write_answers(locate(str(tmp_path)), four())
    with pytest.raises(DataError, match=r"has no answers\.json, so its answers are not complete"):
        publish_scores(locate(str(tmp_path)), title="x")


def test_nothing_is_written_once_another_attempt_has_taken_over(tmp_path):
    def taken():
        raise DataError("taken over")

    with pytest.raises(DataError, match="taken over"):
        publish(tmp_path, before_writing=taken)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.json", ANSWERS]


@pytest.mark.parametrize(
    ("prediction", "reference", "kind", "changes", "category"),
    [
        ("Yes", "yes", "CLOSED", {}, "right"),
        ("Yes", "no", "CLOSED", {}, "yes_for_no"),
        ("None seen", "yes", "CLOSED", {}, "no_for_yes"),
        ("", "yes", "CLOSED", {}, "empty"),
        ("I must not say", "yes", "CLOSED", {"outcome": "refused"}, "refused"),
        ("Maybe", "yes", "CLOSED", {}, "no_choice"),
        ("B", "A", "CLOSED", {"options": {"A": "CT", "B": "MRI"}}, "other_option"),
        ("right", "left", "CLOSED", {}, "opposite"),
        ("right lobe", "left lobe", "OPEN", {}, "opposite"),
        ("spleen", "liver", "OPEN", {}, "other"),
        ("The image shows the", "liver", "OPEN", {"outcome": "cut_off"}, "cut_off"),
        ("", "liver", "OPEN", {"outcome": "cut_off"}, "cut_off"),  # all tokens went into thought
        ("The liver, which", "liver", "OPEN", {"outcome": "cut_off"}, "right"),
        ("mass", "mass and cyst", "OPEN", {}, "partial"),
    ],
)
def test_answers_are_sorted_by_how_they_fail(prediction, reference, kind, changes, category):
    given = answer("1", "?", reference, prediction, kind, **changes)
    values = {name: float(found[0]) for name, found in measure([given]).items()}
    assert categorize(given, values) == category


def test_the_terminal_shows_words_of_a_model_that_look_like_markup(tmp_path, capsys):
    four_answers = [replace(each, prediction="[/INST] :lung: [red]") for each in four()]
    found, _ = publish(tmp_path, conditions(four_answers))
    show_scores(found)
    assert capsys.readouterr().out.count("[/INST]") == len(found.samples)
