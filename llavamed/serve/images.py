"""Get the images of a request: from data URLs, or from hosts that the operator allows.

A URL of a client must not reach what only this machine reaches. So the host must be on the list,
the connection must be https to a public address that was looked up once, and no redirect is
followed. The content decides what an image is, whatever its media type says.
"""

import asyncio
import base64
import binascii
import io
import ipaddress
import re
import socket
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from PIL import Image as Picture

from llavamed.config.serving import Serving
from llavamed.errors import RequestError, SampleError
from llavamed.llm.request import Image, Message
from llavamed.processor.dicom import dicom_size
from llavamed.processor.image_files import FORMATS, is_dicom
from llavamed.serve.openai import ChatMessage, ImagePart

_FETCH_SECONDS = 5.0


async def read_messages(messages: list[ChatMessage], serving: Serving) -> list[Message]:
    """Return messages with their images as bytes, as far as the limits allow.

    Raises:
        RequestError: There is too much of something, or an image cannot be had.
    """
    limits = serving.limits
    if len(messages) > limits.messages:
        raise RequestError(
            f"messages: {len(messages)} are sent, at most {limits.messages} are answered; send "
            "the last ones",
            code="too_many_messages",
            param="messages",
        )
    urls = [
        part.image_url.url
        for message in messages
        for part in message.content
        if isinstance(part, ImagePart)
    ]
    if len(urls) > limits.images:
        raise RequestError(
            f"messages: {len(urls)} images are sent, at most {limits.images} are answered; send "
            "fewer",
            code="too_many_images",
            param="messages",
        )
    found = []
    for number, message in enumerate(messages):
        parts: list[str | Image] = []
        for place, part in enumerate(message.content):
            if isinstance(part, ImagePart):
                key = f"messages[{number}].content[{place}].image_url"
                parts.append(await _read(part.image_url.url, key, serving))
            else:
                parts.append(part.text)
        role = "system" if message.role == "developer" else message.role
        found.append(Message(role, tuple(parts)))
    return found


async def _read(url: str, key: str, serving: Serving) -> Image:
    if url[:5].lower() == "data:":
        image = _decode(url, key, serving)
    elif re.match("https?://", url, re.IGNORECASE):
        image = await _fetch(url, key, serving)
    else:
        raise RequestError(
            f"{key}: must be a data URL such as data:image/png;base64,...; send the image itself",
            code="invalid_image_url",
            param=key,
        )
    await asyncio.to_thread(_check_pixels, image.data, key, serving.limits.image_pixels)
    return image


def _decode(url: str, key: str, serving: Serving) -> Image:
    """Decode a data URL as browsers do, which ignore white space and padding.

    Raises:
        RequestError: It is not a data URL, or is too large.
    """
    header, comma, text = url.removeprefix(url[:5]).partition(",")
    if not comma:
        raise RequestError(
            f"{key}: is not a valid data URL; begin it with data:image/png;base64,",
            code="invalid_image_url",
            param=key,
        )
    # Four letters of base64 are three bytes.
    _check_bytes(len(text) * 3 // 4, key, serving)
    media_type, *parameters = (each.strip().lower() for each in header.split(";"))
    data = unquote_to_bytes(text)
    try:
        if parameters[-1:] == ["base64"]:
            letters = b"".join(data.split())
            data = base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            f"{key}: is not valid base64; encode the image once more",
            code="invalid_image_url",
            param=key,
        ) from error
    return Image(data, media_type or "application/octet-stream")


def _check_bytes(number: int, key: str, serving: Serving) -> None:
    limit = serving.limits.image_bytes
    if number > limit:
        raise RequestError(
            f"{key}: the image has {number} bytes or more, at most {limit} are read; make it "
            "smaller",
            code="image_too_large",
            param=key,
        )


def _check_pixels(data: bytes, key: str, limit: int) -> None:
    """Refuse an image by its header, before it is decoded.

    Raises:
        RequestError: It has too many pixels, or its format is not decoded.
    """
    try:
        if is_dicom(data):
            height, width = dicom_size(data)
        else:
            width, height = Picture.open(io.BytesIO(data), formats=FORMATS).size
        found = f"{width}x{height}" if width * height > limit else None
    except Picture.DecompressionBombError:
        found = "too many"
    except SampleError:
        return  # the reader of DICOM says why
    except Exception as error:  # Pillow's parsers raise whatever they stumble on
        raise RequestError(
            f"{key}: the image cannot be read ({len(data)} bytes); send PNG, JPEG or WebP",
            code="corrupt_image",
            param=key,
        ) from error
    if found is not None:
        raise RequestError(
            f"{key}: the image has {found} pixels, at most {limit} are decoded; make it smaller",
            code="image_too_large",
            param=key,
        )


class _PublicOnly(AbstractResolver):
    """Looks a host up and gives only public addresses, which are then the ones connected to."""

    def __init__(self) -> None:
        self._system = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._system.resolve(host, port, family)
        public = [each for each in found if is_public(each["host"])]
        if len(public) < len(found):  # one private address among them is reason enough
            raise OSError("the host leads to an address that is not public")
        return public

    async def close(self) -> None:
        await self._system.close()


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the open internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None and not is_public(str(inner)):
            return False
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip.is_global and not ip.is_multicast


async def _fetch(url: str, key: str, serving: Serving) -> Image:
    """Fetch an image from an allowed host.

    Raises:
        RequestError: The host is not allowed or not public, or does not give the image.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    is_plain = parts.scheme == "https" and port in {None, 443} and parts.username is None
    if not is_plain or host not in serving.image_hosts or _is_address(host):
        raise RequestError(
            f"{key}: images are not fetched from there; send the image itself as a data URL",
            code="image_host_refused",
            param=key,
        )
    limit = serving.limits.image_bytes
    connector = aiohttp.TCPConnector(resolver=_PublicOnly(), use_dns_cache=False)
    timeout = aiohttp.ClientTimeout(total=_FETCH_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise _unfetched(key, f"its host answers {answer.status}")
            data = await _read_body(answer, limit)
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        raise _unfetched(key, "its host cannot be reached") from error
    _check_bytes(len(data), key, serving)
    return Image(data, answer.content_type)


async def _read_body(answer: Any, limit: int) -> bytes:
    """Return at most one byte more than the limit."""
    data = bytearray()
    async for chunk in answer.content.iter_chunked(65536):
        data += chunk
        if len(data) > limit:
            break
    return bytes(data[: limit + 1])


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _unfetched(key: str, reason: str) -> RequestError:
    return RequestError(
        f"{key}: the image cannot be fetched: {reason}; send the image itself as a data URL",
        code="image_not_fetched",
        param=key,
    )
