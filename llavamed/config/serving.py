"""The service that answers questions: where it listens, who may ask, how much, and what is kept."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llavamed.config.section import Count, Section
from llavamed.config.uri import check_no_password

_Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_Host = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
_Origin = Annotated[str, Field(pattern=r"^https?://[^\s/@*]+$")]
LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Hosts that only this machine reaches."""


class Limits(Section):
    """What a request may hold. Larger ones are refused before they are read or decoded."""

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
    """Seconds in which a request must have arrived."""


class Serving(Section):
    """A service that speaks OpenAI's chat completions."""

    host: str = "127.0.0.1"
    """Address to listen at. By default only this machine reaches it."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen at. 0 takes any free one."""
    name: Annotated[str, Field(min_length=1, max_length=200)] = "llavamed"
    """Name of the model, as clients ask for it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs. `auto` takes a GPU where there is one."""
    token_env: _Variable = "LLAVAMED_SERVE_TOKEN"
    """Name of the environment variable with the tokens of clients, separated by commas. Without
    it and without `token_file`, a token is made and printed once."""
    token_file: str | None = None
    """File with the tokens of clients, one per line."""
    open_access: bool = False
    """Whether clients need no token. Only possible at an address of this machine."""
    origins: tuple[_Origin, ...] = ()
    """Origins of other pages that browsers may send requests from. By default none."""
    page_origins: tuple[_Origin, ...] = ()
    """Origins of other services that the page may ask, to compare two models."""
    image_hosts: tuple[_Host, ...] = ()
    """Hosts that images are fetched from by https. By default images come in the request only."""
    max_batch_size: Count = 8
    """Maximum number of answers that are generated at once."""
    max_waiting: Count = 32
    """Maximum number of requests that wait. Others are refused with status 429."""
    drain_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Seconds in which running requests may end when the service stops."""
    limits: Limits = Limits()
    engine_url: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")] | None = None
    """Address of an OpenAI-compatible engine that answers instead of this process, such as
    `http://127.0.0.1:8001/v1` of vLLM. Its model must have the name `name`."""
    engine_key_env: _Variable | None = None
    """Name of the environment variable with the key of that engine."""
    engine_timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    """Seconds in which that engine must say something."""
    log_content: bool = False
    """Whether the audit log and the traces also hold the texts of questions and answers. Images are
    never kept."""
    audit_log: str | None = None
    """File of JSON lines, one for each request: when, who, how much and how it ended."""
    tracking_uri: str | None = None
    """MLflow server or database that gets a trace of each request. By default none is sent."""
    feedback_file: str | None = None
    """File of JSON lines with the opinions of users who agreed to it. By default none are taken."""

    @model_validator(mode="after")
    def _access_fits_the_address(self) -> Self:
        if self.open_access and self.host not in LOOPBACK:
            raise ValueError(
                f"open_access=true: host={self.host} is reached from other machines; remove it, or "
                f"set host to {LOOPBACK[0]}"
            )
        if self.log_content and self.audit_log is None and self.tracking_uri is None:
            raise ValueError(
                "log_content=true: nothing would hold them; set audit_log or tracking_uri"
            )
        check_no_password(self.tracking_uri, "tracking_uri")
        return self
