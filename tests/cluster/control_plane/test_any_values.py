"""What the schema allows makes pods that the API server takes, or the chart says why it does not.

A RayCluster takes any template of a pod: what is wrong in it is told only once KubeRay makes pods.
"""

from typing import Any

import helm_python
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.chart_release import objects
from tests.support.control_plane import Api, collection
from tests.support.fake_cluster import pods_of
from tests.support.schema_values import drawn

pytestmark = pytest.mark.xdist_group("control plane")

RAY = drawn("ray")


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    data=st.data(), keys=st.lists(st.sampled_from(sorted(RAY)), min_size=1, max_size=4, unique=True)
)
def test_pods_of_any_values_are_taken(api: Api, data: Any, keys: list[str]) -> None:
    values = {key: data.draw(RAY[key], label=key) for key in keys}
    try:
        found = objects(values)
    except helm_python.HelmError:  # whose words test_chart_any_values.py examines
        return
    for pod in pods_of(found["RayCluster/llavamed"]):
        pod["spec"]["serviceAccountName"] = "default"  # which is there
        answer = api.ask("POST", collection(pod, "default"), pod, dryRun="All")
        assert answer.status_code == 201, (values, answer.text)
