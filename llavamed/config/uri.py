"""Options of a URI: `s3://bucket/path?anonymous=true&endpoint=https://host`.

Options follow a `?` at the end of an `s3://` URI and go with it to every process. Other
URIs and local paths have none, and keep their question marks.
"""

from urllib.parse import urlsplit

_WITH_OPTIONS = ("s3://", "s3a://")


def split_options(uri: str) -> tuple[str, str]:
    """Return a URI without its options, and the options as they are written."""
    if not uri.startswith(_WITH_OPTIONS):
        return uri, ""
    plain, _, options = uri.partition("?")
    return plain, options


def below(uri: str, name: str) -> str:
    """Return the URI of a name below a folder, with the same options."""
    folder, options = split_options(uri)
    return f"{folder.rstrip('/')}/{name}" + (f"?{options}" if options else "")


def check_no_password(uri: str | None, key: str) -> None:
    """Raise ValueError if the URI of an MLflow server holds a password or is invalid."""
    try:
        password = urlsplit(uri or "").password
    except ValueError as error:
        raise ValueError(f"{key}: is not a valid URI ({error}); correct it") from error
    if password is not None:
        raise ValueError(
            f"{key}: holds a password, and a config is shown and stored; remove it and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
        )
