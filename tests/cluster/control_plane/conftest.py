"""The programs that scripts/control_plane.sh builds, and what runs of them."""

import pytest

from tests.support.control_plane import Helm, program


@pytest.fixture(scope="session", params=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest) -> Helm:
    """Each major version that people have."""
    return Helm(program(request.param))
