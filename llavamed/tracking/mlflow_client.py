"""Connect to MLflow: find its server, create a database, and explain errors."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported

import mlflow
import mlflow.store.db.utils
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from llavamed.config.run import RunConfig
from llavamed.errors import TrackingError
from llavamed.storage.location import locate

mlflow.store.db.utils.MAX_RETRY_COUNT = 5
"""MLflow tries ten times, for 101 seconds, whenever a database does not answer; this is three."""
os.environ.setdefault("PGCONNECT_TIMEOUT", "10")  # seconds; its client has no limit

_SETTING = "tracking.uri"
_ELSEWHERE = f"or set {_SETTING} to another server"
_PROBLEMS = (
    (
        r"The experiment (?P<id>\S+) must be in the 'active' state",
        "its experiment is deleted",
        "restore it with `mlflow experiments restore --experiment-id {id}`, or set "
        "tracking.experiment to another name",
    ),
    (
        r"The run (?P<id>\S+) must be in the 'active' state",
        "run {id} is deleted",
        "restore it with `mlflow runs restore --run-id {id}`, or start the same command again, "
        "which makes a new one from storage",
    ),
    (
        r"error code 40[13]|status code 40[13]|UNAUTHENTICATED|PERMISSION_DENIED"
        r"|authentication failed|Access denied|no password supplied|not authenticated",
        "refuses the credentials",
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of "
        "an account that may write; those of a database belong in MLFLOW_TRACKING_URI",
    ),
    (
        r"(?:Registered [Mm]odel|Model Version) (?:with name=|alias |\()(?P<id>[^\n]+?)\)?"
        r" not found",
        "its registry has no {id}",
        "check the name, or make a model the champion with `llavamed evaluate gate`",
    ),
    (
        r"error code 404|valid JSON format|Expecting value",
        "what answers there is not an MLflow server",
        "correct tracking.uri",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError",
        "its certificate cannot be verified",
        "set MLFLOW_TRACKING_SERVER_CERT_PATH to the certificate of its authority",
    ),
    (
        r"error code 5\d\d|too many 5\d\d error responses",
        "the server has failed",
        f"read its log, {_ELSEWHERE}",
    ),
    (
        r"database is locked",
        "another program has kept the database locked",
        f"end it, {_ELSEWHERE}",
    ),
    (
        r"disk is full|No space left|quota exceeded|File too large",
        "there is no space left for it",
        f"free some, {_ELSEWHERE}",
    ),
    (
        r"readonly database|[Rr]ead-only|Permission denied|unable to open database file"
        r"|Not a directory|Is a directory",
        "cannot be written",
        f"make the database and its folder writable, {_ELSEWHERE}",
    ),
    (
        r"file is not a database|is malformed|disk I/O error|no such (?:table|column)"
        r"|already exists\n\[SQL: \nCREATE",
        "the database is damaged",
        "move it away and start the same command again, which records what is in storage, "
        f"{_ELSEWHERE}",
    ),
    (
        r"No module named '(?P<id>[\w.]+)'",
        "its driver {id} is not installed",
        "install it, or set tracking.uri to another server",
    ),
    (
        r"unsupported URI|maintenance mode|Could not parse SQLAlchemy URL|Can't load plugin"
        r"|Invalid URL|No host supplied|No connection adapters",
        "is not an address that MLflow accepts",
        "use http://, https://, sqlite:/// or postgresql://",
    ),
    (
        r"Connection refused|[Nn]ame or service not known|Name does not resolve|timed out"
        r"|Temporary failure in name resolution|No route to host|Connection reset|Max retries"
        r"|Connection aborted|could not translate host name|connection failed|server closed",
        "does not answer",
        "start the server, or set tracking.uri to one that answers",
    ),
)
"""Errors of MLflow, SQLAlchemy and others: a pattern, the fact, and what to do."""

_SCHEMA = re.compile(
    r"found version (?P<id>\w+), but expected|Can't locate revision identified by '(?P<old>\w+)'"
)


def tracking_uri(config: RunConfig) -> str:
    """Return the server to use: the config's, the environment's, or SQLite in a local storage.

    Raises:
        TrackingError: There is none, and the storage is not local.
    """
    if uri := config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    storage = locate(config.storage)
    if not storage.is_local:
        raise TrackingError(
            f"tracking.uri=null: SQLite cannot live in {storage}; set tracking.uri or "
            "MLFLOW_TRACKING_URI to an MLflow server"
        )
    return _sqlite_uri(Path(storage.path) / "mlflow.db")


def shown_uri(uri: str) -> str:
    """Return a URI without its password."""
    # SQLAlchemy accepts a password with a slash in it; a number before a slash is a port.
    return re.sub(r"(://[^:/@\s]*):(?!\d{1,5}/)\S*@", r"\1:***@", uri)


@contextmanager
def readable_errors(uri: str, setting: str = _SETTING) -> Iterator[None]:
    """Turn errors of MLflow and of its libraries into a sentence about the setting of the URI.

    Raises:
        TrackingError: It replaces their error.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, CommandError, OSError, ImportError) as error:
        sentence = f"{_SETTING}={shown_uri(uri)}: {_explain(error, uri)}"
        raise TrackingError(sentence.replace(_SETTING, setting)) from error


