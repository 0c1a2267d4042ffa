"""The service: OpenAI's chat completions and the page, with tokens, limits and records."""

import asyncio
import logging
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llavamed import __version__
from llavamed.config.serving import Serving
from llavamed.errors import RequestError
from llavamed.llm.request import Image, Message
from llavamed.serve.access import Access
from llavamed.serve.backend import Backend, Update
from llavamed.serve.body import read_body
from llavamed.serve.feedback import parse_feedback
from llavamed.serve.images import read_messages
from llavamed.serve.openai import (
    DONE,
    ChatRequest,
    Choice,
    ResponseHead,
    TokenCounts,
    error_body,
    event,
    parse_request,
)
from llavamed.serve.page import POLICY, read_page
from llavamed.serve.prompt import show_dicom
from llavamed.serve.records import LineFile, Metrics, RequestRecord
from llavamed.serve.stream import (
    CLIENT_CLOSED,
    SILENT_SECONDS,
    ClientGoneError,
    EventStream,
    begin,
    unless_gone,
    with_first,
)

if TYPE_CHECKING:
    from llavamed.serve.traces import Traces

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Research-Use-Only": "true",
}
Handler = Callable[["Service", Request, RequestRecord], Awaitable[Response]]


class Service:
    """Answers the requests of one model."""

    def __init__(
        self,
        serving: Serving,
        backend: Backend,
        tokens: tuple[str, ...],
        export: str | None = None,
    ) -> None:
        """Take what answers, the tokens of clients, and the export's name, which the page shows."""
        self.serving, self.backend, self._export = serving, backend, export
        self.access = Access(tokens, serving.limits.requests_per_minute)
        self.metrics = Metrics(backend.load)
        self._page_files = read_page()
        self._policy = POLICY.format(origins=" ".join(serving.page_origins))
        self._audit = LineFile(serving.audit_log, "audit_log") if serving.audit_log else None
        self._traces = _make_traces(serving.tracking_uri)
        self._feedback = (
            LineFile(serving.feedback_file, "feedback_file") if serving.feedback_file else None
        )

    def app(self) -> Starlette:
        """Return the application that a server or Ray Serve runs."""
        routes = [
            Route("/v1/chat/completions", self._guard(Service.chat), methods=["POST"]),
            Route("/v1/models", self._guard(Service.models), methods=["GET"]),
            Route("/v1/models/{name:path}", self._guard(Service.models), methods=["GET"]),
            Route("/preview", self._guard(Service.preview), methods=["POST"]),
            Route("/feedback", self._guard(Service.feedback), methods=["POST"]),
            Route("/info", self._guard(Service.info), methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/", self._page, methods=["GET"]),
            Route("/page/{name}", self._page, methods=["GET"]),
        ]
        handlers = {404: self._no_route, 405: self._no_route}

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            yield
            await self.backend.close()
            if self._traces is not None:
                await asyncio.to_thread(self._traces.close)

        app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
        app.router.redirect_slashes = False  # to an address that a proxy may have rewritten
        if self.serving.origins:
            from starlette.middleware.cors import CORSMiddleware

            app.add_middleware(
                CORSMiddleware,
                allow_origins=list(self.serving.origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],  # OpenAI's client sends a dozen of its own
                expose_headers=["X-Request-Id", "Retry-After"],
            )
        return app

    async def chat(self, request: Request, record: RequestRecord) -> Response:
        """Answer a request for chat completions."""
        asked = parse_request(await read_body(request, self.serving.limits))
        self._check(asked)
        record.model, record.is_stream = asked.model, asked.stream

        async def read() -> list[Message]:
            messages = await read_messages(asked.messages, self.serving)
            self._note(record, messages)
            return messages

        updates = self.backend.answer(asked, read)
        reply = ResponseHead.to(record.request_id, asked.model)
        patience = SILENT_SECONDS if asked.stream else None
        first = await unless_gone(request.receive, begin(updates, patience))
        if first.done():
            first.result()  # errors that come soon have a status of their own, in a stream too
        if asked.stream:
            options = asked.stream_options
            events = self._events(
                reply, first, updates, record, with_usage=bool(options and options.include_usage)
            )
            return EventStream(events, record, self.end)
        body = await unless_gone(
            request.receive, self._whole(reply, first, updates, record, asked.n or 1)
        )
        return JSONResponse(body)

    async def models(self, request: Request, _: RequestRecord) -> Response:
        """Return all models, or the model of a name."""
        model = {"id": self.serving.name, "object": "model", "created": 0, "owned_by": "llavamed"}
        name = request.path_params.get("name")
        if not name:
            return JSONResponse({"object": "list", "data": [model]})
        self._check_model(name)
        return JSONResponse(model)

    async def info(self, _: Request, __: RequestRecord) -> Response:
        """Return what the page needs to know."""
        return JSONResponse(
            {
                "model": self.serving.name,
                "export": self._export,
                "version": __version__,
                "examples": self.serving.examples,
                "feedback": self._feedback is not None,
                "limits": self.serving.limits.model_dump(),
            }
        )

    async def preview(self, request: Request, _: RequestRecord) -> Response:
        """Return a DICOM file as the picture that the model gets, which browsers can show."""
        data = await read_body(request, self.serving.limits)
        return Response(await asyncio.to_thread(show_dicom, data), media_type="image/png")

    async def feedback(self, request: Request, record: RequestRecord) -> Response:
        """Keep the feedback of a user who consented to it."""
        if self._feedback is None:
            raise RequestError(
                "feedback_file=null: no feedback is accepted here; set it to accept feedback",
                code="not_found",
                status=404,
            )
        line = parse_feedback(await read_body(request, self.serving.limits))
        await asyncio.to_thread(self._feedback.add, {"request_id": record.request_id, **line})
        return JSONResponse({"kept": True})

    def _guard(self, handler: Handler) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Let a handler do its work for known clients, and turn errors into OpenAI's form."""

        async def guarded(request: Request) -> Response:
            given = request.headers.get("x-request-id", "")
            is_usable = _REQUEST_ID.fullmatch(given)
            record = RequestRecord(given if is_usable else uuid.uuid4().hex)
            try:
                record.client = self.access.client(request.headers.get("authorization"))
                self.access.count(record.client)
                response = await handler(self, request, record)
            except RequestError as error:
                response = _refusal(error)
                record.status, record.code = error.status, error.code
            except (ClientGoneError, ClientDisconnect):
                response = Response(status_code=CLIENT_CLOSED)
                record.status, record.is_cancelled = CLIENT_CLOSED, True
            except asyncio.CancelledError:  # Ray Serve cancels the handler of a lost client
                record.status, record.is_cancelled = CLIENT_CLOSED, True
                self.end(record)
                raise
            except Exception as error:
                logger.exception("request %s failed", record.request_id)
                response = _refusal(_unexpected(error))
                record.status, record.code = 500, "internal_error"
            if not isinstance(response, EventStream):
                self.end(record)
            response.headers.update({**_HEADERS, "X-Request-Id": record.request_id})
            return response

        return guarded

    def end(self, record: RequestRecord) -> None:
        """Count a request that has ended, and write it to the audit log and to MLflow."""
        record.count(self.metrics)
        for log in (self._audit, self._traces):
            if log is not None:
                log.add(record.line(with_content=self.serving.log_content))

    def _check(self, asked: ChatRequest) -> None:
        """Raise RequestError if a request asks for another model, or for too much."""
        self._check_model(asked.model)
        limits = self.serving.limits
        for name, value, most in (
            ("n", asked.n, min(limits.answers, self.serving.max_batch_size)),
            ("max_tokens", asked.max_tokens, limits.max_tokens),
        ):
            if value is not None and value > most:
                raise RequestError(
                    f"{name}={value}: at most {most} here; ask for less",
                    code="invalid_value",
                    param=name,
                )

    def _check_model(self, name: str) -> None:
        if name != self.serving.name:
            raise RequestError(
                f"model={name[:80]}: there is none of this name; use {self.serving.name}",
                code="model_not_found",
                status=404,
                param="model",
            )

    def _note(self, record: RequestRecord, messages: list[Message]) -> None:
        parts = [part for message in messages for part in message.parts]
        images = [part for part in parts if isinstance(part, Image)]
        record.num_images = len(images)
        record.num_image_bytes = sum(len(image.data) for image in images)
        if self.serving.log_content:
            record.questions = [part for part in parts if isinstance(part, str)]

    def _count(self, record: RequestRecord, update: Update) -> None:
        if record.first_token_seconds is None:
            record.first_token_seconds = record.seconds
        record.prompt_tokens = update.usage.prompt_tokens
        record.completion_tokens = update.usage.completion_tokens
        for choice in update.choices:
            if choice.finish_reason is not None:
                record.finish_reasons.append(choice.finish_reason)
            if self.serving.log_content:
                before = record.answers.get(choice.index, "")
                record.answers[choice.index] = before + choice.text

    async def _whole(
        self,
        reply: ResponseHead,
        first: asyncio.Task[Update],
        updates: AsyncGenerator[Update],
        record: RequestRecord,
        n: int,
    ) -> dict[str, Any]:
        """Return the body of a whole answer."""
        texts, logprobs = [""] * n, [[] for _ in range(n)]  # type: list[str], list[list[Any]]
        ends: list[str | None] = [None] * n
        has_logprobs = False
        async for update in with_first(first, updates):
            self._count(record, update)
            for each in update.choices:
                texts[each.index] += each.text
                ends[each.index] = each.finish_reason or ends[each.index]
                if each.logprobs is not None:
                    has_logprobs = True
                    logprobs[each.index] += each.logprobs
        choices = [
            Choice(index, text, ends[index], logprobs[index] if has_logprobs else None)
            for index, text in enumerate(texts)
        ]
        return reply.whole(choices, TokenCounts(record.prompt_tokens, record.completion_tokens))

    async def _events(
        self,
        reply: ResponseHead,
        first: asyncio.Task[Update],
        updates: AsyncGenerator[Update],
        record: RequestRecord,
        *,
        with_usage: bool,
    ) -> AsyncGenerator[bytes]:
        """Yield the events of a stream. An error after its first token is one of them."""
        opened: set[int] = set()
        unknown = {"usage": None} if with_usage else {}
        try:
            async for update in with_first(first, updates):
                self._count(record, update)
                for choice in update.choices:
                    if choice.index not in opened:
                        opened.add(choice.index)
                        yield event(reply.opening(choice.index) | unknown)
                    if choice.text or choice.finish_reason or choice.logprobs:
                        yield event(reply.chunk(choice) | unknown)
            if with_usage:
                usage = TokenCounts(record.prompt_tokens, record.completion_tokens)
                yield event(reply.closing(usage))
            yield DONE
        except RequestError as error:
            record.status, record.code = error.status, error.code
            yield event(error_body(error))
        except Exception as error:
            logger.exception("request %s failed", record.request_id)
            record.status, record.code = 500, "internal_error"
            yield event(error_body(_unexpected(error)))

    async def _health(self, _: Request) -> Response:
        try:
            self.backend.check()
        except RequestError as error:
            return _refusal(error)
        return JSONResponse({"status": "ok"}, headers=_HEADERS)

    async def _metrics(self, _: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _page(self, request: Request) -> Response:
        found = self._page_files.get(request.path_params.get("name", "index.html"))
        if found is None:
            return await self._no_route(request, None)
        data, media_type = found
        headers = {**_HEADERS, "Content-Security-Policy": self._policy}
        return Response(data, media_type=media_type, headers=headers)

    async def _no_route(self, request: Request, error: Exception | None) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            response = _refusal(
                RequestError(
                    f"{request.method}: is not answered at this address; use {allowed}",
                    code="method_not_allowed",
                    status=405,
                )
            )
            response.headers["Allow"] = allowed
            return response
        return _refusal(
            RequestError(
                f"{request.method}: nothing is at this address; ask POST /v1/chat/completions",
                code="not_found",
                status=404,
            )
        )


def _make_traces(uri: str | None) -> "Traces | None":
    """Return the traces of the settings; MLflow takes seconds to import, so only where asked."""
    if uri is None:
        return None
    from llavamed.serve.traces import Traces

    return Traces(uri)


def _unexpected(error: Exception) -> RequestError:
    return RequestError(
        f"service: unexpected {type(error).__name__}; report it with the id of the request",
        code="internal_error",
        status=500,
    )


def _refusal(error: RequestError) -> Response:
    headers = dict(_HEADERS)
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error), status_code=error.status, headers=headers)
