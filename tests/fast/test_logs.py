"""What the command line shows of messages: ours by level, those of libraries when asked for."""

import logging
import warnings
from collections.abc import Iterator

import pytest

from llavamed.cli.logs import Verbosity, configure_logging


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Leave the logging of this process as it was."""
    ours = logging.getLogger("llavamed")
    before, level = list(logging.getLogger().handlers), ours.level
    yield
    logging.captureWarnings(False)
    logging.getLogger().handlers[:] = before
    ours.setLevel(level)


def say_everything() -> None:
    for name in ("llavamed.run.driver", "library"):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING):
            logging.getLogger(name).log(level, "%s %d", name, level)
    warnings.warn("an old name", FutureWarning, stacklevel=1)


@pytest.mark.parametrize(
    ("verbosity", "shown"),
    [
        ("quiet", ["WARNING llavamed.run.driver 30"]),
        ("normal", ["INFO llavamed.run.driver 20", "WARNING llavamed.run.driver 30"]),
    ],
)
def test_only_our_messages_are_shown(
    verbosity: Verbosity, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(verbosity)
    configure_logging(verbosity)  # again, as a second command of one process does
    say_everything()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == shown
    for line in lines:
        assert line[:19].replace("-", "").replace(":", "").replace(" ", "").isdigit()


def test_verbose_shows_what_libraries_say_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("verbose")
    say_everything()
    err = capsys.readouterr().err
    for text in ("DEBUG llavamed.run.driver 10", "WARNING library 30", "an old name"):
        assert text in err


def test_a_terminal_shows_sentences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    configure_logging("normal")
    logging.getLogger("llavamed.x").info("[bold]%s[/bold] is no markup, and long", "this")
    assert capsys.readouterr().err == "[bold]this[/bold] is no markup, and long\n"
