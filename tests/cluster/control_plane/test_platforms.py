"""Ray pods on the nodes of each cloud, under the restricted standard, and under eviction."""

from typing import Any

import pytest

from tests.cluster.control_plane.conftest import Namespace
from tests.support.chart_release import CHART
from tests.support.control_plane import collection
from tests.support.fake_cluster import make_pods, pods_of

pytestmark = pytest.mark.xdist_group("control plane")

PRESETS = {
    ("gke",): "gke",
    ("gke", "gke-spot"): "gke-spot",
    ("eks",): "eks",
    ("eks", "eks-spot"): "eks-spot",
    ("aks",): "aks",
    ("aks", "aks-spot"): "aks-spot",
    ("a100-40gb",): "a100-40gb",
    ("openshift",): "gpu-operator",
    ("h100",): "gpu-operator",
}


def preset(*names: str) -> list[str]:
    return [f"--values={CHART / 'presets' / f'{name}.yaml'}" for name in names]


def test_every_preset_is_tried_here() -> None:
    files = {file.stem for file in (CHART / "presets").glob("*.yaml")}
    assert files == {name for names in PRESETS for name in names} | {"infiniband", "trial"}


def test_training_runs_on_the_nodes_that_a_preset_means(namespace: Namespace) -> None:
    for number, (names, node) in enumerate(PRESETS.items()):
        release = f"r{number}"
        options = [*preset(*names), "--set=ray.cpu.memory=1Gi,ray.cpu.sharedMemory=500Mi"]
        if "eks" in names and "eks-spot" not in names:
            options.append(
                '--set-json=ray.a100.nodeSelector={"karpenter.sh/capacity-type":"on-demand"}'
            )
        namespace.install(*options, release=release)
        nodes = make_pods(namespace.api, namespace.cluster(release))
        assert nodes["a100"] == node, names
        assert nodes["headgroup"] == "cpu"
        assert nodes.get("h100", "h100") == "h100"
        namespace.helm("uninstall", release, "--namespace", namespace.name)


def test_a_trial_needs_no_gpu(namespace: Namespace) -> None:
    namespace.install(*preset("trial"))
    groups = {
        group["groupName"]: group for group in namespace.cluster()["spec"]["workerGroupSpecs"]
    }
    assert groups["a100"]["replicas"] == 0
    assert groups["cpu"]["replicas"] == 1


def test_the_restricted_standard_refuses_rdma(namespace: Namespace) -> None:
    namespace.install(*preset("infiniband"))
    pods = {pod["metadata"]["name"]: pod for pod in pods_of(namespace.cluster())}
    pod = pods["llavamed-a100"]
    answer = namespace.api.ask("POST", collection(pod, namespace.name), pod)
    assert answer.status_code == 403
    assert "unrestricted capabilities" in answer.text
    label = {"pod-security.kubernetes.io/enforce": "privileged"}
    path = f"/api/v1/namespaces/{namespace.name}"
    namespace.api.ask("PATCH", path, {"metadata": {"labels": label}})
    namespace.api.create(pod, namespace.name)


def evict(namespace: Namespace, pod: str) -> int:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    path = f"/api/v1/namespaces/{namespace.name}/pods/{pod}/eviction"
    status: int = namespace.api.ask("POST", path, body).status_code
    return status


def test_nobody_evicts_the_head_and_a_worker_has_its_grace_period(namespace: Namespace) -> None:
    """Also where the release has two: a job that was submitted has a cluster of its own."""
    namespace.install()
    first = namespace.cluster()
    job = {"name": "demo-abc", "labels": first["metadata"]["labels"]}
    second = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": job}
    for cluster in (first, namespace.api.create(second | {"spec": first["spec"]}, namespace.name)):
        make_pods(namespace.api, cluster)
    path = f"/apis/policy/v1/namespaces/{namespace.name}/poddisruptionbudgets/llavamed-head"
    judged: Any = lambda found: found.get("status", {}).get("conditions")  # noqa: E731
    namespace.api.eventually(path, judged)
    heads = ("llavamed-headgroup", "demo-abc-headgroup")
    assert [evict(namespace, head) for head in heads] == [429, 429]
    assert evict(namespace, "llavamed-a100") == 201
    namespace.upgrade("--set=ray.disruptionBudget=false")
    assert [evict(namespace, head) for head in heads] == [201, 201]


def test_a_job_is_accepted_with_its_cluster(namespace: Namespace) -> None:
    notes = namespace.install("--set=job.enabled=true", "--set=job.queue=team")
    job = namespace.get("ray.io/v1/rayjobs", "llavamed")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert "port-forward" in notes
    assert namespace.cluster() is None
    namespace.upgrade("--set=job.enabled=true")
    job = namespace.get("ray.io/v1/rayjobs", "llavamed")
    assert len(job["spec"]["deletionStrategy"]["deletionRules"]) == 3
