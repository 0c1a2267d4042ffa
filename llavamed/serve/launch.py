"""Start the service in one process: load the model, listen, say where, and drain at the end."""

import logging
import os
import socket
from collections.abc import Callable

import uvicorn

from llavamed.config.serving import Serving
from llavamed.errors import ConfigError
from llavamed.serve.access import read_tokens
from llavamed.serve.backend import Backend, EngineBackend, LocalBackend
from llavamed.serve.export import open_export
from llavamed.serve.service import Service
from llavamed.tracking.registered import find_export

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 620
"""Seconds for which an idle connection stays open. Those of a proxy or load balancer must end
first, or it sends requests into one that is just being closed; Google's stay open for 600."""


def make_backend(export: str | None, serving: Serving) -> Backend:
    """Return what answers: the model of an export, or the engine of the settings.

    Raises:
        CheckpointError: The export is incomplete or damaged.
        ConfigError: Neither or both are given, or the engine's key is missing.
    """
    if (export is None) == (serving.engine_url is None):
        raise ConfigError(
            f"export={export}, engine_url={serving.engine_url}: must be one of the two; name an "
            "export, or set engine_url"
        )
    if export is not None:
        return LocalBackend(open_export(find_export(export), device=serving.device), serving)
    key = None
    if serving.engine_key_env is not None:
        # A key from a file or a Secret often ends with a line break, which no header may hold.
        key = os.environ.get(serving.engine_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"engine_key_env={serving.engine_key_env}: is not set in the environment; set it"
            )
    return EngineBackend(serving, key)


def serve(export: str | None, serving: Serving, tell: Callable[[str], None]) -> None:
    """Serve until a signal comes, and let running requests end.

    Args:
        export: Folder of the export, at any URI, or a registered model; None for an engine.
        serving: The settings.
        tell: Prints a line for the operator.

    Raises:
        CheckpointError: The export is incomplete or damaged.
        ConfigError: The settings do not fit together, or the port is taken.
    """
    tokens, made = read_tokens(serving)
    listener = _listen(serving)
    service = Service(serving, make_backend(export, serving), tokens, export)
    listener.listen()  # clients may come as soon as they know the address
    address = page_address(serving.host, listener.getsockname()[1])
    # Browsers send no fragment to the server, so the token is in no log.
    tell(f"page: {address}/{f'#token={made}' if made else ''}")
    tell(f"API:  {address}/v1 (model {serving.name})")
    if made:
        tell(f"token, made for this start: {made}")
    tell("Ctrl-C stops the service, once running answers have ended.")
    config = uvicorn.Config(
        service.app(),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(serving.drain_seconds),
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn passes a signal on after it has ended
        raise KeyboardInterrupt(
            "the service has stopped; the same command starts it again"
        ) from None


def page_address(host: str, port: int) -> str:
    """Return the address at which this machine reaches a service that listens at `host`."""
    host = {"0.0.0.0": "127.0.0.1", "localhost": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listen(serving: Serving) -> socket.socket:
    family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((serving.host, serving.port))
    except OSError as error:
        raise ConfigError(
            f"port={serving.port}: cannot listen there at host={serving.host} "
            f"({error.strerror}); choose another"
        ) from error
    listener.set_inheritable(True)
    return listener
