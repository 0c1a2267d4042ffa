"""What the client tells an endpoint and writes down: its key and nothing else that is secret."""

import json
import logging

import pytest

from llavamed.errors import ConfigError, EndpointError
from tests.support.llm_answers import answers, question

KEY = "sk-not-to-be-seen"


def test_the_key_is_sent_and_seen_nowhere_else(endpoint, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    endpoint.fail("500", "429")
    answers(endpoint, tmp_path, question(), api_key_env="JUDGE_KEY")
    endpoint.fail("401")
    with pytest.raises(EndpointError, match=r"Incorrect API key provided: \*\*\*\.") as caught:
        answers(endpoint, tmp_path, question("another"), api_key_env="JUDGE_KEY")
    assert {each["authorization"] for each in endpoint.headers} == {f"Bearer {KEY}"}
    seen = [caplog.text, str(caught.value), *(f.read_text() for f in tmp_path.rglob("*.json"))]
    assert "attempt 2 of 8 failed" in caplog.text
    assert not any(KEY in text for text in seen)


def test_nothing_is_told_about_this_machine(endpoint, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    answers(endpoint, tmp_path, question())
    (headers,) = endpoint.headers
    told = {"os", "arch", "lang", "package-version", "runtime", "runtime-version", "async"}
    assert not {f"x-stainless-{name}" for name in told} & set(headers)
    assert "authorization" not in headers


@pytest.mark.parametrize("api_key_env", [None, "JUDGE_KEY"])
def test_variables_of_another_endpoint_are_not_sent(endpoint, tmp_path, monkeypatch, api_key_env):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", "another's")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer another's")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    (answer,) = answers(endpoint, tmp_path, question(), api_key_env=api_key_env)
    assert answer.outcome == "answered"
    (headers,) = endpoint.headers
    assert headers.get("authorization") == (api_key_env and f"Bearer {KEY}")
    assert "another's" not in json.dumps(headers)


def test_a_key_that_is_not_set_is_missed_before_anything_is_sent(endpoint, tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"^api_key_env=JUDGE_KEY: this .* is not set; set"):
        answers(endpoint, tmp_path, question(), api_key_env="JUDGE_KEY")
    assert endpoint.bodies == []
