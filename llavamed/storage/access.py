"""How an S3 location is reached: without credentials, or at an endpoint of its own.

By default credentials and endpoint come from the environment (`AWS_ACCESS_KEY_ID`,
`AWS_ENDPOINT_URL`, ...), which are the same for all locations of a process. A URI may differ from
them, so that one run reads a public bucket and writes to a private one:

    s3://pmc-oa-opendata?anonymous=true
    s3://figures/chest?endpoint=https://minio.example.org:9000

Secrets never appear in a URI, because URIs are written to logs, configs and manifests.
"""

from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from llavamed.config.uri import split_options
from llavamed.errors import StorageError

MAX_CONNECTIONS = 64
"""Connections that a process keeps to one server; botocore's 10 hold back many small requests."""
_KNOWN = "use anonymous=true, endpoint=URL, or both joined by &"


def read_access(uri: str) -> tuple[str, dict[str, Any]]:
    """Return a URI without its options, and the arguments of its filesystem.

    Raises:
        StorageError: An option is unknown or wrong, or the URI holds a secret.
    """
    plain, written = split_options(uri)
    if not plain.startswith(("s3://", "s3a://")):
        return uri, {}
    bucket = plain.partition("://")[2].partition("/")[0]
    if "@" in bucket:
        shown = plain.replace(bucket, "***@" + bucket.rpartition("@")[2], 1)
        raise StorageError(
            f"{shown}: a URI holds no credentials; put them into the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) and remove them here"
        )
    options: dict[str, Any] = {}
    for part in filter(None, written.split("&")):
        [(key, value)] = parse_qsl(part, keep_blank_values=True) or [("", "")]
        if key == "anonymous" and value == "true":
            options["anon"] = True
        elif key == "endpoint" and _is_endpoint(value):
            options["endpoint_url"] = value.rstrip("/")
        else:
            raise StorageError(
                f"{plain}?{key}=...: is not an option of a location, or has a wrong value; {_KNOWN}"
            )
    # In a fixed order, because fsspec compares filesystems by their arguments as given.
    options["config_kwargs"] = {"max_pool_connections": MAX_CONNECTIONS}
    return plain, dict(sorted(options.items()))


def write_access(fs: Any) -> str:
    """Return the options of a filesystem as the end of a URI; empty where it has none."""
    arguments = fs.storage_options
    options = {"anonymous": "true"} if arguments.get("anon") else {}
    if endpoint := arguments.get("endpoint_url"):
        options["endpoint"] = endpoint
    return f"?{urlencode(options, safe=':/', quote_via=quote)}" if options else ""


def _is_endpoint(value: str) -> bool:
    try:
        found = urlsplit(value)
        port_is_valid = found.port is None or found.port > 0
    except ValueError:
        return False
    is_plain = not (found.username or found.password or found.query or found.fragment)
    return found.scheme in {"http", "https"} and bool(found.hostname) and is_plain and port_is_valid
