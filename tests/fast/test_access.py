"""Tokens, rates, and the addresses that a URL of a client may lead to."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.config.load import load_section
from llavamed.config.serving import Serving
from llavamed.errors import RequestError
from llavamed.serve.access import Access, read_tokens


def serving(*overrides: str) -> Serving:
    return load_section("config", None, Serving, overrides)


@given(most=st.integers(1, 20), waits=st.lists(st.floats(0, 100), max_size=60))
def test_no_minute_holds_more_than_the_rate_and_a_burst(most: int, waits: list[float]) -> None:
    now = 0.0
    access = Access((), most, clock=lambda: now)
    passed, refusals = [], []
    for wait in waits:
        now += wait
        try:
            access.count("a")
            passed.append(now)
        except RequestError as error:
            refusals.append((error.status, 1 <= (error.retry_after or 0) <= 61))
    assert set(refusals) <= {(429, True)}
    for start in passed:
        assert sum(start <= each < start + 60 for each in passed) <= 2 * most


def test_a_client_that_waits_as_long_as_it_was_told_passes() -> None:
    now = 0.0
    access = Access((), 7, clock=lambda: now)
    for _ in range(40):
        try:
            access.count("a")
        except RequestError as error:
            now += error.retry_after or 0
            access.count("a")
    access.count("b")  # another client has a rate of its own


def test_a_client_is_known_by_its_token_only() -> None:
    access = Access(("first-token-abcdef", "second-token-abcdef"), 9)
    names = {access.client(f"Bearer {token}") for token in access.tokens}
    assert len(names) == 2
    assert not any("token" in name for name in names)
    for header in (
        None,
        "",
        "Bearer",
        "Basic first-token-abcdef",
        "Bearer first-token",
        "Bearer é",
    ):
        with pytest.raises(RequestError, match="token is") as caught:
            access.client(header)
        assert caught.value.status == 401


def test_tokens_come_from_a_file_a_variable_or_are_made(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAVAMED_SERVE_TOKEN", raising=False)
    made = [read_tokens(serving()) for _ in range(2)]
    assert made[0][0] == (made[0][1],)
    assert made[0] != made[1]
    assert len(made[0][1] or "") >= 32
    monkeypatch.setenv("LLAVAMED_SERVE_TOKEN", "a-token-in-a-variable, and-another-in-it")
    assert read_tokens(serving()) == (("a-token-in-a-variable", "and-another-in-it"), None)
    file = tmp_path / "tokens"
    file.write_text("a-token-in-a-file-1\na-token-in-a-file-2\n")
    assert read_tokens(serving(f"token_file={file}"))[0][1] == "a-token-in-a-file-2"
    assert read_tokens(serving("open_access=true")) == ((), None)
