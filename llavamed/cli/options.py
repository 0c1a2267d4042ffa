"""Options that all commands share: how to find the config of a run, and where to print."""

import logging
import os
import socket
from typing import Annotated

import typer
from rich.console import Console

from llavamed.config.load import load_config
from llavamed.config.paths import resolve_places
from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError
from llavamed.run.job_storage import settle_storage

logger = logging.getLogger(__name__)
console = Console(markup=False, emoji=False, highlight=False)
"""Where results are printed. Texts of data and models may hold brackets, which are not markup."""

ConfigFile = Annotated[
    str | None, typer.Option("--config", help="YAML file; default: the one LLAVAMED_CONFIG names.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="e.g. stages.align.optimizer.lr=1e-3"),
]


def print_line(text: str) -> None:
    """Print a sentence without breaking its line."""
    console.print(text, soft_wrap=True)


def find_config(path: str | None) -> str:
    """Return the path of the config that a command was given. Raises: ConfigError."""
    path = path or os.environ.get("LLAVAMED_CONFIG")
    if path is None:
        raise ConfigError(
            "--config: is missing; name the YAML file of the run, or set LLAVAMED_CONFIG"
        )
    return path


def load_run(
    path: str | None, overrides: list[str] | None, *, num_workers: int | None = None
) -> RunConfig:
    """Read the config of a run, log its path, and make its own paths valid in every process.

    Args:
        num_workers: A number of workers that is planned for, where the config's own is refused.

    Raises:
        ConfigError: No config was given, or it breaks a rule.
    """
    path = find_config(path)
    logger.info("config: %s", path)
    try:
        given = load_config(path, overrides or [])
    except ConfigError:
        if num_workers is None:
            raise
        given = load_config(path, [*(overrides or []), f"scaling.num_workers={num_workers}"])
    settled = settle_storage(given)
    if settled.storage != given.storage:
        logger.info("storage: %s on %s", settled.storage, socket.gethostname())
    return resolve_places(settled)
