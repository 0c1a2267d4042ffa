"""An OpenAI-compatible endpoint: where it is, what it understands, what it allows and costs."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llavamed.config.section import Count, Fraction, Section

Price = Annotated[float, Field(ge=0)]


class Prices(Section):
    """Prices per million tokens, in any one currency."""

    input: Price
    """Price of tokens of a prompt."""
    output: Price
    """Price of tokens of an answer."""
    cached_input: Price | None = None
    """Price of tokens of a prompt that the endpoint has read before. By default `input`."""
    batch: Fraction = 0.5
    """Fraction of these prices that requests of a batch file cost."""


class Endpoint(Section):
    """A model behind an OpenAI-compatible endpoint. Limits hold for one client."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")]
    """Address of the API up to its version, such as `http://127.0.0.1:8000/v1`."""
    model: Annotated[str, Field(min_length=1)]
    """Name of the model at the endpoint."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Name of the environment variable that holds the key. By default no key is sent."""
    json_schema: bool = True
    """The endpoint can hold an answer to a JSON schema. Otherwise the prompt asks for it."""
    limit_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name that the endpoint has for the largest number of tokens of an answer."""
    max_in_flight: Count = 8
    """Largest number of requests that wait for an answer at once."""
    requests_per_minute: Count | None = None
    """Largest number of requests sent in a minute."""
    tokens_per_minute: Count | None = None
    """Largest number of tokens asked for in a minute: estimated prompts and longest answers."""
    attempts: Count = 8
    """Number of times that a request is sent while it fails by what may pass."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    """Seconds in which an answer must be complete."""
    tokens_per_image: Count = 1500
    """Number of tokens that an image counts in estimates and limits."""
    prices: Prices | None = None
    """What tokens cost. Required by `max_cost`."""
    max_cost: Annotated[float, Field(gt=0)] | None = None
    """Most that a client may spend. Answers in the cache cost nothing."""

    @model_validator(mode="after")
    def _cost_is_known(self) -> Self:
        if self.max_cost is not None and self.prices is None:
            raise ValueError(
                f"max_cost={self.max_cost:g}: cannot be kept without prices; set prices.input and "
                "prices.output, or remove it"
            )
        return self
