"""A judge behind an endpoint scores both answers in both orders, whatever the endpoint does."""

import json
import re

import pytest
from typer.testing import CliRunner

from llavamed.cli.evaluate import app
from llavamed.cli.options import console
from llavamed.config.endpoint import Endpoint
from llavamed.errors import ConfigError, DataError, EndpointError, LeaseError
from llavamed.evaluate.answers import ANSWERS, Answer
from llavamed.evaluate.chat import read_chat
from llavamed.evaluate.judge import PROMPT_HASH, judge, relative_scores, requests_of
from llavamed.evaluate.judgement import JUDGEMENTS, JudgementManifest, write_judgement
from llavamed.storage import lease
from llavamed.storage.location import locate
from llavamed.storage.manifest import read
from tests.support.answer_files import write_answers
from tests.support.chat_endpoint import chat_endpoint

DOMAINS = ("chest_xray", "mri", "histology", "gross", "ct_scan")
NUM_IMAGES, NUM_QUESTIONS = 50, 193


def asked(number):
    """A question in the form of LLaVA-Med's file; 143 of 193 are conversation."""
    image = number % NUM_IMAGES
    return {
        "question_id": number,
        "image": f"{image}_F1.jpg",
        "pair_id": f"{image}_F1",
        "text": f"What does part {number} of the figure show?\n<image>",
        "gpt4_answer": f"Part {number} shows a nodule.",
        "fig_caption": f"Figure {image}. A nodule {{marked}} by an arrow.",
        "in_text_mention": [{"tokens": f"Figure {image} shows a nodule.", "entities": []}],
        "domain": {name: name == DOMAINS[image % 5] for name in DOMAINS},
        "type": "conversation" if number < 143 else "detailed_description",
        "fig_label": f"F{image}",
    }


