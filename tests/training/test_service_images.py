"""A URL of a client leads to no place that only this machine reaches."""

import asyncio
import base64
import ipaddress
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from aiohttp.resolver import ThreadedResolver
from hypothesis import given
from hypothesis import strategies as st

from llavamed.errors import RequestError
from llavamed.llm.request import Image
from llavamed.serve.images import is_public, read_messages
from llavamed.serve.openai import ChatMessage
from tests.support.dicom_files import dicom_file
from tests.support.running_service import png, settings

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


DATA = png()
LETTERS = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{LETTERS}",
        f"data:image/png;charset=utf-8;base64,{LETTERS}",
        f'data:image/png;name="a b.png"; base64,{LETTERS}',
        f"data:;base64,{LETTERS}",
        f"DATA:IMAGE/PNG;BASE64,{LETTERS}",
        f"data:image/png;base64,{LETTERS.rstrip('=')}",
        f"data:image/png;base64,{base64.encodebytes(DATA).decode()}",
        f"data:image/png;base64,{quote(LETTERS)}",
        f"data:image/png,{quote(DATA)}",
    ],
)
def test_a_data_url_in_any_spelling_is_the_same_image(url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    message = ChatMessage.model_validate({"role": "user", "content": [part]})
    (found,) = asyncio.run(read_messages([message], settings()))
    assert [image.data for image in found.parts if isinstance(image, Image)] == [DATA]


def test_a_dicom_file_has_the_limit_of_other_images() -> None:
    letters = base64.b64encode(dicom_file(np.eye(64, dtype=np.uint16))).decode()
    error = read(f"data:application/dicom;base64,{letters}", "limits.image_pixels=64")
    assert (error.status, error.code) == (400, "image_too_large")
    assert "the image has 64x64 pixels, at most 64 are decoded" in str(error)


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
