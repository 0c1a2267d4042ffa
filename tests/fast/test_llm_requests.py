"""What is pure of the client: keys, schemas, prices, budget and pace."""

import hashlib
import json
import math
from dataclasses import replace
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from llavamed.config.endpoint import Endpoint, Prices
from llavamed.errors import EndpointError
from llavamed.llm.answer import usage_of
from llavamed.llm.cost import Budget, Usage, cost, estimate
from llavamed.llm.pace import Pace, retry_after_seconds
from llavamed.llm.request import Image, Message, Request, canonical_json, strict

PLACE = Endpoint(url="http://127.0.0.1:1/v1", model="judge")
PICTURE = Image(b"bytes of a picture", "image/png")
REQUEST = Request((Message("system", ("Be brief.",)), Message("user", ("Why?", PICTURE))), 64)


class Part(BaseModel):
    default: str = "a property, not a keyword"


class Whole(BaseModel):
    parts: list[Part]
    first: Part = Field(default_factory=Part, description="beside a reference")
    score: float | None = None


class Other(Whole):
    more: int


CHANGES = {
    "model": (REQUEST, {"model": "another"}),
    "words": (replace(REQUEST, messages=(*REQUEST.messages[:1], Message("user", ("W?",)))), {}),
    "order": (
        replace(REQUEST, messages=(REQUEST.messages[0], Message("user", (PICTURE, "Why?")))),
        {},
    ),
    "role": (replace(REQUEST, messages=(Message("user", ("Be brief.",)), REQUEST.messages[1])), {}),
    "picture": (
        replace(REQUEST, messages=(Message("user", ("Why?", Image(b"others", "image/png"))),)),
        {},
    ),
    "max_tokens": (replace(REQUEST, max_tokens=65), {}),
    "temperature": (replace(REQUEST, temperature=0.5), {}),
    "no temperature": (replace(REQUEST, temperature=None), {}),
    "top_p": (replace(REQUEST, top_p=0.5), {}),
    "seed": (replace(REQUEST, seed=0), {}),
    "schema": (replace(REQUEST, schema=Whole), {}),
    "other schema": (replace(REQUEST, schema=Other), {}),
    "schema in the prompt": (replace(REQUEST, schema=Whole), {"json_schema": False}),
}


def test_whatever_can_change_an_answer_changes_its_key():
    keys = {
        name: request.key(PLACE.model_copy(update=settings))
        for name, (request, settings) in CHANGES.items()
    }
    assert len({*keys.values(), REQUEST.key(PLACE)}) == len(keys) + 1


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "http://127.0.0.1:2/v1"},
        {"max_in_flight": 3, "attempts": 2, "timeout_seconds": 5.0},
        {"api_key_env": "KEY", "requests_per_minute": 5, "tokens_per_minute": 7},
        {"prices": Prices(input=1, output=2), "max_cost": 3.0},
    ],
)
def test_what_cannot_change_an_answer_changes_no_key(settings):
    assert REQUEST.key(PLACE.model_copy(update=settings)) == REQUEST.key(PLACE)
    assert replace(REQUEST, temperature=0).key(PLACE) == REQUEST.key(PLACE)


def test_the_key_is_the_hash_of_the_body_with_hashes_of_pictures():
    body = REQUEST.body(PLACE)
    assert body["messages"][1]["content"][1]["image_url"]["url"] == PICTURE.data_uri
    body["messages"][1]["content"][1]["image_url"]["url"] = (
        f"sha256:{hashlib.sha256(PICTURE.data).hexdigest()}"
    )
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    assert REQUEST.key(PLACE) == hashlib.sha256(text.encode()).hexdigest()


def test_text_alone_is_sent_as_text():
    assert REQUEST.body(PLACE)["messages"][0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_limit_has_the_name_that_the_endpoint_knows(name):
    body = REQUEST.body(PLACE.model_copy(update={"limit_key": name}))
    assert body[name] == 64
    assert sum(key in body for key in ("max_tokens", "max_completion_tokens")) == 1


def test_a_strict_schema_requires_all_and_allows_no_more():
    schema = strict(Whole)
    for node in (schema, schema["$defs"]["Part"]):
        assert node["required"] == list(node["properties"])
        assert node["additionalProperties"] is False
    assert list(schema["$defs"]["Part"]["properties"]) == ["default"]
    assert schema["properties"]["first"] == {"$ref": "#/$defs/Part"}
    assert "default" not in schema["properties"]["score"]


@given(st.text(), st.text())
def test_no_prompt_has_more_tokens_than_its_bound(system, words):
    request = Request((Message("system", (system,)), Message("user", (words, PICTURE))), 5)
    said = len(system.encode("utf-8", "surrogatepass")) + len(words.encode("utf-8", "replace"))
    bound = request.most_prompt_tokens(PLACE)
    assert bound >= said + PLACE.tokens_per_image
    assert request.prompt_tokens(PLACE) <= bound


@given(st.dictionaries(st.text(), st.integers() | st.text()))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value):
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))
    assert json.loads(canonical_json(value)) == value


