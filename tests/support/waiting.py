"""Wait for what another thread does."""

import time
from collections.abc import Callable


def wait_until(holds: Callable[[], bool]) -> None:
    """Return once it holds, within a minute."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it did not come so far"
        time.sleep(0.01)
