"""A URL of a client leads to no place that only this machine reaches."""

import asyncio
import ipaddress
from typing import Any

import pytest
from aiohttp.resolver import ThreadedResolver
from hypothesis import given
from hypothesis import strategies as st

from llavamed.errors import RequestError
from llavamed.serve.images import is_public, read_messages
from llavamed.serve.openai import ChatMessage
from tests.support.running_service import settings

PRIVATE = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "100.64.0.0/10",
    "0.0.0.0/8",
    "224.0.0.0/4",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",
]


@given(st.sampled_from(PRIVATE).flatmap(lambda net: st.ip_addresses(network=net)))
def test_no_private_address_is_public_in_whatever_spelling(address: Any) -> None:
    assert not is_public(str(address))
    if address.version == 4:
        number = int(address)
        spellings = (
            f"::ffff:{address}",
            str(ipaddress.IPv6Address((0x64FF9B << 96) | number)),
            str(ipaddress.IPv6Address((0x2002 << 112) | (number << 80))),
        )
        assert not any(is_public(each) for each in spellings)


def test_public_addresses_are_public() -> None:
    assert all(map(is_public, ("1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1")))


def read(url: str, *overrides: str) -> RequestError:
    message = ChatMessage.model_validate(
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    )
    with pytest.raises(RequestError) as caught:
        asyncio.run(read_messages([message], settings(*overrides)))
    assert url not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example/x.png",
        "http://images.example/x.png",
        "https://images.example:8443/x.png",
        "https://user@images.example/x.png",
        "https://images.example@other.example/x.png",
        "https://images.example.other.example/x.png",
        "https://127.0.0.1/x.png",
        "https://[::1]/x.png",
        "https://2130706433/x.png",
        "https://[bad/x.png",
        "HTTPS://localhost/x.png",
    ],
)
def test_only_allowed_hosts_are_asked(url: str) -> None:
    error = read(url, "image_hosts=[images.example, 127.0.0.1]")
    assert (error.status, error.code) == (400, "image_host_refused")
    assert "images are not fetched from there" in str(error)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["1.1.1.1", "10.0.0.1"], ["::1"]])
def test_a_host_whose_name_leads_inside_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    async def resolve(*_: Any) -> list[Any]:
        return [{"host": each, "port": 443, "hostname": "images.example"} for each in addresses]

    async def connected(*_: Any, **__: Any) -> None:
        pytest.fail("a connection was made")

    monkeypatch.setattr(ThreadedResolver, "resolve", resolve)
    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", connected)
    error = read("https://images.example/x.png", "image_hosts=[images.example]")
    assert error.code == "image_not_fetched"
    assert "its host cannot be reached" in str(error)
