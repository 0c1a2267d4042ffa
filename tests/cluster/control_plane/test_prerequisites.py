"""A cluster that lacks an operator: the chart says which, before anything is installed."""

from pathlib import Path

import pytest

from tests.support.chart_release import CHART
from tests.support.control_plane import ADMIN, Helm, control_plane, program, write_kubeconfig
from tests.support.fake_cluster import add_kuberay

pytestmark = pytest.mark.xdist_group("control plane")


KUBERAY = "this cluster knows no {} (ray.io/v1): install the KubeRay operator first"
GANG = {
    "job.queue=team": "job.queue=team: this cluster has no Kueue",
    "job.labels.volcano\\.sh/queue-name=team": 'job.labels={"volcano.sh/queue-name":"team"}: this '
    "cluster has no Volcano",
}


def test_what_a_cluster_lacks_is_named_with_the_command(
    tmp_path: Path, reference_data: Path
) -> None:
    with control_plane(tmp_path) as api:
        kubeconfig = write_kubeconfig(api, tmp_path, ADMIN)
        helms = [Helm(program(name), kubeconfig) for name in ("helm3", "helm4")]
        refused = {"job.enabled=false": KUBERAY.format("RayCluster")}
        check(helms, refused | {"job.enabled=true": KUBERAY.format("RayJob")})
        add_kuberay(api, reference_data / "data" / "kuberay-crds")
        check(helms, GANG)
        assert api.get("/api/v1/namespaces/default/serviceaccounts/llavamed") is None


def check(helms: list[Helm], refused: dict[str, str]) -> None:
    """Each value is refused by each helm, with its message."""
    for helm in helms:
        for value, message in refused.items():
            ran = helm.run("install", "llavamed", str(CHART), f"--set={value}")
            assert ran.returncode != 0
            assert message in ran.stderr
