"""A cluster without KubeRay: the chart says what is missing, before anything is installed."""

from pathlib import Path

import pytest

from tests.support.chart_release import CHART
from tests.support.control_plane import ADMIN, Helm, control_plane, program, write_kubeconfig

pytestmark = pytest.mark.xdist_group("control plane")


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_an_install_without_kuberay_names_the_command(tmp_path: Path, kind: str) -> None:
    options = ["--set=job.enabled=true"] if kind == "RayJob" else []
    with control_plane(tmp_path) as api:
        kubeconfig = write_kubeconfig(api, tmp_path, ADMIN)
        for name in ("helm3", "helm4"):
            helm = Helm(program(name), kubeconfig)
            ran = helm.run("install", "llavamed", str(CHART), *options)
            assert ran.returncode != 0
            assert f"this cluster knows no {kind} (ray.io/v1): install the KubeRay" in ran.stderr
            assert "helm install kuberay-operator" in ran.stderr
        assert api.get("/api/v1/namespaces/default/serviceaccounts/llavamed") is None
