"""The service that answers questions: its address, access, limits and logs."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llavamed.config.section import Count, Section
from llavamed.config.uri import check_no_password

_Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_Host = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
_Origin = Annotated[str, Field(pattern=r"^https?://[^\s/@*]+$")]
LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Hosts that only this machine can reach."""


class Limits(Section):
    """Limits of a request. Larger ones are refused before they are read or decoded."""

    body_bytes: Count = 20_000_000
    """Maximum size of a request, in bytes."""
    messages: Count = 100
    """Maximum number of messages in a conversation."""
    images: Count = 4
    """Maximum number of images in a conversation."""
    image_bytes: Count = 10_000_000
    """Maximum size of an encoded image, in bytes."""
    image_pixels: Count = 40_000_000
    """Maximum number of pixels of an image, according to its header."""
    max_tokens: Count = 1024
    """Maximum number of tokens of an answer."""
    default_max_tokens: Count = 512
    """Maximum number of tokens of an answer if the request sets none."""
    answers: Count = 4
    """Maximum number of answers to one request, as its `n` asks."""
    requests_per_minute: Count = 120
    """Maximum number of requests with one token in a minute."""
    read_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Seconds within which a request must arrive."""


class Serving(Section):
    """A service that speaks OpenAI's chat completions."""

    host: str = "127.0.0.1"
    """Address to listen on. By default only this machine can reach it."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on. 0 takes any free port."""
    name: Annotated[str, Field(min_length=1, max_length=200)] = "llavamed"
    """Name of the model, by which clients request it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs. `auto` takes a GPU where there is one."""
    token_env: _Variable = "LLAVAMED_SERVE_TOKEN"
    """Name of the environment variable with the tokens of clients, separated by commas. Without
    it and without `token_file`, a token is generated and printed once."""
    token_file: str | None = None
    """File with the tokens of clients, one per line."""
    open_access: bool = False
    """Whether clients need no token. This requires an address that only this machine can reach."""
    origins: tuple[_Origin, ...] = ()
    """Origins of other web pages that may send requests from a browser. By default none."""
    page_origins: tuple[_Origin, ...] = ()
    """Origins of other services that the page may query, to compare two models."""
    image_hosts: tuple[_Host, ...] = ()
    """Hosts from which images may be fetched by https. By default images must be in the request."""
    max_batch_size: Count = 8
    """Maximum number of answers that are generated at once."""
    max_waiting: Count = 32
    """Maximum number of requests that wait. Others are refused with status 429."""
    drain_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that running requests have to finish when the service stops."""
    examples: tuple[Annotated[str, Field(min_length=1)], ...] = (
        "What does this image show?",
        "Which organ is shown, and in which plane?",
        "Is there an abnormality? Where?",
        "Describe the image for a report.",
    )
    """Questions that the page offers before the first one is asked."""
    limits: Limits = Limits()
    engine_url: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")] | None = None
    """Address of an OpenAI-compatible engine that answers instead of this process, such as
    `http://127.0.0.1:8001/v1` of vLLM. Its model must be called `name`."""
    engine_key_env: _Variable | None = None
    """Name of the environment variable with the key of that engine."""
    engine_timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    """Seconds within which that engine must send something."""
    log_content: bool = False
    """Whether the audit log and the traces also contain the texts of questions and answers. Images
    are never stored."""
    audit_log: str | None = None
    """File for the audit log: one JSON line per request, with time, client, size and outcome."""
    tracking_uri: str | None = None
    """MLflow server or database that receives a trace of each request. By default none is sent."""
    feedback_file: str | None = None
    """File for feedback, as JSON lines, of users who consented. By default no feedback is
    accepted."""

    @model_validator(mode="after")
    def _access_fits_the_address(self) -> Self:
        if self.open_access and self.host not in LOOPBACK:
            raise ValueError(
                f"open_access=true: host={self.host} is reachable from other machines; remove it, "
                f"or set host to {LOOPBACK[0]}"
            )
        if self.log_content and self.audit_log is None and self.tracking_uri is None:
            raise ValueError(
                "log_content=true: there is no log for the texts; set audit_log or tracking_uri"
            )
        check_no_password(self.tracking_uri, "tracking_uri")
        return self
