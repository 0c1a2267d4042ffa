"""The client against a real HTTP server with the faults of the protocol."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import BaseModel

from llavamed.config.endpoint import Endpoint, Prices
from llavamed.errors import EndpointError
from llavamed.llm.answer import AnswerCache
from llavamed.llm.client import DOWN_AFTER, EndpointClient, ask
from llavamed.llm.request import Image, Message, Request
from tests.support.chat_endpoint import MAY_PASS
from tests.support.llm_answers import answers, question

PRICES = Prices(input=1_000_000, output=1_000_000)
"""One a token."""


class Verdict(BaseModel):
    right: bool
    reason: str


RIGHT = '{"right": true, "reason": "same side"}'


def test_an_answer_says_where_it_is_from(endpoint, tmp_path):
    (answer,) = answers(endpoint, tmp_path, question(), prices=PRICES)
    assert (answer.outcome, answer.text, answer.status) == ("answered", "Yes.", 200)
    assert (answer.model, answer.system_fingerprint) == ("judge-2026", "fp_1")
    assert answer.usage.prompt_tokens == 10
    assert not answer.usage.is_estimated
    assert answer.cost == 12
    assert answer.received_at
    assert answer.response_id == "chatcmpl-1"


@pytest.mark.parametrize("fault", MAY_PASS)
def test_what_may_pass_is_tried_again(endpoint, tmp_path, fault):
    endpoint.fail(fault, times=2)
    timeout = 0.3 if fault == "hang" else 60
    settings = {"attempts": 20 if fault == "hang" else 3, "timeout_seconds": timeout}
    (answer,) = answers(endpoint, tmp_path, question(), **settings)
    assert (answer.outcome, answer.text) == ("answered", "Yes.")
    assert answer.attempts == len(endpoint.bodies)
    assert answer.attempts >= 3
    assert len({json.dumps(body) for body in endpoint.bodies}) == 1


@pytest.mark.parametrize("fault", MAY_PASS)
def test_what_does_not_pass_in_time_is_a_row(endpoint, tmp_path, fault):
    endpoint.fail(fault, times=2)
    timeout = 0.3 if fault == "hang" else 60
    (answer,) = answers(endpoint, tmp_path, question(), attempts=2, timeout_seconds=timeout)
    assert (answer.outcome, answer.attempts) == ("failed", 2)
    assert answer.status == (int(fault[:3]) if fault[0].isdigit() else None)
    assert answer.detail
    assert list(tmp_path.rglob("*.json")) == []


@pytest.mark.parametrize("fault", ["400", "413", "422"])
def test_a_request_that_is_refused_is_a_row_at_once_and_the_others_go_on(endpoint, tmp_path, fault):
    endpoint.fail(fault)
    found = answers(endpoint, tmp_path, *map(question, "abc"), max_in_flight=1)
    assert sorted(answer.outcome for answer in found) == ["answered", "answered", "failed"]
    (failed,) = (answer for answer in found if answer.outcome == "failed")
    assert (failed.status, failed.attempts) == (int(fault), 1)
    assert failed.code
    assert len(endpoint.bodies) == 3


def test_a_router_that_passes_an_error_on_is_read_for_the_reason(endpoint, tmp_path):
    endpoint.fail("provider")
    (answer,) = answers(endpoint, tmp_path, question())
    assert (answer.outcome, answer.detail) == ("failed", "the schema is too deep")


@pytest.mark.parametrize("fault", ["filter", "flagged"])
def test_a_prompt_that_a_filter_stops_is_refused_and_no_sign_of_a_fault(endpoint, tmp_path, fault):
    """Pictures of wounds make filters stop many prompts in a row, Azure by 400, OpenRouter by 403.

    None of them is kept, because it is not paid for, and another endpoint may answer.
    """
    endpoint.fail(fault, times=DOWN_AFTER + 1)
    requests = [question(str(number)) for number in range(DOWN_AFTER + 2)]
    found = answers(endpoint, tmp_path, *requests, max_in_flight=1)
    assert Counter(each.outcome for each in found) == {"refused": DOWN_AFTER + 1, "answered": 1}
    refused = next(each for each in found if each.outcome == "refused")
    assert (refused.code, refused.attempts, refused.text) == ("content_filter", 1, "")
    assert refused.detail
    assert len(list(tmp_path.rglob("*.json"))) == 1


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        ("401", "answers 401 .*; check the key in the environment variable that api_key_env names"),
        ("402", "answers 402 .*; the account cannot pay; add to its balance"),
        ("403", "answers 403 .*; check what the key and its account allow"),
        ("404", "answers 404 .*; check url, which ends in the API's version, and model"),
        ("no quota", "answers 429 .*; add to the account's balance or limits"),
        ("no balance", "answers 429 .*; add to the account's balance or limits"),
        ("no max_tokens", "answers 400 .*; where that is max_tokens, set limit_key to max_comp.*"),
        ("no temperature", "answers 400 .*; where that is temp.*, set takes_temperature to false"),
        ("any temperature", "answers 400 .*; where that is temp.*, set takes_temperature to false"),
    ],
)
def test_what_is_wrong_with_every_request_ends_all(endpoint, tmp_path, fault, advice):
    endpoint.fail(fault, times=100)
    with pytest.raises(EndpointError, match=f"^url=.*: model judge {advice}$"):
        answers(endpoint, tmp_path, *map(question, "abcdefgh"), max_in_flight=1)
    assert len(endpoint.bodies) <= 3


def test_an_endpoint_that_is_down_is_not_asked_for_ever(endpoint, tmp_path):
    endpoint.fail("503", times=1000)
    requests = [question(str(number)) for number in range(200)]
    with pytest.raises(EndpointError, match=f"{DOWN_AFTER} requests in a row failed, the last by"):
        answers(endpoint, tmp_path, *requests, max_in_flight=1, attempts=1)
    assert len(endpoint.bodies) <= DOWN_AFTER + 2


def test_an_endpoint_that_answers_now_and_then_is_not_down(endpoint, tmp_path):
    endpoint.fail(*["400"] * (DOWN_AFTER - 1), None, times=2)
    requests = [question(str(number)) for number in range(2 * DOWN_AFTER)]
    found = answers(endpoint, tmp_path, *requests, max_in_flight=1)
    assert sum(answer.outcome == "answered" for answer in found) == 2


def test_nobody_listening_is_a_row_that_costs_nothing(tmp_path):
    nobody = SimpleNamespace(url="http://127.0.0.1:9/v1")
    once = question().most_prompt_tokens(Endpoint(url=nobody.url, model="judge")) + 16
    settings = {"prices": PRICES, "max_cost": once * 1.5, "attempts": 4}
    (answer,) = answers(nobody, tmp_path, question(), **settings)
    assert (answer.outcome, answer.code, answer.attempts) == ("failed", "connection", 4)


def test_retry_after_is_waited_for_by_all_that_follow(endpoint, tmp_path, monkeypatch):
    waits = []
    sleep = asyncio.sleep

    async def note(seconds, *rest):
        waits.append(seconds)
        await sleep(0, *rest)

    endpoint.retry_after = "500"
    endpoint.fail("429")
    monkeypatch.setattr(asyncio, "sleep", note)
    found = answers(endpoint, tmp_path, *map(question, "abc"), max_in_flight=1)
    assert {answer.outcome for answer in found} == {"answered"}
    # The one that was told so waits before its second attempt, and then all three do.
    assert sum(seconds > 300 for seconds in waits) == 4


def test_an_error_that_comes_as_success_is_shown(endpoint, tmp_path):
    endpoint.fail("200 html")
    (answer,) = answers(endpoint, tmp_path, question(), attempts=1)
    assert answer.detail == "the body is not a chat completion: <html>Bad gateway</html>"


@pytest.mark.parametrize("reason", ["abort", "error", "insufficient_system_resource"])
def test_an_answer_that_the_engine_gave_up_is_asked_for_again(endpoint, tmp_path, reason):
    """Engines send what there is of it with status 200."""
    endpoint.say = lambda body: {"finish_reason": reason if len(endpoint.bodies) == 1 else "stop"}
    (answer,) = answers(endpoint, tmp_path, question(), attempts=2)
    assert (answer.outcome, answer.attempts) == ("answered", 2)
    endpoint.say = lambda body: {"finish_reason": reason}
    (answer,) = answers(endpoint, tmp_path, question("another"), attempts=1)
    assert (answer.outcome, answer.code) == ("failed", "given_up")
    assert answer.detail == "the engine gave the answer up"


def test_a_wait_of_hours_is_a_failure(endpoint, tmp_path):
    endpoint.retry_after = "86400"
    endpoint.fail("429")
    (answer,) = answers(endpoint, tmp_path, question())
    assert (answer.outcome, answer.status, answer.attempts) == ("failed", 429, 1)
    assert "asks to wait 86400 s, longer than 600" in answer.detail


def test_as_many_requests_as_allowed_are_in_flight_and_never_more(endpoint, tmp_path):
    endpoint.barrier = threading.Barrier(5)
    requests = [question(str(number)) for number in range(20)]
    found = answers(endpoint, tmp_path, *requests, max_in_flight=5)
    assert {answer.outcome for answer in found} == {"answered"}
    assert endpoint.most_in_flight == 5


def test_equal_requests_are_paid_for_once(endpoint, tmp_path):
    found = answers(endpoint, tmp_path, *(question() for _ in range(12)), max_in_flight=4)
    assert len(endpoint.bodies) == 1
    assert sum(not answer.is_cached for answer in found) == 1
    (again,) = answers(endpoint, tmp_path, question())
    assert again.is_cached
    assert len(endpoint.bodies) == 1


def test_what_a_killed_process_was_answered_is_not_asked_again(endpoint, tmp_path):
    script = """