def write(folder, questions, answers):
    for name, rows in (("questions", questions), ("answers", answers)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    return locate(str(folder / "questions.jsonl")), locate(str(folder / "answers.jsonl"))


def items(folder, count=NUM_QUESTIONS):
    questions = [asked(number) for number in range(count)]
    answers = [{"question_id": number, "text": f"I see {number}."} for number in range(count)]
    return read_chat(*write(folder, questions, answers[::-1]))


def verdict(body, reference=8, candidate=4, lead=0):
    """Score the reference and the candidate, and the answer in the first place by `lead` more."""
    text = body["messages"][-1]["content"]
    first = text.partition("First answer:\n")[2]
    is_reference = first.startswith("Part")
    scores = (reference, candidate) if is_reference else (candidate, reference)
    return {
        "content": json.dumps(
            {"reason": "It is so.", "first": scores[0] + lead, "second": scores[1]}
        )
    }


@pytest.fixture
def endpoint():
    with chat_endpoint() as there:
        there.say = verdict
        yield there


def ask_judge(endpoint, folder, given, **settings):
    at = Endpoint(url=endpoint.url, model="judge", **settings)
    return judge(given, at, str(folder / "cache"), max_tokens=64), at


def test_the_paper_s_set_is_judged_in_both_orders_by_type_and_domain(endpoint, tmp_path):
    found, at = ask_judge(endpoint, tmp_path, items(tmp_path))
    assert len(endpoint.bodies) == 2 * NUM_QUESTIONS
    manifest = write_judgement(locate(str(tmp_path / "out")), found, at)
    assert manifest == read(JudgementManifest, locate(str(tmp_path / "out")))
    assert (manifest.num_questions, manifest.num_images) == (NUM_QUESTIONS, NUM_IMAGES)
    counts = {
        by: {group.name: group.num_judged for group in groups}
        for by, groups in manifest.scores.items()
    }
    assert counts["type"] == {"conversation": 143, "detailed_description": 50}
    assert sum(counts["domain"].values()) == NUM_QUESTIONS
    assert set(counts["domain"]) == set(DOMAINS)
    for groups in manifest.scores.values():
        assert all(group.score.value == 50 for group in groups)
    assert (manifest.model, manifest.prompt_hash) == ("judge", PROMPT_HASH)
    assert manifest.answered_by == {"judge-2026": 2 * NUM_QUESTIONS}
    assert manifest.first_at <= manifest.last_at
    lines = (tmp_path / "out" / JUDGEMENTS).read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [str(n) for n in range(NUM_QUESTIONS)]


def test_the_judge_reads_the_truth_and_never_the_names_of_those_who_answered(endpoint, tmp_path):
    ask_judge(endpoint, tmp_path, items(tmp_path, 1))
    for body in endpoint.bodies:
        system, user = (turn["content"] for turn in body["messages"])
        assert "Figure 0. A nodule {marked} by an arrow." in user
        assert "- Figure 0 shows a nodule." in user
        assert "<image>" not in user
        assert not re.search("reference|candidate|gpt|model", system + user, re.IGNORECASE)
        assert body["temperature"] == 0
        schema = body["response_format"]["json_schema"]["schema"]
        assert list(schema["properties"]) == ["reason", "first", "second"]


@pytest.mark.parametrize("lead", [-2, 0, 2])
def test_a_preference_for_a_place_is_measured_and_cancels(endpoint, tmp_path, lead):
    endpoint.say = lambda body: verdict(body, reference=5, candidate=5, lead=lead)
    found, at = ask_judge(endpoint, tmp_path, items(tmp_path, 6))
    assert {each.relative for each in found.items} == {1.0}
    assert write_judgement(locate(str(tmp_path)), found, at).lead == lead


def test_without_structured_output_the_prompt_asks_for_the_form(endpoint, tmp_path):
    ask_judge(endpoint, tmp_path, items(tmp_path, 1), json_schema=False)
    assert all("response_format" not in body for body in endpoint.bodies)
    assert all("JSON schema" in body["messages"][-1]["content"] for body in endpoint.bodies)


@pytest.mark.parametrize(
    "said",
    [
        "8 4",
        "",
        '{"first": 8, "second": 4}',
        '{"reason": "", "first": 0, "second": 4}',
        '{"reason": "", "first": 11, "second": 4}',
        '{"reason": "", "first": 7.5, "second": 4}',
        '{"reason": "", "first": "8", "second": 4}',
        '{"reason": "", "first": true, "second": 4}',
        '{"reason": "", "first": 8, "second": 4, "third": 1}',
        '{"reason": "", "first": 8, "second": 4} and more',
        '{"reason": "", "first": 8, "sec',
    ],
)
def test_a_verdict_of_another_form_is_counted_and_never_scored(endpoint, tmp_path, said):
    endpoint.say = lambda body: {"content": said}
    found, at = ask_judge(endpoint, tmp_path, items(tmp_path, 3))
    manifest = write_judgement(locate(str(tmp_path)), found, at)
    assert manifest.outcomes == {"malformed": 6}
    assert manifest.num_repaired == 6
    [everything] = manifest.scores["all"]
    assert (everything.num_judged, everything.num_questions, everything.score) == (0, 3, None)
    assert manifest.lead is None


def test_an_item_counts_only_when_both_orders_were_judged(endpoint, tmp_path):
    def refuse_one(body):
        text = body["messages"][-1]["content"]
        if "First answer:\nI see 1." in text:
            return {"content": None, "refusal": "I do not judge this."}
        return verdict(body)

    endpoint.say = refuse_one
    found, _ = ask_judge(endpoint, tmp_path, items(tmp_path, 3))
    assert [each.relative for each in found.items] == [0.5, None, 0.5]
    assert found.outcomes == {"answered": 5, "refused": 1}
    assert relative_scores(found.items)["all"][0].num_judged == 2


def test_what_may_pass_is_tried_again_and_nothing_is_asked_twice(endpoint, tmp_path):
    given = items(tmp_path, 10)
    endpoint.fail("429", "500", "503", "cut", "reset", "200 html", times=2)
    endpoint.retry_after = "0"
    first, _ = ask_judge(endpoint, tmp_path, given, max_in_flight=4)
    assert first.outcomes == {"answered": 20}
    assert len(endpoint.bodies) == 32
    second, _ = ask_judge(endpoint, tmp_path, given)
    assert len(endpoint.bodies) == 32
    assert [each.relative for each in second.items] == [each.relative for each in first.items]
    assert (second.first_at, second.last_at) == (first.first_at, first.last_at)


def test_what_does_not_pass_is_a_row_and_the_rest_is_judged(endpoint, tmp_path):
    endpoint.fail("400", "413")
    found, _ = ask_judge(endpoint, tmp_path, items(tmp_path, 4), max_in_flight=1)
    assert found.outcomes == {"answered": 6, "failed": 2}


def test_the_cost_is_capped_and_what_was_paid_for_is_kept(endpoint, tmp_path):
    given = items(tmp_path, 10)
    prices = {"prices": {"input": 100, "output": 100}, "max_in_flight": 1}
    [most] = {
        request.most_prompt_tokens(Endpoint(url=endpoint.url, model="judge"))
        for request in requests_of(given[:1], 64)
    }
    few = (most + 64 + 5 * 12) / 10_000
    with pytest.raises(EndpointError, match=r"max_cost=.* are spent, .* are set aside"):
        ask_judge(endpoint, tmp_path, given, max_cost=few, **prices)
    paid = len(endpoint.bodies)
    assert 0 < paid < 20
    found, _ = ask_judge(endpoint, tmp_path, given, max_cost=1, **prices)
    assert len(endpoint.bodies) == 20
    assert found.cost == pytest.approx(20 * 12 / 10_000)


def test_a_judge_that_refuses_everyone_ends_the_command(endpoint, tmp_path):
    endpoint.fail("401", times=2)
    with pytest.raises(EndpointError, match=r"model judge answers 401 .* to every request"):
        ask_judge(endpoint, tmp_path, items(tmp_path, 2))


def test_a_judge_that_is_down_ends_the_command(tmp_path):
    at = Endpoint(url="http://127.0.0.1:9/v1", model="judge", attempts=1)
    message = (
        r"judge=judge: all 2 requests to http://127.0.0.1:9/v1 failed \(.+\); nothing is judged; "
        "start the same command again when it answers"
    )
    with pytest.raises(EndpointError, match=message):
        judge(items(tmp_path, 1), at, str(tmp_path / "cache"), max_tokens=64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": None}, r"questions\.jsonl:1: question=None is not text|text=None is not text"),
        ({"fig_caption": 7}, r"questions\.jsonl:1: fig_caption=7 is not text; write it in quotes"),
        ({"domain": 7}, r"questions\.jsonl:1: domain=7 is not a name; write one"),
        ({"in_text_mention": 7}, r"questions\.jsonl:1: mentions=7 is not a list of texts"),
        ({"question_id": None}, r"questions\.jsonl:1: id=None is not text or a number"),
        ({"question_id": "other"}, r"answers\.jsonl: lacks answers to 1 of 1 questions"),
    ],
)
def test_questions_that_cannot_be_judged_are_refused(tmp_path, changes, message):
    files = write(tmp_path, [asked(0) | changes], [{"question_id": 0, "text": "So."}])
    with pytest.raises(DataError, match=message):
        read_chat(*files)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], r"answers\.jsonl: holds no object; write one per line"),
        ([[1]], r"answers\.jsonl:1: is a list; write one JSON object per line"),
        ([{"question_id": 0}], r"answers\.jsonl:1: lacks prediction or text; add it"),
        ([{"question_id": 0, "text": "a"}] * 2, r"answers\.jsonl:2: id=0 is also the id of line 1"),
        (
            [{"question_id": n, "text": "a"} for n in (0, 9)],
            r"has answers to 1 questions that are not in .*, the first is '9'",
        ),
    ],
)
def test_answers_that_do_not_belong_to_the_questions_are_refused(tmp_path, answers, message):
    files = write(tmp_path, [asked(0)], answers)
    with pytest.raises(DataError, match=message):
        read_chat(*files)


