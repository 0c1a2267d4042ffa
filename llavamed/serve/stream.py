"""Send an answer while it grows, and stop its generation when the client goes away."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llavamed.serve.backend import Update
from llavamed.serve.records import RequestRecord

T = TypeVar("T")

CLIENT_CLOSED = 499
"""Status in the records of a request whose client went away."""
SILENT_SECONDS = 15.0
"""Longest silence of a stream, in seconds. Proxies and clients end one after 60 or so."""
_COMMENT = b": waiting\n\n"
"""What a stream says in a silence; clients pass over it."""


class ClientGoneError(Exception):
    """The client went away before it was answered."""


class EventStream(Response):
    """Sends events until they end or the client goes away, and then ends the request."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        record: RequestRecord,
        end: Callable[[RequestRecord], None],
    ) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})  # nginx keeps events back otherwise
        del self.headers["content-length"]
        self._events, self._record, self._end = events, record, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await unless_gone(receive, self._send(send))
        except (ClientGoneError, OSError):  # a server reports a lost client in either way
            self._record.is_cancelled = True
        except asyncio.CancelledError:
            self._record.is_cancelled = True
            raise
        finally:
            if self._record.is_cancelled:
                self._record.status = CLIENT_CLOSED
            self._end(self._record)

    async def _send(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        async with aclosing(_kept_alive(self._events)) as events:
            async for data in events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _kept_alive(events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Yield events, and a comment wherever none comes for long. Closing it closes them."""
    async with aclosing(events):
        while True:
            coming = asyncio.ensure_future(anext(events, None))
            try:
                while not (await asyncio.wait((coming,), timeout=SILENT_SECONDS))[0]:
                    yield _COMMENT
            finally:
                if coming.cancel():
                    await asyncio.wait((coming,))
            if (data := coming.result()) is None:
                return
            yield data


async def begin(updates: AsyncIterator[Update], seconds: float | None) -> asyncio.Task[Update]:
    """Return the first update, as a task that is not done yet if it takes longer than that."""

    async def first() -> Update:
        return await anext(updates)

    coming = asyncio.create_task(first())
    try:
        await asyncio.wait((coming,), timeout=seconds)
    except asyncio.CancelledError:
        coming.cancel()
        await asyncio.wait((coming,))
        raise
    return coming


async def with_first(
    first: asyncio.Task[Update], rest: AsyncGenerator[Update]
) -> AsyncGenerator[Update]:
    """Yield the first update before the rest, which are closed with this generator."""
    async with aclosing(rest) as updates:
        yield await first
        async for update in updates:
            yield update


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do some work, and cancel it when the client goes away.

    Raises:
        ClientGoneError: The client went away.
    """
    working, waiting = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, waiting):
            task.cancel()
        await asyncio.wait((working, waiting))


async def _gone(receive: Receive) -> None:
    """Return when the client has gone; more of its body is not read."""
    while (await receive())["type"] != "http.disconnect":
        pass