import asyncio, sys
from tests.fast.test_llm_client import Endpoint, EndpointClient, ask, question
async def work():
    here = Endpoint(url=sys.argv[1], model="judge", max_in_flight=4)
    async with EndpointClient(here, sys.argv[2]) as c:
        async for _ in ask(c, (question(f"<{n}>") for n in range(30))):
            pass
asyncio.run(work())
"""
    endpoint.hold = lambda text: any(f"<{number}>" in text for number in range(11, 30))
    command = [sys.executable, "-c", script, endpoint.url, str(tmp_path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}) as process:
        while process.poll() is None and len(list(tmp_path.rglob("*.json"))) < 11:
            time.sleep(0.05)
        process.kill()
    assert len(list(tmp_path.rglob("*.json"))) == 11
    endpoint.hold = lambda text: False
    found = answers(endpoint, tmp_path, *(question(f"<{number}>") for number in range(30)))
    assert sum(answer.is_cached for answer in found) == 11
    assert set(endpoint.answered.values()) == {1}
    assert len(endpoint.answered) == 30


@pytest.mark.parametrize(
    ("said", "outcome", "text"),
    [
        ({"content": None, "refusal": "I cannot help."}, "refused", "I cannot help."),
        ({"content": "", "finish_reason": "content_filter"}, "refused", ""),
        ({"content": None, "finish_reason": "SAFETY"}, "refused", ""),
        ({"content": None, "finish_reason": "content_filter: RECITATION"}, "refused", ""),
        ({"content": "It is a", "finish_reason": "length"}, "cut_off", "It is a"),
        ({"content": "It is a", "finish_reason": "model_length"}, "cut_off", "It is a"),
        ({"content": "It is a", "finish_reason": "MAX_TOKENS"}, "cut_off", "It is a"),
        ({"content": ""}, "malformed", ""),
        ({"content": None}, "malformed", ""),
        ({"content": [{"type": "text", "text": "No."}]}, "answered", "No."),
        ({"content": "half \ud83d a pair"}, "answered", "half ? a pair"),
    ],
)
def test_every_way_to_answer_has_an_outcome_and_is_paid_once(
    endpoint, tmp_path, said, outcome, text
):
    endpoint.say = lambda body: said
    for is_cached in (False, True):
        (answer,) = answers(endpoint, tmp_path, question())
        assert (answer.outcome, answer.text, answer.is_cached) == (outcome, text, is_cached)
    assert len(endpoint.bodies) == 1


@pytest.mark.parametrize(
    "text",
    [
        RIGHT,
        f"```json\n{RIGHT}\n```",
        f"```JSON {RIGHT}```",
        f"Here it is:\n\n```\n{RIGHT}\n```\nAsk for more at any time.",
        f"<think>\nIs it {{right}}?\n```json\n{{}}\n```\n</think>\n\n{RIGHT}",
        f"It may be.\n</think>\n```json\n{RIGHT}\n```",
    ],
)
@pytest.mark.parametrize("json_schema", [True, False])
def test_an_answer_that_fits_its_schema_is_a_value(endpoint, tmp_path, text, json_schema):
    endpoint.say = lambda body: {"content": text}
    (answer,) = answers(endpoint, tmp_path, question(schema=Verdict), json_schema=json_schema)
    assert answer.value == Verdict(right=True, reason="same side")
    assert not answer.is_repaired
    asked = endpoint.bodies[0]
    assert ("response_format" in asked) == json_schema
    assert ('"additionalProperties":false' in asked["messages"][-1]["content"]) != json_schema


def test_no_temperature_is_sent_to_a_model_that_takes_none(endpoint, tmp_path):
    answers(endpoint, tmp_path, question())
    answers(endpoint, tmp_path, question(temperature=0.5))
    answers(endpoint, tmp_path, question(temperature=0.5), takes_temperature=False)
    assert [body.get("temperature") for body in endpoint.bodies] == [0.0, 0.5, None]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_an_answer_among_the_thoughts_is_an_answer(endpoint, tmp_path, name):
    endpoint.say = lambda body: {"content": None, name: RIGHT}
    (answer,) = answers(endpoint, tmp_path, question(schema=Verdict))
    assert answer.value == Verdict(right=True, reason="same side")
    assert not answer.is_repaired
    endpoint.say = lambda body: {"content": None, name: "It may be right."}
    (answer,) = answers(endpoint, tmp_path, question("again", schema=Verdict))
    assert (answer.outcome, answer.text) == ("malformed", "")


@pytest.mark.parametrize("broken", ["The answer is right.", '{"right": true', '{"right": 7}', " "])
def test_a_malformed_answer_is_repaired_once(endpoint, tmp_path, broken):
    endpoint.say = lambda body: {"content": broken if len(body["messages"]) == 1 else RIGHT}
    (answer,) = answers(endpoint, tmp_path, question(schema=Verdict), prices=PRICES)
    assert answer.value == Verdict(right=True, reason="same side")
    assert (answer.is_repaired, answer.attempts, answer.cost) == (True, 2, 24)
    answers(endpoint, tmp_path, question(schema=Verdict))
    assert len(endpoint.bodies) == 2
    AnswerCache(str(tmp_path)).remove(answer.key)
    assert not list(tmp_path.rglob("*.json"))


def test_an_answer_that_cannot_be_repaired_is_counted(endpoint, tmp_path):
    endpoint.say = lambda body: {"content": '{"right": "perhaps"}'}
    (answer,) = answers(endpoint, tmp_path, question(schema=Verdict))
    assert (answer.outcome, answer.is_repaired, answer.value) == ("malformed", True, None)
    assert "right: Input should be a valid boolean" in answer.detail
    assert len(endpoint.bodies) == 2


def test_tokens_that_nobody_counted_are_estimated_and_said_to_be(endpoint, tmp_path):
    endpoint.say = lambda body: {"content": "x" * 40, "usage": None}
    (answer,) = answers(endpoint, tmp_path, question(), prices=PRICES)
    assert answer.usage.is_estimated
    assert answer.usage.completion_tokens == 10
    assert answer.cost > 10


@pytest.mark.parametrize("usage", ["as much as can be", None])
def test_no_request_is_sent_that_could_pass_the_budget(endpoint, tmp_path, usage):
    def most(body):
        prompt, answer = len(body["messages"][0]["content"]), body["max_tokens"]
        counts = {"prompt_tokens": prompt, "completion_tokens": answer}
        return {"usage": usage and counts}

    endpoint.say = most
    requests = [question("word " * (number + 1), max_tokens=50) for number in range(40)]
    with pytest.raises(EndpointError, match=r"^max_cost=2000: .* the next may cost .*; raise max"):
        answers(endpoint, tmp_path, *requests, prices=PRICES, max_cost=2000, max_in_flight=4)
    billed = sum(len(body["messages"][0]["content"]) + 50 for body in endpoint.bodies)
    assert 0 < billed <= 2000
    assert len(list(tmp_path.rglob("*.json"))) == len(endpoint.bodies)
    assert len(endpoint.bodies) < 40


def test_a_lost_answer_counts_as_paid(endpoint, tmp_path):
    endpoint.fail("cut", times=100)
    bound = question().most_prompt_tokens(Endpoint(url=endpoint.url, model="judge")) + 16
    with pytest.raises(EndpointError, match="max_cost"):
        answers(endpoint, tmp_path, question(), prices=PRICES, max_cost=bound * 2.5, attempts=9)
    assert len(endpoint.bodies) == 2


def test_a_picture_travels_as_a_data_uri_and_is_not_kept(endpoint, tmp_path):
    parts = ("What is it?", Image(b"\x89PNG bytes", "image/png"))
    answers(endpoint, tmp_path, Request((Message("user", parts),), 16))
    sent = endpoint.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in sent] == ["text", "image_url"]
    assert sent[1]["image_url"]["url"] == "data:image/png;base64,iVBORyBieXRlcw=="


def test_text_that_is_no_unicode_is_a_row(endpoint, tmp_path):
    (answer,) = answers(endpoint, tmp_path, question("\ud800"))
    assert (answer.outcome, answer.code) == ("failed", "text")
    assert endpoint.bodies == []


def test_requests_are_read_as_places_become_free(endpoint, tmp_path):
    read = []

    def source():
        for number in range(100):
            read.append(number)
            yield question(str(number))

    async def first():
        place = Endpoint(url=endpoint.url, model="judge", max_in_flight=2)
        async with EndpointClient(place, str(tmp_path)) as client:
            found = ask(client, source())
            await anext(found)
            await found.aclose()

    asyncio.run(first())
    assert len(read) <= 4
