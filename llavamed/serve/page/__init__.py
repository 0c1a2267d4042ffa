"""The chat page: static files of this package, which send requests only to the service they come
from."""

from importlib.resources import files

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self' {origins}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content security policy of the page: no foreign origin, and no script or style inside HTML."""

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


def read_page() -> dict[str, tuple[bytes, str]]:
    """Return the content and the media type of each file of the page, by name."""
    found = {}
    for file in files(__name__).iterdir():
        ending = "." + file.name.rpartition(".")[2]
        if ending in _TYPES:
            found[file.name] = (file.read_bytes(), _TYPES[ending])
    return found
