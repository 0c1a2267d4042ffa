"""Logging of the command line: configured once, by `main`, before anything heavy is imported.

Our own messages go to stderr: as plain sentences on a terminal, elsewhere (a job, a file) as lines
with time and level. Messages of libraries are shown only with `--verbose`.
"""

import logging
import os
import sys
from typing import Literal

from rich.console import Console

Verbosity = Literal["quiet", "normal", "verbose"]

log_console = Console(stderr=True, markup=False, emoji=False, highlight=False)
"""Where log messages and progress bars are shown."""

_LEVELS: dict[Verbosity, int] = {
    "quiet": logging.WARNING,
    "normal": logging.INFO,
    "verbose": logging.DEBUG,
}
_LINE = "%(asctime)s %(levelname)s %(message)s"
_NAME = "llavamed"
_LIBRARY_SETTINGS = {"MLFLOW_LOGGING_LEVEL": "CRITICAL", "TRANSFORMERS_VERBOSITY": "critical"}
"""Environment variables that libraries read for their own log handlers when they are imported."""


def configure_logging(verbosity: Verbosity) -> None:
    """Show our messages from a level up, and messages of libraries only with `verbose`.

    A second call replaces the setup of the first.
    """
    is_verbose = verbosity == "verbose"
    handler: logging.Handler
    if log_console.is_terminal:
        handler = _TerminalHandler()
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(_LINE, "%Y-%m-%d %H:%M:%S"))
    handler.set_name(_NAME)
    if not is_verbose:
        handler.addFilter(logging.Filter(_NAME))
        for name, value in _LIBRARY_SETTINGS.items():
            os.environ.setdefault(name, value)
    root = logging.getLogger()
    for before in [each for each in root.handlers if each.get_name() == _NAME]:
        root.removeHandler(before)
    root.addHandler(handler)
    logging.getLogger(_NAME).setLevel(_LEVELS[verbosity])
    logging.captureWarnings(True)


class _TerminalHandler(logging.Handler):
    """Prints a message above the progress bar; warnings and errors in colour."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        style = {logging.WARNING: "yellow", logging.ERROR: "red"}.get(record.levelno)
        log_console.print(self.format(record), style=style, soft_wrap=True)
