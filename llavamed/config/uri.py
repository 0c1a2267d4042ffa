"""URIs that say how their storage is reached: `s3://bucket/path?anonymous=true&endpoint=https://host`.

Options stand at the end of an `s3://` URI, after a `?`, and travel with it to every process. Other
URIs and local paths have none, and keep their question marks.
"""

_WITH_OPTIONS = ("s3://", "s3a://")


def split_options(uri: str) -> tuple[str, str]:
    """Return a URI without its options, and the options as they are written."""
    if not uri.startswith(_WITH_OPTIONS):
        return uri, ""
    plain, _, options = uri.partition("?")
    return plain, options


def below(uri: str, name: str) -> str:
    """Return the URI of a name below a folder, reached in the same way."""
    folder, options = split_options(uri)
    return f"{folder.rstrip('/')}/{name}" + (f"?{options}" if options else "")
