"""Who may ask: the tokens of clients, and how many requests each may send."""

import hashlib
import hmac
import math
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from llavamed.config.serving import Serving
from llavamed.errors import ConfigError, RequestError
from llavamed.storage.location import locate

_SHORTEST = 16


@dataclass
class _Bucket:
    """Requests that a token may still send; it fills by the minute."""

    left: float
    at: float


@dataclass
class Access:
    """Tells clients apart by their tokens, and keeps each to its rate."""

    tokens: tuple[str, ...]
    """The tokens that may ask. Without any, everybody may."""
    requests_per_minute: int
    clock: Callable[[], float] = time.monotonic
    _buckets: dict[str, _Bucket] = field(default_factory=dict)

    def client(self, authorization: str | None) -> str:
        """Return the name of the client that sends this header, which is not a secret.

        Raises:
            RequestError: The token is absent or wrong.
        """
        if not self.tokens:
            return "everybody"
        kind, _, given = (authorization or "").strip().partition(" ")
        if kind.lower() != "bearer" or not given:
            raise RequestError(
                "Authorization: no token is sent; send the header Authorization: Bearer TOKEN",
                code="missing_token",
                status=401,
            )
        # All are compared, so that the time tells nothing.
        sent = given.strip().encode()
        matching = [t for t in self.tokens if hmac.compare_digest(t.encode(), sent)]
        if not matching:
            raise RequestError(
                "Authorization: the token is not known; ask the operator for one",
                code="invalid_token",
                status=401,
            )
        return hashlib.sha256(matching[0].encode()).hexdigest()[:8]

    def count(self, client: str) -> None:
        """Count a request. Raises: RequestError, if the client has sent too many."""
        now, most = self.clock(), self.requests_per_minute
        bucket = self._buckets.setdefault(client, _Bucket(most, now))
        bucket.left = min(most, bucket.left + (now - bucket.at) * most / 60)
        bucket.at = now
        if bucket.left < 1:
            raise RequestError(
                f"rate: more than {most} requests in a minute; try again later",
                code="rate_limit_exceeded",
                status=429,
                retry_after=math.ceil((1 - bucket.left) * 60 / most),
            )
        bucket.left -= 1


def read_tokens(serving: Serving) -> tuple[tuple[str, ...], str | None]:
    """Return the tokens of clients, and the one of them that was made now, if any.

    Raises:
        ConfigError: A file or variable holds no token, or one that is easy to guess.
    """
    if serving.open_access:
        return (), None
    if serving.token_file is not None:
        key = f"token_file={serving.token_file}"
        try:
            text = locate(serving.token_file).read_bytes().decode()
        except (FileNotFoundError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{key}: cannot be read as text; write one token per line into it"
            ) from error
        tokens = tuple(text.split())
    elif serving.token_env in os.environ:
        key = f"token_env={serving.token_env}"
        tokens = tuple(os.environ[serving.token_env].replace(",", " ").split())
    else:
        made = secrets.token_urlsafe(24)
        return (made,), made
    if not tokens or min(map(len, tokens)) < _SHORTEST or not "".join(tokens).isascii():
        raise ConfigError(
            f"{key}: must hold tokens of at least {_SHORTEST} letters and digits; make one with "
            "openssl rand -hex 24"
        )
    return tokens, None
