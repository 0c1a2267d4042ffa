"""Pictures as rows give them: a name or URI, or the picture itself in the row.

A picture that lies in its row is referred to by a `data:` URI (RFC 2397), which holds it. So all
references are texts, and who fetches a picture needs nothing of the row.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from llavamed.data.sources.fields import Fields
from llavamed.errors import SampleError

IMAGE_KEYS = ("image", "images", "image_file", "image_files", "image_path", "image_paths")
_PICTURE_KEYS = ("image", "image_url", "path", "url", "source", "base64", "data")
_SCHEME = "data:"


def picture_references(value: Any) -> list[str]:
    """References to the pictures of a value: one or a list of them, each in any form.

    Raises:
        SampleError: `missing_image`, for what is no picture.
    """
    if value is None or value == "":
        return []
    return [reference_of(each) for each in (value if isinstance(value, list) else [value])]


def reference_of(value: Any) -> str:
    """A picture's name, URI or bytes, or a mapping that holds one of them, as a reference.

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
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return str(value)
    raise SampleError("missing_image", f"{value!r} is neither a name nor a picture")


def embedded_picture(reference: str) -> bytes | None:
    """The picture that a reference holds; None where it only names one.

    Raises:
        SampleError: `corrupt_image`, for what cannot be decoded.
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
