"""The checks of `doctor`, each on objects that are broken in one way, without a cluster."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.cluster.doctor import CHECKS, examine, exit_code
from llavamed.cluster.explain import INSTALL_KUBERAY
from llavamed.cluster.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    LOCAL_QUEUE,
    NODE,
    QUOTA,
    RAY_CLUSTER,
    RAY_SERVICE,
    SERVICE_ACCOUNT,
    Kind,
    Object,
    name_of,
)
from llavamed.cluster.pods import (
    cluster_spec,
    groups_of,
    obstacles,
    pods_that_fit,
    request_of,
    token_secret,
)
from llavamed.cluster.snapshot import OPERATOR, Snapshot, read_manifests
from llavamed.errors import ConfigError
from tests.support.healthy_namespace import (
    AMOUNTS,
    LABELS,
    TAINT,
    a100,
    deployment,
    healthy,
    named,
    problems,
)
from tests.support.ray_objects import K8S, manifest, service


def container(snapshot: Snapshot) -> Object:
    found: Object = a100(snapshot)["template"]["spec"]["containers"][0]
    return found


def test_a_healthy_cluster_passes_every_check() -> None:
    findings = examine(healthy())
    assert [(each.check, each.level) for each in findings] == [(c.name, "ok") for c in CHECKS]
    assert exit_code(findings) == 0


def set_quota(found: Snapshot, hard: dict[str, str], used: dict[str, str]) -> None:
    found.objects[QUOTA].append(named("team", status={"hard": hard, "used": used}))


def drop_memory(found: Snapshot) -> None:
    a100(found)["template"]["spec"]["volumes"][1]["emptyDir"] = {}


def name_queue(found: Snapshot) -> None:
    labels = found.all(RAY_CLUSTER)[0]["metadata"]["labels"]
    labels["kueue.x-k8s.io/queue-name"] = "team"
    found.objects[LOCAL_QUEUE].append(named("other"))


def slice_gpus(found: Snapshot) -> None:
    """Give two workers two MIG slices each in place of whole GPUs."""
    a100(found).update(replicas=2, maxReplicas=2)
    resources = a100(found)["template"]["spec"]["containers"][0]["resources"]
    for amounts in resources.values():
        if amounts.pop("nvidia.com/gpu", None):
            amounts["nvidia.com/mig-3g.40gb"] = 2


WAYS: dict[str, tuple[Callable[[Snapshot], Any], str, str, str]] = {
    "no operator": (
        lambda found: found.objects[OPERATOR].clear(),
        "failure", "kuberay", "no KubeRay operator runs, .* `helm install kuberay-operator",
    ),
    "hosted operator": (
        lambda found: (
            found.objects[OPERATOR].clear(),
            found.all(RAY_CLUSTER)[0].update(status={"state": "ready"}),
        ),
        "warning", "kuberay", r"its objects have a state, so it runs, .* it is version 1\.7 or la",
    ),
    "operator down": (
        lambda found: found.objects[OPERATOR][0].update(status={}),
        "failure", "kuberay", "the operator default/kuberay-operator is not available",
    ),
    "old operator": (
        lambda found: found.objects.update({OPERATOR: [deployment("o", "a/operator:v1.3.2")]}),
        "failure", "kuberay",
        r"is KubeRay 1\.3, older than 1\.7; upgrade it: `helm upgrade .* --namespace default`",
    ),
    "replicas": (
        lambda found: a100(found).update(replicas=9),
        "failure", "rules", "group a100: replicas=9 is not between minReplicas=0 and",
    ),
    "another Ray": (
        lambda found: found.all(RAY_CLUSTER)[0]["spec"].update(rayVersion="2.55.1"),
        "failure", "versions", r"rayVersion=2\.55\.1: the image has Ray 2\.60; set it to",
    ),
    "two images": (
        lambda found: container(found).update(image="other/image@sha256:1"),
        "failure", "versions", "its groups have different images .* use one",
    ),
    "no service account": (
        lambda found: a100(found)["template"]["spec"].update(serviceAccountName="gone"),
        "failure", "references", "ServiceAccount gone does not exist, and pods of llavamed/a100",
    ),
    "no config": (
        lambda found: found.objects[CONFIG_MAP].clear(),
        "failure", "references", "ConfigMap llavamed-configs does not exist",
    ),
    "too many GPUs": (
        lambda found: container(found)["resources"]["requests"].update({"nvidia.com/gpu": "16"}),
        "failure", "nodes", r"the nearest, gpu-0, lacks nvidia\.com/gpu 16 \(has 8\); add such",
    ),
    "cordoned": (
        lambda found: found.all(NODE)[0]["spec"].update(unschedulable=True),
        "failure", "nodes", "the nearest, gpu-0, lacks it is cordoned",
    ),
    "too few nodes": (
        lambda found: a100(found).update(replicas=2, maxReplicas=2),
        "warning", "nodes", "group a100: wants 2 pods, and all nodes when empty hold 1",
    ),
    "quota": (
        lambda found: set_quota(found, {"requests.nvidia.com/gpu": "16"}, {
            "requests.nvidia.com/gpu": "10"}),
        "failure", "quota", r"team leaves requests\.nvidia\.com/gpu 6 of 16, and its pods need",
    ),
    "quota of memory": (
        lambda found: set_quota(found, {"limits.memory": "500Gi"}, {"limits.memory": "300Mi"}),
        "failure", "quota", r"leaves limits\.memory 499\.7Gi of 500Gi, and its pods need lim",
    ),
    "queue": (name_queue, "failure", "queue", "LocalQueue team does not exist; there are: other"),
    "no gang": (
        lambda found: a100(found).update(replicas=2, maxReplicas=2),
        "warning", "queue", "its 2 GPU pods may start one by one and hold GPUs",
    ),
    "no memory at /dev/shm": (
        drop_memory, "failure", "shared memory", "group a100: has no memory mounted at /dev/shm",
    ),
    "all memory is /dev/shm": (
        lambda found: a100(found)["template"]["spec"]["volumes"][1]["emptyDir"].update(
            sizeLimit="512Gi"),
        "failure", "shared memory", "of 512Gi counts against its memory of 512Gi and fills it",
    ),
    "sockets": (
        lambda found: a100(found).update(maxReplicas=4),
        "warning", "network", r"may have 4 machines and no RDMA device, .* \(NET/Socket\)",
    ),
    "slices of one GPU": (
        slice_gpus, "warning", "network",
        r"may have 4 slices or shares of GPUs, and NCCL refuses two of one GPU \(Duplicate GPU",
    ),
    "no gang of slices": (slice_gpus, "warning", "queue", "its 2 GPU pods may start one by one"),
    "no credentials": (
        lambda found: found.all(SERVICE_ACCOUNT)[0]["metadata"].pop("annotations"),
        "warning", "storage", "llavamed: head, cpu, a100 have neither a Secret with credentials",
    ),
    "no MLflow": (
        lambda found: found.objects[DEPLOYMENT].clear(),
        "failure", "mlflow", "no Service llavamed-mlflow, which MLFLOW_TRACKING_URI names",
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_what_is_broken_is_found_with_its_cause(way: str) -> None:
    act, level, check, message = WAYS[way]
    found = healthy()
    act(found)
    texts = [each.text for each in problems(found) if (each.level, each.check) == (level, check)]
    assert texts, problems(found)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(texts[0])
    assert exit_code(examine(found)) >= (level == "failure")


def test_the_operator_is_installed_as_the_prerequisites_say() -> None:
    assert INSTALL_KUBERAY in (K8S / "README.md").read_text()


def test_what_may_not_be_read_is_said_and_what_is_offline_is_left_out() -> None:
    found = healthy()
    del found.objects[NODE]
    found.unreadable[NODE] = "Node=*: nobody may not list nodes"
    (finding,) = problems(found)
    assert (finding.check, finding.level) == ("nodes", "warning")
    assert finding.text == "is not examined: Node=*: nobody may not list nodes"
    offline = read_manifests([K8S / "raycluster.yaml", K8S / "rayjob.yaml"])
    checks = {each.check for each in examine(offline)}
    assert checks == {"rules", "versions", "queue", "shared memory", "network"}


def test_a_file_without_ray_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("kind: ConfigMap\n")
    with pytest.raises(
        ConfigError, match="holds no RayCluster, RayJob or RayService; give what `he"
    ):
        read_manifests([file])
    file.write_text("{")
    with pytest.raises(ConfigError, match=r"a\.yaml: cannot be read"):
        read_manifests([file])


def applications(state: str) -> Object:
    status = {"llavamed": {"status": state, "message": "no GPU\nis free"}}
    return {
        "conditions": [{"type": "Ready", "status": "True"}],
        "pendingServiceStatus": {"applicationStatuses": status},
    }


def test_a_service_of_a_model_is_examined() -> None:
    found = healthy()
    found.objects[RAY_SERVICE].append(service())
    (finding,) = [each for each in problems(found) if each.check == "services"]
    assert finding.level == "warning"
    assert "RayService llavamed-serve: does not accept requests yet; wait for it" in finding.text
    found.objects[RAY_SERVICE][0]["status"] = applications("RUNNING")
    assert [each for each in problems(found) if each.check == "services"] == []
    found.objects[RAY_SERVICE][0]["status"] = applications("DEPLOY_FAILED")
    (finding,) = [each for each in problems(found) if each.check == "services"]
    assert finding.level == "failure"
    assert "application llavamed is DEPLOY_FAILED: no GPU is free; see the log" in finding.text


@pytest.mark.parametrize(
    "serves", [False, True], ids=["a cluster for runs", "a service, whose replicas work alone"]
)
def test_replicas_of_a_service_need_no_gang_and_no_rdma(serves: bool) -> None:
    found = healthy()
    a100(found).update(replicas=2, maxReplicas=2)
    cluster = found.objects[RAY_CLUSTER].pop()
    spec = {k: v for k, v in cluster["spec"].items() if k != "upgradeStrategy"}
    kind = RAY_SERVICE if serves else RAY_CLUSTER
    found.objects[kind] = [service(rayClusterConfig=spec) if serves else cluster]
    checks = {each.check for each in problems(found)}
    assert ("queue" in checks, "network" in checks) == (not serves, not serves)
    assert "nodes" in checks


@pytest.mark.parametrize("kind", [RAY_CLUSTER, RAY_SERVICE], ids=lambda kind: kind.name)
def test_the_token_of_a_cluster_is_where_it_says(kind: Kind) -> None:
    found = healthy()
    thing = manifest("raycluster") if kind is RAY_CLUSTER else service()
    spec = cluster_spec(thing)
    assert spec is not None
    spec["authOptions"] = {"mode": "token", "secretName": "ray-token"}
    found.objects[kind] = [thing]
    texts = [each.text for each in problems(found) if each.check == "references"]
    assert len(texts) == 1
    assert f"Secret ray-token does not exist, and pods of {name_of(thing)} (its token)" in texts[0]
    assert token_secret(named("demo-abc", spec=spec)) == "ray-token"
    assert token_secret(named("demo-abc", spec={"authOptions": {"mode": "token"}})) == "demo-abc"
    assert token_secret(named("demo-abc", spec={})) is None


@given(gpus=st.integers(0, 16), wanted=st.integers(1, 8), number=st.integers(0, 4))
def test_a_pod_fits_where_nothing_is_in_its_way(gpus: int, wanted: int, number: int) -> None:
    allocatable = AMOUNTS | {"nvidia.com/gpu": str(gpus)}
    node = {"metadata": {"name": "gpu-0", "labels": LABELS}, "spec": {"taints": [TAINT]}}
    node["status"] = {"allocatable": allocatable}
    spec = dict(groups_of(manifest("raycluster"))[2].spec)
    resources = {"nvidia.com/gpu": str(wanted)}
    spec["containers"] = [{"resources": {"requests": resources}}]
    assert request_of(spec) == {"nvidia.com/gpu": Fraction(wanted)}
    assert (obstacles(spec, node) == []) == (wanted <= gpus)
    assert pods_that_fit(spec, [node] * number) == number * (gpus // wanted)
