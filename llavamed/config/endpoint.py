"""An OpenAI-compatible endpoint: its address, abilities, limits and prices."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llavamed.config.section import Count, Fraction, Section, added_later

Price = Annotated[float, Field(ge=0)]


class Prices(Section):
    """Prices per million tokens, all in the same currency."""

    input: Price
    """Price of prompt tokens."""
    output: Price
    """Price of answer tokens."""
    cached_input: Price | None = None
    """Price of prompt tokens that the endpoint has cached. By default `input`."""
    batch: Fraction = 0.5
    """Fraction of these prices that requests in a batch file cost."""


class Endpoint(Section):
    """A model behind an OpenAI-compatible endpoint. Limits apply to one client."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")]
    """Address of the API up to its version, such as `http://127.0.0.1:8000/v1`."""
    model: Annotated[str, Field(min_length=1)]
    """Name of the model at the endpoint."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Name of the environment variable that holds the key. By default no key is sent."""
    json_schema: bool = True
    """Whether the endpoint can enforce a JSON schema. Otherwise the prompt asks for the format."""
    limit_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name of the endpoint's field for the maximum number of tokens of an answer."""
    takes_temperature: bool = added_later(True)
    """Whether the model takes a temperature. Otherwise none is sent, to any of its uses."""
    max_in_flight: Count = 8
    """Maximum number of requests that wait for an answer at once."""
    requests_per_minute: Count | None = None
    """Maximum number of requests sent per minute."""
    tokens_per_minute: Count | None = None
    """Maximum number of tokens per minute, with estimated prompts and longest answers."""
    attempts: Count = 8
    """Number of times that a request is sent while it fails for a temporary reason."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    """Seconds within which an answer must be complete."""
    tokens_per_image: Count = 1500
    """Number of tokens that an image counts for in estimates and limits."""
    prices: Prices | None = None
    """Prices of tokens. `max_cost` requires them."""
    max_cost: Annotated[float, Field(gt=0)] | None = None
    """Maximum cost that a client may cause. Answers in the cache cost nothing."""

    @model_validator(mode="after")
    def _cost_is_known(self) -> Self:
        if self.max_cost is not None and self.prices is None:
            raise ValueError(
                f"max_cost={self.max_cost:g}: cannot be kept without prices; set prices.input and "
                "prices.output, or remove it"
            )
        return self
