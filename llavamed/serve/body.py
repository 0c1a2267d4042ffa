"""Read what a client sends, and no more than is allowed."""

import asyncio

from starlette.requests import Request

from llavamed.config.serving import Limits
from llavamed.errors import RequestError


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the body of a request.

    Raises:
        RequestError: It is compressed, larger than the limit, or does not arrive in time.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise RequestError(
            f"Content-Encoding={encoding[:20]}: bodies are read uncompressed; send it as it is",
            code="unsupported_encoding",
            status=415,
        )
    declared = request.headers.get("content-length", "0")
    data = bytearray()
    try:
        async with asyncio.timeout(limits.read_seconds):
            if not declared.isdigit() or int(declared) > limits.body_bytes:
                raise _too_large(limits.body_bytes)
            async for chunk in request.stream():
                data += chunk
                if len(data) > limits.body_bytes:
                    raise _too_large(limits.body_bytes)
    except TimeoutError as error:
        raise RequestError(
            f"body: has not arrived within {limits.read_seconds:g} seconds; send it again",
            code="request_timeout",
            status=408,
        ) from error
    return bytes(data)


def _too_large(limit: int) -> RequestError:
    return RequestError(
        f"body: has more than {limit} bytes; send fewer or smaller images",
        code="request_too_large",
        status=413,
    )
