"""`llavamed cluster doctor` on real clusters: a healthy one, and others broken in one way each."""

import json
import platform
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llavamed import __version__
from llavamed.cluster.client import Cluster
from llavamed.cluster.doctor import Finding, examine
from llavamed.cluster.probes import probe_groups
from llavamed.cluster.snapshot import take_snapshot
from tests.cluster.control_plane.conftest import Namespace, make_namespace
from tests.support.control_plane import Api, Helm, program
from tests.support.fake_cluster import pods_of
from tests.support.kubernetes_rules import Object

pytestmark = pytest.mark.xdist_group("control plane")

HEALTHY = ("--set=storage.existingSecret=llavamed-s3", "--set=ray.a100.maxReplicas=1")
OPERATOR = "/apis/apps/v1/namespaces/kuberay-system/deployments/kuberay-operator"


NAME, COMPONENT = "app.kubernetes.io/name", "app.kubernetes.io/component"
BY_HELM = {NAME: "kuberay-operator"}
BY_KUSTOMIZE = {NAME: "kuberay", COMPONENT: "kuberay-operator"}


def operator(labels: dict[str, str] = BY_HELM) -> Object:
    """The operator's Deployment, as its chart makes it, or with other labels."""
    container = {"name": "operator", "image": "quay.io/kuberay/operator:v1.7.0"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "kuberay-operator", "labels": labels},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": BY_HELM},
            "template": {"metadata": {"labels": BY_HELM}, "spec": {"containers": [container]}},
        },
    }


def available(found: Object | None) -> bool:
    return found is not None and found.get("status", {}).get("availableReplicas") == 1


@pytest.fixture(scope="module")
def with_operator(api: Api) -> Api:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kuberay-system"}}
    api.create(namespace)
    api.create(operator(), "kuberay-system")
    api.eventually(OPERATOR, available)
    return api


@pytest.fixture
def place(
    with_operator: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Namespace]:
    """A namespace with the Secret that the release reads storage with."""
    made = make_namespace(with_operator, Helm(program("helm4")), tmp_path)
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "llavamed-s3"}}
    made.api.create(secret | {"stringData": {"AWS_ACCESS_KEY_ID": "x"}}, made.name)
    monkeypatch.setenv("KUBECONFIG", str(made.helm.kubeconfig))
    yield made
    made.api.ask("DELETE", f"/api/v1/namespaces/{made.name}")


def examined(place: Namespace) -> list[Finding]:
    return examine(take_snapshot(Cluster(place.name)))


def until_mlflow_is_up(place: Namespace) -> None:
    path = f"/apis/apps/v1/namespaces/{place.name}/deployments/llavamed-mlflow"
    place.api.eventually(path, available)


def patch(place: Namespace, path: str, body: Any) -> None:
    answer = place.api.ask("PATCH", path, body)
    assert answer.status_code == 200, answer.text


def group_pod(place: Namespace, group: str = "a100") -> Object:
    return next(
        pod
        for pod in pods_of(place.cluster())
        if pod["metadata"]["labels"]["ray.io/group"] == group
    )


def limit_gpus(place: Namespace) -> None:
    spec = {"hard": {"requests.nvidia.com/gpu": "4"}}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "gpus"}}
    place.api.create(quota | {"spec": spec}, place.name)


def fail_to_pull(place: Namespace) -> None:
    pod = group_pod(place)
    pod["spec"]["schedulingGates"] = [{"name": "test/held"}]  # kwok must not run it
    made = place.api.create(pod, place.name)["metadata"]["name"]
    waiting = {"reason": "ImagePullBackOff", "message": "manifest unknown"}
    state = {"name": "ray-worker", "image": "llavamed:0.1.0", "imageID": "", "ready": False}
    status = {"containerStatuses": [state | {"restartCount": 0, "state": {"waiting": waiting}}]}
    patch(place, f"/api/v1/namespaces/{place.name}/pods/{made}/status", {"status": status})


def make_unschedulable(place: Namespace) -> None:
    pod = group_pod(place, "cpu")
    pod["spec"]["nodeSelector"] = {"team": "none"}
    name = place.api.create(pod, place.name)["metadata"]["name"]
    path = f"/api/v1/namespaces/{place.name}/pods/{name}"
    place.api.eventually(path, lambda found: found["status"].get("conditions"))


