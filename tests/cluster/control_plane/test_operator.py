"""KubeRay's own operator on what the chart makes, where LLAVAMED_KUBERAY_OPERATOR names its binary.

It runs outside the cluster, as a process. Its rules are checked without it, too:
llavamed/cluster/rules.py.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.control_plane.conftest import Namespace
from tests.support.control_plane import ADMIN, free_ports, running, write_kubeconfig

pytestmark = pytest.mark.xdist_group("control plane")


@pytest.fixture
def operator(namespace: Namespace, tmp_path: Path) -> Iterator[Namespace]:
    """A namespace that KubeRay's operator looks after."""
    program = os.environ.get("LLAVAMED_KUBERAY_OPERATOR")
    if not program:
        pytest.skip("LLAVAMED_KUBERAY_OPERATOR: names no binary of KubeRay's operator")
    (port,) = free_ports(1)
    options = {
        "kubeconfig": write_kubeconfig(namespace.api, tmp_path, ADMIN),
        "watch-namespace": namespace.name,
        "health-probe-bind-address": f"127.0.0.1:{port}",
        "metrics-addr": "0",
        "enable-leader-election": "false",
    }
    with running(tmp_path, program, *(f"--{name}={value}" for name, value in options.items())):
        yield namespace


def pods_running(namespace: Namespace, count: int) -> list[Any]:
    """The Ray pods, once so many of them run."""
    path = f"/api/v1/namespaces/{namespace.name}/pods"

    def ray_pods(found: Any) -> list[Any]:
        of_ray = [item for item in found["items"] if "ray.io/cluster" in item["metadata"]["labels"]]
        return [item for item in of_ray if item["status"]["phase"] == "Running"]

    found = namespace.api.eventually(path, lambda found: len(ray_pods(found)) == count)
    return ray_pods(found)


def test_the_operator_makes_the_pods_the_service_and_the_token(operator: Namespace) -> None:
    operator.install()
    groups = sorted(pod["metadata"]["labels"]["ray.io/group"] for pod in pods_running(operator, 4))
    assert groups == ["a100", "cpu", "cpu", "headgroup"]
    assert operator.get("v1/services", "llavamed-head-svc") is not None
    assert "auth_token" in operator.get("v1/secrets", "llavamed")["data"]


@pytest.mark.parametrize("strategy", ["None", "Recreate"])
def test_the_operator_replaces_pods_as_the_notes_say(strategy: str, operator: Namespace) -> None:
    operator.install(f"--set=ray.upgradeStrategy={strategy}")
    before = {pod["metadata"]["uid"] for pod in pods_running(operator, 4)}
    notes = operator.upgrade("--reuse-values", "--set-string=image.tag=2")
    assert ("KubeRay now replaces all of them" in notes) == (strategy == "Recreate")
    operator.upgrade("--reuse-values", "--set=ray.cpu.replicas=3")
    after = {pod["metadata"]["uid"] for pod in pods_running(operator, 5)}
    assert before.isdisjoint(after) if strategy == "Recreate" else before < after


def test_the_operator_takes_the_job(operator: Namespace) -> None:
    operator.install("--set=job.enabled=true")
    assert len(pods_running(operator, 4)) == 4
    status = operator.get("ray.io/v1/rayjobs", "llavamed")["status"]
    assert status["jobDeploymentStatus"] in ("Initializing", "Running")
