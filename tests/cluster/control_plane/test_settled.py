"""What the API server holds is what the chart wrote, as far as tools compare the two.

Argo CD compares an object with its manifest, and knows the defaults of Kubernetes' own kinds only.
What is added to a map stays out of the comparison, but a list is compared as a whole.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.chart_release import SCALED, SERVED, objects
from tests.support.control_plane import Api

pytestmark = pytest.mark.xdist_group("control plane")

CHOSEN = "].replicas"
"""With the autoscaler, its number of workers: the chart leaves it out."""


def added_to_lists(written: Any, held: Any, path: str = "") -> Iterator[str]:
    """The keys below lists that the server added."""
    if isinstance(written, dict):
        if "[" in path:
            yield from (f"{path}.{key}" for key in held.keys() - written.keys())
        for key, value in written.items():
            yield from added_to_lists(value, held[key], f"{path}.{key}")
    elif isinstance(written, list):
        for index, (value, other) in enumerate(zip(written, held, strict=True)):
            yield from added_to_lists(value, other, f"{path}[{index}]")


@pytest.mark.parametrize("values", [SERVED, SERVED | SCALED, {"job.enabled": True}])
def test_nothing_is_added_to_a_list_of_kuberays_kinds(values: dict[str, Any], api: Api) -> None:
    found = [item for item in objects(values).values() if item["apiVersion"] == "ray.io/v1"]
    assert found
    for written in found:
        held = api.create(written, dryRun="All")
        added = {path for path in added_to_lists(written, held) if not path.endswith(CHOSEN)}
        assert added == set()