def take_toleration(place: Namespace) -> None:
    pod = group_pod(place)
    pod["spec"].pop("tolerations")
    name = place.api.create(pod, place.name)["metadata"]["name"]
    path = f"/api/v1/namespaces/{place.name}/pods/{name}"
    place.api.eventually(path, lambda found: found["status"].get("conditions"))


def preempt(place: Namespace) -> None:
    pod = place.api.create(group_pod(place, "cpu"), place.name)["metadata"]
    about = {"kind": "Pod", "name": pod["name"], "namespace": place.name, "uid": pod["uid"]}
    event = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "taken"}}
    said = {"reason": "Preempted", "message": "by pod 7 on node cpu", "type": "Warning"}
    place.api.create(event | said | {"involvedObject": about}, place.name)


def queue_up(place: Namespace) -> None:
    path = f"/apis/ray.io/v1/namespaces/{place.name}/rayclusters/llavamed"
    patch(place, path, {"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "team"}}})


def nothing(_: Namespace) -> None:
    """Break nothing more than the values did."""


@dataclass(frozen=True)
class Broken:
    """A way to break a cluster, and what must be said of it."""

    values: tuple[str, ...]
    act: Callable[[Namespace], None]
    check: str
    cause: str


BROKEN = {
    "no such node": Broken(
        ("--set=ray.a100.nodeLabel.value=NVIDIA-A100-PCIE",), nothing, "nodes",
        "lacks label nvidia.com/gpu.product=NVIDIA-A100-PCIE",
    ),
    "taint": Broken(
        ("--set-json=ray.a100.tolerations=[]",), nothing, "nodes",
        "lacks a toleration of taint nvidia.com/gpu=present",
    ),
    "too much memory": Broken(
        ("--set=ray.a100.memory=9Ti",), nothing, "nodes", "memory 9216Gi (has 4096Gi)"
    ),
    "quota": Broken(
        (), limit_gpus, "quota",
        "ResourceQuota gpus leaves requests.nvidia.com/gpu 4 of 4, and its pods need "
        "requests.nvidia.com/gpu 8",
    ),
    "secret": Broken(
        ("--set=storage.existingSecret=absent",), nothing, "references",
        "Secret absent does not exist",
    ),
    "claim": Broken(
        ('--set-json=ray.claims=[{"claim": "weights", "mountPath": "/w"}]',), nothing,
        "references", "PersistentVolumeClaim weights does not exist",
    ),
    "ray version": Broken(
        ("--set=ray.version=2.52.0",), nothing, "versions", "rayVersion=2.52.0: the image has Ray"
    ),
    "queue": Broken(
        (), queue_up, "queue", "waits forever, because LocalQueue team does not exist"
    ),
    "image": Broken(
        (), fail_to_pull, "pods",
        "image llavamed:0.1.0 cannot be pulled (ImagePullBackOff: manifest unknown)",
    ),
    "pending": Broken(
        (), make_unschedulable, "pods", "nodes have other labels than its nodeSelector"
    ),
    "pending for a taint": Broken(
        (), take_toleration, "pods", "nodes have a taint that it does not tolerate"
    ),
    "preemption": Broken(
        (), preempt, "pods", "was taken away (Preempted: by pod 7 on node cpu)"
    ),
}  # fmt: skip


def test_a_healthy_cluster_is_found_to_be_one(place: Namespace) -> None:
    place.install(*HEALTHY)
    until_mlflow_is_up(place)
    found = examined(place)
    assert [finding for finding in found if finding.level != "ok"] == []
    assert len(found) == 14, "every check was made"


@pytest.mark.parametrize("way", BROKEN)
def test_what_is_broken_is_found_and_nothing_else(place: Namespace, way: str) -> None:
    broken = BROKEN[way]
    place.install(*HEALTHY, *broken.values)
    until_mlflow_is_up(place)
    broken.act(place)
    failures = [finding for finding in examined(place) if finding.level == "failure"]
    assert {finding.check for finding in failures} == {broken.check}, failures
    assert any(broken.cause in finding.text for finding in failures), failures


def test_an_operator_that_is_old_or_down_is_found(place: Namespace) -> None:
    container = {"name": "operator", "image": "quay.io/kuberay/operator:v1.4.2"}
    spec = {"replicas": 0, "template": {"spec": {"containers": [container]}}}
    patch(place, OPERATOR, {"spec": spec})
    try:
        place.api.eventually(OPERATOR, lambda found: not available(found))
        texts = [each.text for each in examined(place) if each.check == "kuberay"]
        assert len(texts) == 2
        assert "kuberay-system/kuberay-operator is not available" in texts[0]
        assert "is KubeRay 1.4, older than 1.7; upgrade it: `helm upgrade" in texts[1]
        assert "--namespace kuberay-system`" in texts[1]
    finally:
        patch(place, OPERATOR, {"spec": operator()["spec"]})
        place.api.eventually(OPERATOR, available)


def test_an_operator_of_kustomize_is_found_and_no_other_program_of_kuberay(
    place: Namespace,
) -> None:
    def labelled(labels: dict[str, str]) -> str:
        before: dict[str, str | None] = dict.fromkeys((NAME, COMPONENT))
        patch(place, OPERATOR, {"metadata": {"labels": before | labels}})
        (finding,) = [each for each in examined(place) if each.check == "kuberay"]
        return finding.level

    try:
        assert labelled(BY_KUSTOMIZE) == "ok"
        assert labelled(BY_KUSTOMIZE | {COMPONENT: "kuberay-apiserver"}) == "failure"
    finally:
        assert labelled(BY_HELM) == "ok"


def test_a_server_that_is_down_is_found(place: Namespace) -> None:
    place.install(*HEALTHY)
    path = f"/apis/apps/v1/namespaces/{place.name}/deployments/llavamed-mlflow"
    patch(place, path, {"spec": {"replicas": 0}})
    place.api.eventually(path, lambda found: not available(found))
    (finding,) = [each for each in examined(place) if each.level == "failure"]
    assert finding.check == "mlflow"
    assert "the MLflow server llavamed-mlflow is not available" in finding.text


def end_probes(place: Namespace, reports: dict[str, Object]) -> None:
    """End the probe of each group with a report, as its container would."""
    for group, report in reports.items():
        path = f"/api/v1/namespaces/{place.name}/pods/llavamed-probe-{group}"
        made = place.api.eventually(path, lambda found: found is not None)
        image = made["spec"]["containers"][0]["image"]
        ended = {"exitCode": 0, "message": json.dumps(report)}
        state = {"name": "probe", "image": image, "imageID": "", "ready": False, "restartCount": 0}
        statuses = [state | {"state": {"terminated": ended}}]
        patch(place, f"{path}/status", {
            "status": {"phase": "Succeeded", "containerStatuses": statuses}
        })  # fmt: skip


def test_a_probe_of_each_group_is_judged_and_deleted(place: Namespace) -> None:
    place.install(*HEALTHY)
    good = {
        "python": platform.python_version(), "llavamed": __version__, "ray": "2.60.0",
        "shared_memory": 2**34, "storage": "", "mlflow": "",
    }  # fmt: skip
    reports = {"head": good, "cpu": good, "a100": good | {"storage": "s3://b: cannot write it"}}
    ending = threading.Thread(target=end_probes, args=(place, reports), daemon=True)
    ending.start()
    cluster = Cluster(place.name)
    snapshot = take_snapshot(cluster)
    spec = snapshot.ray[0]["spec"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        # No node may take the pods, or kwok would write what they do.
        group["template"]["spec"]["schedulingGates"] = [{"name": "test/held"}]
    found = list(probe_groups(cluster, snapshot, "s3://b", seconds=60))
    ending.join()
    texts = [each.text for each in found]
    assert [(each.check, each.level) for each in found] == [
        ("probe head", "ok"), ("probe cpu", "ok"), ("probe a100", "failure"),
    ], texts  # fmt: skip
    assert found[-1].text == "llavamed: storage: s3://b: cannot write it"
    place.api.eventually(
        f"/api/v1/namespaces/{place.name}/pods",
        lambda pods: not any("probe" in each["metadata"]["name"] for each in pods["items"]),
    )
