"""Whatever a client sends is a request or a refusal in OpenAI's form, and never another error."""

import json
from operator import or_
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.errors import RequestError
from llavamed.serve.openai import (
    Choice,
    ImagePart,
    ResponseHead,
    TokenCounts,
    error_body,
    parse_request,
)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8), below),
    max_leaves=8,
)
FIELDS = (
    *("model", "messages", "stream", "stream_options", "temperature", "top_p", "seed", "n"),
    *("stop", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "tools"),
    *("response_format", "logit_bias", "presence_penalty", "user", "unknown"),
)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "audio"])},
    optional={"text": PLAIN, "image_url": PLAIN | st.fixed_dictionaries({"url": PLAIN})},
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "robot"])},
        optional={"content": PLAIN | st.lists(PARTS, max_size=3)},
    ),
    max_size=3,
)
GOOD: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Why?"}]}
ANY = st.dictionaries(st.sampled_from(FIELDS), PLAIN | MESSAGES)
NEARLY_GOOD = st.builds(
    or_, st.just(GOOD), st.dictionaries(st.sampled_from(FIELDS), PLAIN, max_size=2)
)


@given((ANY | NEARLY_GOOD).map(lambda body: json.dumps(body).encode()) | st.binary(max_size=40))
def test_any_body_is_a_request_or_a_refusal(data: bytes) -> None:
    try:
        request = parse_request(data)
    except RequestError as error:
        refusal = error
    else:
        assert request.model == json.loads(data)["model"]
        return
    assert data != json.dumps(GOOD).encode()
    body = json.loads(json.dumps(error_body(refusal)))["error"]
    assert body.keys() == {"message", "type", "param", "code"}
    assert body["type"] == "invalid_request_error"
    assert refusal.status == 400


@given(st.text(min_size=20, max_size=60))
def test_a_refusal_does_not_repeat_what_was_sent(secret: str) -> None:
    for body in (
        GOOD | {"temperature": secret + "x"},
        GOOD | {"messages": [{"role": secret, "content": "x"}]},
        GOOD | {"messages": [{"role": "user", "content": [{"type": secret}]}]},
        GOOD | {"response_format": {"type": secret}},
    ):
        with pytest.raises(RequestError) as caught:
            parse_request(json.dumps(body).encode())
        assert secret not in str(caught.value)
        assert caught.value.__cause__ is None


def test_null_means_the_default_and_the_newer_name_wins() -> None:
    body = GOOD | {"max_completion_tokens": None, "max_tokens": 5, "stream": None, "stop": None}
    asked = parse_request(json.dumps(body).encode())
    assert (asked.max_tokens, asked.stream, asked.stop) == (5, False, [])
    both = parse_request(json.dumps(GOOD | {"max_completion_tokens": 3, "max_tokens": 5}).encode())
    assert both.max_tokens == 3


def test_an_image_may_be_its_url() -> None:
    for image in ("data:,", {"url": "data:,"}):
        content = [{"type": "image_url", "image_url": image}]
        asked = parse_request(
            json.dumps(GOOD | {"messages": [{"role": "user", "content": content}]}).encode()
        )
        [part] = asked.messages[0].content
        assert isinstance(part, ImagePart)
        assert part.image_url.url == "data:,"


def refusal(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_request(json.dumps(GOOD | fields).encode())
    return caught.value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "messages[0].content: must be a text or a list; correct it"),
        (["x"], "messages[0].content[0]: must be an object; correct it"),
        ([{"text": "x"}], "messages[0].content[0]: must have a type, `text` or `image_url`"),
        ([{"type": "file"}], "messages[0].content[0]: must be of type `text` or `image_url`"),
        ([{"type": "text"}], "messages[0].content[0].text: is missing"),
        ([{"type": "text", "text": 7}], "messages[0].content[0].text: must be a text"),
        ([{"type": "image_url", "image_url": 7}], "content[0].image_url: must be an object"),
    ],
)
def test_the_part_that_is_wrong_is_named(content: Any, message: str) -> None:
    found = refusal(messages=[{"role": "user", "content": content}])
    assert message in str(found)
    assert found.param == "messages"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stop": ["a", None]}, "stop[1]: must be a text"),
        ({"stop": 5}, "stop: must be a text or a list"),
        ({"max_tokens": "5"}, "max_tokens: must be a valid integer"),
        ({"max_tokens": True}, "max_tokens: must be a valid integer"),
        ({"stream": "yes"}, "stream: must be a valid boolean"),
        ({"top_logprobs": 2}, "top_logprobs: is only told with logprobs; set logprobs to true"),
        ({"stop": list("abcde")}, "stop: must have at most 4 items, not 5; correct it"),
        ({"stop": "\ud800"}, "stop[0]: holds half a character"),
        ({"model": "\ud800"}, "model: holds half a character"),
        ({"top_k": 5}, "top_k: is not supported; leave it out"),
        ({"skip_special_tokens": False}, "skip_special_tokens: is not supported; leave it out"),
        ({"repetition_penalty": 1.3}, "repetition_penalty: is not supported; leave it out"),
        ({"tool_choice": "required"}, "tool_choice: is not supported; leave it out"),
        ({"function_call": {"name": "f"}}, "function_call: is not supported; leave it out"),
    ],
)
def test_no_field_is_read_as_something_else(fields: dict[str, Any], message: str) -> None:
    assert message in str(refusal(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"top_logprobs": 0},
        {"logprobs": False, "top_logprobs": 0},
        {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": False, "best_of": 1},
        {"stream": True, "stream_options": {"include_usage": None}},
        {"presence_penalty": 0.0, "tools": [], "tool_choice": "auto"},
        {"skip_special_tokens": True, "add_generation_prompt": True, "mm_processor_kwargs": {}},
    ],
)
def test_what_changes_nothing_is_taken(fields: dict[str, Any]) -> None:
    assert parse_request(json.dumps(GOOD | fields).encode()).drawing_temperature == 0


def test_no_probability_leaves_the_likeliest_token() -> None:
    body = GOOD | {"temperature": 1.5, "top_p": 0}
    assert parse_request(json.dumps(body).encode()).drawing_temperature == 0


def test_fields_that_nobody_knows_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "llavamed.serve"):
        parse_request(json.dumps(GOOD | {"store": 5, "user": "someone"}).encode())
    assert "fields that are ignored: ['store', 'user']" in caplog.text
    assert "someone" not in caplog.text


def test_a_text_is_a_list_of_one_part() -> None:
    part = {"type": "text", "text": "Why?", "prompt_cache_breakpoint": True}
    parts = GOOD | {"messages": [{"role": "user", "content": [part]}]}
    one, other = (parse_request(json.dumps(body).encode()) for body in (GOOD, parts))
    assert one.messages == other.messages


def test_a_whole_answer_and_a_stream_say_the_same() -> None:
    reply, usage = ResponseHead("chatcmpl-1", "m", 0), TokenCounts(3, 2)
    whole = reply.whole([Choice(0, "Yes.", "stop")], usage)
    assert whole["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Yes.",
        "refusal": None,
    }
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    parts = [reply.chunk(Choice(0, text, end)) for text, end in (("Yes", None), (".", "stop"))]
    assert "".join(part["choices"][0]["delta"]["content"] for part in parts) == "Yes."
    assert reply.closing(usage)["choices"] == []
    assert {part["id"] for part in (whole, *parts)} == {"chatcmpl-1"}
