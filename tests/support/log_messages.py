"""What our code logs, handed to a test as it is logged."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Caller(logging.Handler):
    def __init__(self, action: Callable[[str], object]) -> None:
        super().__init__()
        self._action = action

    def emit(self, record: logging.LogRecord) -> None:
        self._action(record.getMessage())


@contextmanager
def on_log(
    action: Callable[[str], object], *, name: str = "llavamed", level: int = logging.INFO
) -> Iterator[None]:
    """Call `action` with each message of a logger and those below it, from a level on."""
    logger, handler = logging.getLogger(name), _Caller(action)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
