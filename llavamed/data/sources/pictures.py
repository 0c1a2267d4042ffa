"""Refer to the images of rows, which are names, URIs or the image itself.

An image inside its row becomes a `data:` URI (RFC 2397) that holds it. So every reference is text,
and fetching an image does not need its row.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from llavamed.data.sources.fields import Fields
from llavamed.errors import SampleError

IMAGE_KEYS = ("image", "images", "image_file", "image_files", "image_path", "image_paths")
_PICTURE_KEYS = ("image", "image_url", "path", "url", "source", "base64", "data")
_SCHEME = "data:"
_BASE64 = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/\s]{64,}={0,2}\s*")
"""A PNG, JPEG, GIF or WebP as base64 alone, as tables hold pictures; no name is like it."""


def picture_references(value: Any) -> list[str]:
    """Return references to the images of a value: one or a list of them, in any form.

    Raises:
        SampleError: `missing_image`, if a value is not an image.
    """
    if value is None or value == "":
        return []
    return [reference_of(each) for each in (value if isinstance(value, list) else [value])]


def reference_of(value: Any) -> str:
    """Return the reference to an image given as name, URI, bytes, or a mapping with one of these.

    Raises:
        SampleError: `missing_image`.
    """
    if isinstance(value, Mapping):
        fields = Fields(value)
        data = fields.take("bytes")
        if isinstance(data, str):
            return _embed_text(data)
        inner, name = (data, "bytes") if data else fields.named(*_PICTURE_KEYS)[::-1]
        if name in {"base64", "data"} and isinstance(inner, str):
            return inner if inner.startswith(_SCHEME) else _embed_text(inner)
        if inner is None or isinstance(inner, list):
            raise SampleError("missing_image", f"no picture under any of {fields.keys()}")
        return reference_of(inner)
    if isinstance(value, bytes):
        return _embed_text(base64.b64encode(value).decode())
    if isinstance(value, str) and _BASE64.fullmatch(value):
        return _embed_text(value)
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return str(value)
    raise SampleError("missing_image", f"{value!r} is neither a name nor a picture")


def embedded_picture(reference: str) -> bytes | None:
    """Return the image that a reference holds, or None if it is a name.

    Raises:
        SampleError: `corrupt_image`, if the image cannot be decoded.
    """
    if reference[: len(_SCHEME)].lower() != _SCHEME:
        return None
    head, comma, text = reference.partition(",")
    data = unquote_to_bytes(text.encode(errors="replace"))
    try:
        if not comma:
            raise ValueError("it has no comma")
        return base64.b64decode(data, validate=True) if head.lower().endswith(";base64") else data
    except (binascii.Error, ValueError) as error:
        raise SampleError("corrupt_image", f"{head[:40]!r} URI: {error}") from error


def _embed_text(text: str) -> str:
    return f"{_SCHEME};base64,{''.join(text.split())}"
