"""Examine a pod from the inside: `python -m llavamed.cluster.probe URI`, which `doctor` starts.

The report is JSON in the container's termination message, so that no one needs permission to read
logs. It holds no secret.
"""

import importlib.metadata
import json
import os
import platform
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NotRequired, TypedDict

from llavamed.errors import LlavaMedError
from llavamed.storage.location import check_writable, locate

MESSAGE = Path("/dev/termination-log")
"""File from which Kubernetes reads the message."""
SHARED_MEMORY = "/dev/shm"
MAX_BYTES = 4000
"""Kubernetes keeps 4096 bytes of a message."""
_TIMEOUT_SECONDS = 20.0


class ProbeReport(TypedDict):
    """What a pod reports of itself; `doctor` reads it, also from images of other versions."""

    python: str
    llavamed: str
    ray: str | None
    shared_memory: int
    storage: NotRequired[str]
    mlflow: NotRequired[str]


def report(uri: str | None) -> ProbeReport:
    """Return a report of what a pod can do.

    Args:
        uri: Folder in which to write, read and delete a file; None to skip this test.

    Returns:
        Versions, the bytes of shared memory, and for storage and MLflow the problem, or an empty
        text.
    """
    size = os.statvfs(SHARED_MEMORY)
    facts: ProbeReport = {
        "python": platform.python_version(),
        "llavamed": importlib.metadata.version("llavamed"),
        "ray": _version_of("ray"),
        "shared_memory": size.f_frsize * size.f_blocks,
    }
    if uri is not None:
        facts["storage"] = _problem(lambda: check_writable(locate(uri)))
    server = os.environ.get("MLFLOW_TRACKING_URI")
    if server and server.startswith("http"):
        facts["mlflow"] = _problem(lambda: _ask(f"{server.rstrip('/')}/health"))
    return facts


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _problem(work: Callable[[], object]) -> str:
    try:
        work()
    except (LlavaMedError, OSError, ValueError) as error:
        return " ".join(str(error).split())[:600] or type(error).__name__
    return ""


def _ask(url: str) -> None:
    """Request a URL. Raises: OSError, if it does not answer."""
    try:
        urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError as error:
        said = error.read(200).decode(errors="replace")
        raise OSError(f"{url} answers {error.code}: {said}") from error


def main(arguments: list[str], message: Path = MESSAGE) -> None:
    """Write the report."""
    text = json.dumps(report(arguments[0] if arguments else None))
    message.write_text(text[:MAX_BYTES], encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
