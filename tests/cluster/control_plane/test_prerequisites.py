"""A cluster that lacks an operator: the chart says which, before anything is installed."""

import pytest

from tests.cluster.control_plane.conftest import NEEDS_GANG, NEEDS_KUBERAY, Answers
from tests.support.control_plane import Api

pytestmark = pytest.mark.xdist_group("control plane")

KUBERAY = "this cluster knows no {} (ray.io/v1): install the KubeRay operator first"
MESSAGES = {
    "job.enabled=false": KUBERAY.format("RayCluster"),
    "job.enabled=true": KUBERAY.format("RayJob"),
    "job.queue=team": "job.queue=team: this cluster has no Kueue",
    "job.labels.volcano\\.sh/queue-name=team": 'job.labels={"volcano.sh/queue-name":"team"}: this '
    "cluster has no Volcano",
}


@pytest.mark.parametrize("value", [*NEEDS_KUBERAY, *NEEDS_GANG])
def test_what_a_cluster_lacks_is_named_with_the_command(
    value: str, without_operators: Answers, api: Api
) -> None:
    answers = without_operators[value]
    assert len(answers) == 2, "of helm 3 and 4"
    for ran in answers:
        assert ran.returncode != 0
        assert MESSAGES[value] in ran.stderr
    # No test installs the chart here.
    assert api.get("/api/v1/namespaces/default/serviceaccounts/llavamed") is None