class TrackingClient:
    """MLflow's client, each of whose methods raises TrackingError when the server refuses."""

    def __init__(self, uri: str, setting: str = _SETTING) -> None:
        self._uri, self._setting = uri, setting
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        with readable_errors(uri, setting):
            if uri.startswith("sqlite"):
                _make_database(uri)
            self._client = MlflowClient(uri)

    def __getattr__(self, name: str) -> Any:
        return readable_errors(self._uri, self._setting)(getattr(self._client, name))


def _sqlite_uri(path: Path) -> str:
    """Return the URI of a database file, with special characters of its path escaped."""
    database = path.as_posix().replace("%", "%25").replace("?", "%3F")
    # MLflow makes a folder of the quoted name for `sqlite://`, but not where a driver is named.
    scheme = "sqlite" if database == path.as_posix() else "sqlite+pysqlite"
    return f"{scheme}:///{database}"


def _make_database(uri: str) -> None:
    """Create a SQLite database next to its place, under a lock, and move it there once complete.

    Two runs that start at once would both create its tables, and a killed run would leave half of
    them, which MLflow does not repair.
    """
    database = make_url(uri).database
    if not database or database == ":memory:":
        return
    path = Path(database).absolute()
    if _is_made(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{path}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # asks no more of a network file system than SQLite does
        if _is_made(path):
            return
        unfinished = path.with_name(f"{path.name}.partial")
        for left in (unfinished, Path(f"{unfinished}-journal")):
            left.unlink(missing_ok=True)
        store = SqlAlchemyStore(_sqlite_uri(unfinished), (path.parent / "mlartifacts").as_uri())
        store.engine.dispose()
        os.replace(unfinished, path)


def _is_made(path: Path) -> bool:
    return path.exists() and (not path.is_file() or path.stat().st_size > 0)


def _explain(error: BaseException, uri: str) -> str:
    """Return what is wrong and what to do about it."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    text = "\n".join(texts)
    if found := _SCHEMA.search(text):
        return _explain_schema(found["id"] or found["old"], uri)
    for pattern, fact, hint in _PROBLEMS:
        if found := re.search(pattern, text):
            named = found.groupdict()
            said = " ".join(found[0].split())
            reason = "" if named or "'" in said else f" ({said})"
            sentence = f"{fact}{reason}; {hint}"
            return sentence.format(**named) if named else sentence
    first = shown_uri(text.strip().splitlines()[0] if text.strip() else type(error).__name__)
    return f"{first}; read the server's log, {_ELSEWHERE}"


def _explain_schema(revision: str, uri: str) -> str:
    scripts = Path(mlflow.__file__).parent / "store" / "db_migrations"
    known = {script.revision for script in ScriptDirectory(str(scripts)).walk_revisions()}
    if revision in known:
        return (
            f"an older MLflow made the database (schema {revision}); back it up, then run "
            f"`mlflow db upgrade {shown_uri(uri)}`"
        )
    return (
        f"a newer MLflow made the database (schema {revision}); install that MLflow, {_ELSEWHERE}"
    )
