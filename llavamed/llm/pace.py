"""Decide when the next request may be sent: a limited number per minute, and none while told to
wait.

Requests are spread evenly instead of sent in a burst at each minute's start, which is what
endpoints count against their own shorter windows.
"""

import math
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

_MINUTE_SECONDS = 60.0


class Pace:
    """Two limits by the minute, each optional: requests and tokens."""

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with nothing sent.

        Args:
            requests_per_minute: Limit of requests.
            tokens_per_minute: Limit of tokens. A request beyond a whole minute's waits longer.
            now: Clock in seconds.
        """
        self._limits = (requests_per_minute or math.inf, tokens_per_minute or math.inf)
        self._now = now
        self._free_at = [-math.inf, -math.inf]
        self._held_until = -math.inf

    def take(self, tokens: int) -> float:
        """Count a request of this many tokens, and return the seconds after which to send it."""
        now = self._now()
        at = max(now, self._held_until, *self._free_at)
        for index, amount in enumerate((1, tokens)):
            self._free_at[index] = at + amount * _MINUTE_SECONDS / self._limits[index]
        return at - now

    def hold(self, seconds: float) -> None:
        """Hold back every request that is counted from now on for this many seconds."""
        self._held_until = max(self._held_until, self._now() + seconds)


def retry_after_seconds(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float:
    """Return the seconds that the headers of a response ask to wait, 0 where they ask nothing.

    They are a number or a date in `Retry-After`, or `retry-after-ms`, which some send in addition.

    Args:
        headers: By lower-case name.
        now: Clock in seconds since 1970.
    """
    for name, divisor in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            seconds = float(headers.get(name, "")) / divisor
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - now())
    except (TypeError, ValueError, OverflowError):
        return 0.0