def test_files_that_are_absent_or_no_json_are_refused(tmp_path):
    questions, answers = write(tmp_path, [asked(0)], [])
    (tmp_path / "answers.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"answers\.jsonl:1: is not JSON"):
        read_chat(questions, answers)
    with pytest.raises(DataError, match=r"absent\.jsonl: no such file; check the path"):
        read_chat(locate(str(tmp_path / "absent.jsonl")), answers)


def test_the_command_prints_the_table_and_its_estimate_first(endpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "width", 200)
    items(tmp_path, 10)
    at = tmp_path / "judge.yaml"
    at.write_text(f"url: {endpoint.url}\nmodel: judge\nprices: {{input: 1, output: 2}}\n")
    command = [
        *("judge", str(tmp_path / "questions.jsonl"), str(tmp_path / "answers.jsonl")),
        *("--endpoint", str(at), "--output", str(tmp_path / "out")),
    ]
    planned = CliRunner().invoke(app, [*command, "--estimate"])
    assert re.search(r"20 requests, about [\d,]+ tokens of prompts and at most", planned.output)
    assert endpoint.bodies == []
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    for text in ("50.0 [50.0,50.0]", "20 answered; 0 repaired", "domain: mri", PROMPT_HASH):
        assert text in found.output
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    with lease.hold_lease(locate(str(tmp_path / "out")), hint="wait"):
        second = CliRunner().invoke(app, command)
    assert isinstance(second.exception, LeaseError)
    assert str(second.exception).endswith("or set --output to another folder")


def test_answers_of_an_evaluation_are_judged_by_its_folder(tmp_path):
    expected = items(tmp_path, 3)
    said = [
        Answer(item.id, condition, item.question, ("x",), None, "OPEN", prediction=prediction)
        for condition in ("trained", "blank_image")
        for item in expected
        for prediction in [item.candidate if condition == "trained" else "nothing"]
    ]
    folder = locate(str(tmp_path / "evaluation"))
    write_answers(folder, said)
    questions = locate(str(tmp_path / "questions.jsonl"))
    for place in (folder, folder / ANSWERS):
        assert read_chat(questions, place) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- url", r"endpoint=.*judge\.yaml: must be a mapping with some of url, model"),
        ("url: [", r"endpoint=.*judge\.yaml: not valid YAML: line 1"),
        ("url: http://x/v1\nmodel: m\nmodle: n", r"modle: unknown key; did you mean 'model'\?"),
        ("model: m", r"url: must be set; add it to the file"),
    ],
)
def test_the_file_of_the_endpoint_is_read_like_a_config(tmp_path, text, message):
    at = tmp_path / "judge.yaml"
    at.write_text(text)
    found = CliRunner().invoke(app, ["judge", "q", "a", "--endpoint", str(at), "--output", "o"])
    assert isinstance(found.exception, ConfigError)
    with pytest.raises(ConfigError, match=message):
        raise found.exception
