"""Answer requests of many clients with one model: a thread keeps one running batch going."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch

from llavamed.errors import LlavaMedError, LogitsError, RequestError
from llavamed.model.continuation import Continuation, Sampling, TokenLogprobs
from llavamed.model.generation import Generator
from llavamed.model.running_batch import EncodedPrompt

logger = logging.getLogger(__name__)

MOST_FAILURES = 5
"""Failures of the model in a row after which it counts as stopped. What breaks a GPU breaks every
request after it, and only a new process mends it. A lack of memory is not counted: it breaks
nothing, so a client must not stop the service by requests that are too large."""


@dataclass(frozen=True)
class PartialAnswer:
    """One answer of a request as it stands after a token."""

    index: int
    text: str
    num_tokens: int
    finish_reason: str | None
    logprobs: tuple[TokenLogprobs, ...]
    """Log-probabilities of all tokens so far."""


@dataclass(eq=False)
class _Job:
    """A request: its answers, and the queue in which its client reads them."""

    prompt: EncodedPrompt
    answers: list[Continuation]
    loop: asyncio.AbstractEventLoop
    told: "asyncio.Queue[list[PartialAnswer] | LlavaMedError]" = field(
        default_factory=asyncio.Queue
    )
    is_given_up: bool = False

    @property
    def has_ended(self) -> bool:
        return all(answer.finish_reason is not None for answer in self.answers)

    def tell(self, news: list[PartialAnswer] | LlavaMedError) -> None:
        """Pass news to the client, which may have gone with its event loop."""
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self.told.put_nowait, news)


class BatchEngine:
    """The running batch of one model, and the requests that wait to join it."""

    def __init__(self, generator: Generator, *, max_batch_size: int, max_waiting: int) -> None:
        self._generator = generator
        self._max_batch_size, self._max_waiting = max_batch_size, max_waiting
        self._waiting: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._coming: list[int] = []  # answers of each request whose prompt is being made
        self._num_taken = 0
        self._num_failures = 0  # of the model, since it last gave a token
        self._batch = generator.running_batch()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="llavamed-engine", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Return the number of requests that wait."""
        return len(self._coming) + len(self._waiting)

    @property
    def batch_size(self) -> int:
        """Return the number of answers that are being generated."""
        return len(self._batch)

    @property
    def is_alive(self) -> bool:
        """Return whether requests are answered."""
        return self._thread.is_alive() and self._num_failures < MOST_FAILURES

    @contextmanager
    def place(self, num_answers: int) -> Iterator[None]:
        """Keep a place in the queue while a prompt is made, which takes memory and time.

        Raises:
            RequestError: Too many requests wait.
        """
        with self._changed:
            if self._is_closed:
                raise _stopped()
            if self._is_full(num_answers):
                raise RequestError(
                    f"queue: {self._max_waiting} requests wait already; try again later",
                    code="queue_full",
                    status=429,
                    retry_after=1 + self.num_waiting // self._max_batch_size,
                )
            self._coming.append(num_answers)
        try:
            yield
        finally:
            with self._changed:
                self._coming.remove(num_answers)

    async def answer(
        self, prompt: EncodedPrompt, samplings: Sequence[Sampling]
    ) -> AsyncGenerator[list[PartialAnswer]]:
        """Answer a prompt, and yield what has changed, until all its answers have ended.

        A caller that stops reading gives the request up, and its answers leave the batch.

        Raises:
            RequestError: The model fails.
        """
        job = _Job(
            prompt,
            [self._generator.begin(sampling) for sampling in samplings],
            asyncio.get_running_loop(),
        )
        with self._changed:
            if self._is_closed:
                raise _stopped()
            self._waiting.append(job)
            self._changed.notify()
        is_open = True
        try:
            while is_open:
                news = await job.told.get()
                if isinstance(news, LlavaMedError):
                    is_open = False
                    raise news
                is_open = any(each.finish_reason is None for each in news)
                yield news
        finally:
            if is_open:
                with self._changed:
                    job.is_given_up = True
                    self._changed.notify()

    def _is_full(self, num_answers: int) -> bool:
        """Return whether as many wait as may, without those that the batch has room for."""
        room = self._max_batch_size - max(len(self._batch), self._num_taken)
        num_left = 0
        for number in [*(len(job.answers) for job in self._waiting), *self._coming]:
            room -= number
            num_left += room < 0
        return num_left >= self._max_waiting and room < num_answers

    def close(self) -> None:
        """End the thread. Requests that are not answered yet fail."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        """Answer requests until the end, and let no client wait for a thread that has ended."""
        try:
            while self._continue():
                pass
        except Exception as error:
            logger.exception("the model has stopped: %s", type(error).__name__)
        with self._changed:
            self._is_closed = True
            left = [*self._running, *self._waiting]
        for job in left:
            job.tell(_stopped())

    def _continue(self) -> bool:
        """Give each running answer its next token, and return whether to go on."""
        with self._changed:
            while not (self._waiting or self._running or self._is_closed):
                self._changed.wait()
            if self._is_closed:
                return False
        self._drop_given_up()  # before others are admitted, because it makes room
        with self._changed:
            new = self._admit()
            self._num_taken = len(self._batch) + sum(len(job.answers) for job in new)
        self._join(new)
        self._num_taken = 0
        self._step()
        return True

    def _admit(self) -> list[_Job]:
        """Take those out of the queue that the batch has room for, in the order they came."""
        room = self._max_batch_size - len(self._batch)
        new = []
        while self._waiting and (
            self._waiting[0].is_given_up or len(self._waiting[0].answers) <= room
        ):
            job = self._waiting.popleft()
            if not job.is_given_up:
                room -= len(job.answers)
                new.append(job)
        return new

    def _drop_given_up(self) -> None:
        gone = [job for job in self._running if job.is_given_up]
        if not gone:
            return
        self._running = [job for job in self._running if not job.is_given_up]
        try:
            self._batch.remove([answer for job in gone for answer in job.answers])
        except Exception as error:
            self._fail_running(error)

    def _join(self, new: list[_Job]) -> None:
        """Let requests join the batch; where that fails, one by one, so that only one fails."""
        if not new:
            return
        try:
            self._batch.join([job.prompt for job in new], [job.answers for job in new])
        except Exception as error:
            if len(new) == 1:
                self._fail(new, error)
                return
            for job in new:
                # Some may have their first token already.
                job.answers = [self._generator.begin(answer.sampling) for answer in job.answers]
                self._join([job])
            return
        self._running += new
        self._publish(new)

    def _step(self) -> None:
        if not len(self._batch):
            return
        try:
            self._batch.step()
        except LogitsError as error:
            self._fail_some(error)
        except Exception as error:
            self._fail_running(error)
            return
        self._publish(self._running)

    def _fail_some(self, error: LogitsError) -> None:
        """Let requests fail of which an answer cannot go on."""
        failed = [
            job for job in self._running if any(each in job.answers for each in error.answers)
        ]
        for job in failed:
            job.is_given_up = True
        self._fail(failed, error)
        self._drop_given_up()  # and their other answers with them

    def _fail_running(self, error: Exception) -> None:
        """Let all running requests fail: their batch is half done and cannot be continued."""
        failed, self._running = self._running, []
        self._batch = self._generator.running_batch()
        self._fail(failed, error)

    def _publish(self, jobs: list[_Job]) -> None:
        self._num_failures = 0
        for job in list(jobs):
            job.tell(
                [
                    PartialAnswer(
                        index,
                        answer.text,
                        len(answer.token_ids),
                        answer.finish_reason,
                        tuple(answer.logprobs),
                    )
                    for index, answer in enumerate(job.answers)
                ]
            )
        self._running = [job for job in self._running if not job.has_ended]

    def _fail(self, jobs: list[_Job], error: Exception) -> None:
        """Tell clients that the model failed. Its words go to the log, and hold no prompt."""
        logger.error("the model failed: %s: %s", type(error).__name__, error)
        if isinstance(error, LogitsError):
            told = RequestError(
                "model: its logits are NaN or infinite, so it has no next token; tell the "
                "operator of the service",
                code="logits_not_finite",
                status=500,
            )
        else:
            self._num_failures += not isinstance(error, torch.OutOfMemoryError)
            told = RequestError(
                f"model: failed with {type(error).__name__}; try again, or ask less at once",
                code="model_failed",
                status=500,
            )
        for job in jobs:
            job.tell(told)


def _stopped() -> RequestError:
    return RequestError(
        "service: has stopped; try again", code="stopping", status=503, retry_after=5
    )
