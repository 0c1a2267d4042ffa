"""What tokens cost: an estimate before the first request, and a bound that no request passes."""

from collections.abc import Iterable
from dataclasses import dataclass

from llavamed.config.endpoint import Endpoint, Prices
from llavamed.errors import EndpointError
from llavamed.llm.request import Request

_MILLION = 1_000_000


@dataclass(frozen=True)
class Usage:
    """Tokens of an answer and its prompt.

    Attributes:
        prompt_tokens: All tokens of the prompt.
        cached_tokens: Those of them that the endpoint had read before.
        completion_tokens: Tokens of the answer.
        is_estimated: The endpoint did not say, and they are counted from bytes.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    is_estimated: bool = False

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            self.is_estimated or other.is_estimated,
        )


NO_TOKENS = Usage()


@dataclass(frozen=True)
class CostEstimate:
    """What requests take, before any is sent.

    Attributes:
        num_requests: Number of requests.
        prompt_tokens: Estimated tokens of the prompts.
        max_completion_tokens: Tokens of the answers when each is as long as it may be.
        cost: Price of both, None without prices. A repair or a lost answer is not in it.
    """

    num_requests: int
    prompt_tokens: int
    max_completion_tokens: int
    cost: float | None


def cost(usage: Usage, prices: Prices, *, is_batch: bool = False) -> float:
    """Return the price of the tokens, of a batch file or not."""
    cached = prices.input if prices.cached_input is None else prices.cached_input
    price = (
        (usage.prompt_tokens - usage.cached_tokens) * prices.input
        + usage.cached_tokens * cached
        + usage.completion_tokens * prices.output
    ) / _MILLION
    return price * prices.batch if is_batch else price


def estimate(requests: Iterable[Request], endpoint: Endpoint) -> CostEstimate:
    """Return what the requests would take. Two that are equal are paid for once, and count twice.

    Args:
        requests: Read once; none is kept.
        endpoint: Whose prices and counts of image tokens hold.
    """
    count, total = 0, Usage(is_estimated=True)
    for request in requests:
        count += 1
        total += Usage(request.prompt_tokens(endpoint), 0, request.max_tokens)
    price = None if endpoint.prices is None else cost(total, endpoint.prices)
    return CostEstimate(count, total.prompt_tokens, total.completion_tokens, price)


class Budget:
    """What a client spends. The maximum cost of a request is reserved before it is sent."""

    def __init__(self, endpoint: Endpoint, *, is_batch: bool = False) -> None:
        self._endpoint = endpoint
        self._is_batch = is_batch
        self.spent = 0.0
        """Price of all answers so far, and of those that were lost on their way."""
        self.reserved = 0.0
        """The maximum cost of requests without an answer."""

    def reserve(self, request: Request) -> float:
        """Reserve the maximum cost of the request, and return it.

        Raises:
            EndpointError: It could pass `max_cost`. Nothing is set aside, and it must not be sent.
        """
        prices, most = self._endpoint.prices, self._endpoint.max_cost
        if prices is None:
            return 0.0
        # Nobody knows yet which tokens the endpoint has read before.
        dearest = max(prices.input, prices.cached_input or 0.0)
        tokens = Usage(request.most_prompt_tokens(self._endpoint), 0, request.max_tokens)
        dear = prices.model_copy(update={"input": dearest})
        amount = cost(tokens, dear, is_batch=self._is_batch)
        if most is not None and self.spent + self.reserved + amount > most:
            raise EndpointError(
                f"max_cost={most:g}: {self.spent:.6g} are spent, {self.reserved:.6g} are set aside "
                f"for requests without an answer yet, and the next may cost {amount:.6g}; raise "
                "max_cost and start again, which pays for no answer twice"
            )
        self.reserved += amount
        return amount

    def settle(self, reserved: float, spent: float) -> None:
        """Release what was set aside for a request, and count what it cost."""
        self.reserved = max(0.0, self.reserved - reserved)
        self.spent += spent
