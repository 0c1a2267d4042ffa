"""A web server of a test, on a thread of its own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import SSLContext


class _Server(ThreadingHTTPServer):
    block_on_close = False  # a request that hangs does not hold the test
    request_queue_size = 128


@contextmanager
def serving(
    handler: type[BaseHTTPRequestHandler],
    *,
    address: str = "127.0.0.1",
    tls: SSLContext | None = None,
) -> Iterator[str]:
    """Serve on a free port without logging requests, and give the URL."""
    quiet = type(handler.__name__, (handler,), {"log_message": lambda *_: None})
    with _Server((address, 0), quiet) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"{'https' if tls else 'http'}://{address}:{server.server_port}"
        finally:
            server.shutdown()
