"""What a sample that cannot be used is refused for."""

from collections.abc import Callable
from typing import Any

import pytest

from llavamed.errors import SampleError


def refusal(call: Callable[..., Any], *arguments: Any) -> tuple[str, str]:
    """Call with arguments that are refused; gives the reason and its detail."""
    with pytest.raises(SampleError) as caught:
        call(*arguments)
    return caught.value.reason, caught.value.detail