def test_prices_are_per_million_tokens():
    prices = Prices(input=2, cached_input=0.5, output=10, batch=0.5)
    usage = Usage(prompt_tokens=1_000_000, cached_tokens=400_000, completion_tokens=100_000)
    assert cost(usage, prices) == pytest.approx(0.6 * 2 + 0.4 * 0.5 + 0.1 * 10)
    assert cost(usage, prices, is_batch=True) == pytest.approx(cost(usage, prices) / 2)
    same = prices.model_copy(update={"cached_input": None})
    assert cost(usage, same) == pytest.approx(2 + 1)


def test_an_estimate_adds_up_requests_and_longest_answers():
    place = PLACE.model_copy(update={"prices": Prices(input=1, output=4)})
    found = estimate(iter([REQUEST] * 3), place)
    assert (found.num_requests, found.max_completion_tokens) == (3, 3 * 64)
    assert found.prompt_tokens == 3 * REQUEST.prompt_tokens(PLACE)
    assert found.cost == pytest.approx((found.prompt_tokens + 4 * 3 * 64) / 1e6)
    assert estimate([REQUEST], PLACE).cost is None


@given(
    steps=st.lists(st.tuples(st.integers(1, 500), st.booleans(), st.floats(0, 1)), max_size=30),
    max_cost=st.floats(1, 5000),
)
def test_spent_and_set_aside_never_pass_the_budget(steps, max_cost):
    prices = Prices(input=1e6, cached_input=2e6, output=1e6)
    budget = Budget(PLACE.model_copy(update={"prices": prices, "max_cost": max_cost}))
    waiting = []
    for max_tokens, is_answered, part in steps:
        try:
            waiting.append(budget.reserve(Request((Message("user", ("?",)),), max_tokens)))
        except EndpointError:
            assert budget.spent + budget.reserved <= max_cost
        if waiting and is_answered:
            amount = waiting.pop()
            budget.settle(amount, amount * part)
        assert budget.spent + budget.reserved <= max_cost * (1 + 1e-9)
        assert budget.reserved == pytest.approx(sum(waiting), abs=1e-6)


def test_a_bound_on_cost_needs_prices():
    with pytest.raises(ValidationError, match="max_cost=5: cannot be kept without prices; set"):
        Endpoint(url="http://127.0.0.1/v1", model="judge", max_cost=5)


@pytest.mark.parametrize(
    "url", ["ftp://host/v1", "http://user:secret@host/v1", "http://h/v1?key=secret", "host/v1"]
)
def test_an_address_holds_no_secret(url):
    with pytest.raises(ValidationError, match="url"):
        Endpoint(url=url, model="judge")


@given(
    st.integers(1, 100),
    st.integers(100, 5000),
    st.lists(st.tuples(st.integers(1, 100), st.floats(0, 30)), min_size=1, max_size=60),
)
def test_no_minute_has_more_than_its_share_and_the_last_that_fits(requests, tokens, steps):
    clock = 0.0
    pace = Pace(requests, tokens, now=lambda: clock)
    sent = []
    for amount, pause in steps:
        clock += pause
        wait = pace.take(amount)
        assert wait >= 0
        sent.append((clock + wait, amount))
    assert [at for at, _ in sent] == sorted(at for at, _ in sent)
    for start, _ in sent:
        minute = [amount for at, amount in sent if start <= at < start + 60 - 1e-6]
        assert len(minute) <= requests + 1
        assert sum(minute[:-1]) <= tokens + 1e-6


def test_without_limits_nobody_waits_but_for_the_endpoint():
    clock = 100.0
    pace = Pace(None, None, now=lambda: clock)
    assert [pace.take(10**9) for _ in range(3)] == [0, 0, 0]
    pace.hold(7)
    pace.hold(3)
    assert [pace.take(1), pace.take(1)] == [7, 7]
    clock = 108.0
    assert pace.take(1) == 0


@given(st.floats(0, 1e6))
def test_a_wait_is_read_in_every_form(seconds):
    assert retry_after_seconds({"retry-after": repr(seconds)}) == seconds
    assert retry_after_seconds({"retry-after-ms": repr(seconds * 1000), "retry-after": "9"}) == (
        pytest.approx(seconds)
    )
    date = {"retry-after": formatdate(1_000_000 + int(seconds), usegmt=True)}
    assert retry_after_seconds(date, now=lambda: 1_000_000) == int(seconds)


@given(st.text() | st.sampled_from(["inf", "nan", "-5", "Wed, 99 Foo 2026", "1e999"]))
def test_a_wait_that_makes_no_sense_is_none(text):
    wait = retry_after_seconds({"retry-after": text})
    assert math.isfinite(wait)
    assert wait >= 0


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 3}, Usage(9, 0, 3)),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 3,
                "prompt_tokens_details": {"cached_tokens": 4},
            },
            Usage(9, 4, 3),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": None},
            Usage(9, 0, 3),
        ),
        ({}, Usage(REQUEST.prompt_tokens(PLACE), 0, 2, is_estimated=True)),
        ({"prompt_tokens": 9}, Usage(REQUEST.prompt_tokens(PLACE), 0, 2, is_estimated=True)),
        (None, Usage(REQUEST.prompt_tokens(PLACE), 0, 2, is_estimated=True)),
    ],
)
def test_tokens_are_the_endpoints_count_or_said_to_be_estimated(said, expected):
    completion = {"choices": [{"message": {"content": "12345678"}}], "usage": said}
    assert usage_of(completion, REQUEST, PLACE) == expected
