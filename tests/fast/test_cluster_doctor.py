"""The checks of `doctor`, each on objects that are broken in one way, without a cluster."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.cluster.doctor import CHECKS, Finding, examine, exit_code
from llavamed.cluster.explain import INSTALL_KUBERAY
from llavamed.cluster.kinds import (
    CLAIM,
    CONFIG_MAP,
    DEPLOYMENT,
    EVENT,
    LOCAL_QUEUE,
    NAMESPACE,
    NODE,
    POD,
    QUOTA,
    RAY_CLUSTER,
    RAY_JOB,
    RAY_SERVICE,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    Kind,
    Object,
    name_of,
)
from llavamed.cluster.pending import causes, unschedulable
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
from tests.support.ray_objects import K8S, manifest, service

LABELS = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
AMOUNTS = {"cpu": "96", "memory": "1Ti", "ephemeral-storage": "2Ti", "nvidia.com/gpu": "8"}


def named(name: str, **more: Any) -> Object:
    return {"metadata": {"name": name}} | more


def deployment(name: str, image: str, available: int = 1, *arguments: str) -> Object:
    container = {"image": image, "args": list(arguments)}
    spec = {"template": {"spec": {"containers": [container]}}}
    return named(name, spec=spec, status={"availableReplicas": available})


def healthy() -> Snapshot:
    """A namespace with the release, on one A100 machine and one without GPUs."""
    cluster = manifest("raycluster")
    cluster["spec"]["workerGroupSpecs"][1]["maxReplicas"] = 1
    account = named("llavamed")
    account["metadata"]["annotations"] = {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}
    gpus = {"metadata": {"name": "gpu-0", "labels": LABELS}, "spec": {"taints": [TAINT]}}
    without = {key: value for key, value in AMOUNTS.items() if key != "nvidia.com/gpu"}
    return Snapshot(
        {
            OPERATOR: [deployment("kuberay-operator", "quay.io/kuberay/operator:v1.7.0")],
            RAY_CLUSTER: [cluster],
            RAY_JOB: [],
            RAY_SERVICE: [],
            NODE: [
                gpus | {"status": {"allocatable": AMOUNTS}},
                named("cpu-0", status={"allocatable": without}),
            ],
            QUOTA: [],
            POD: [],
            EVENT: [],
            SECRET: [],
            CONFIG_MAP: [named("llavamed-configs")],
            CLAIM: [],
            SERVICE_ACCOUNT: [account],
            DEPLOYMENT: [deployment("llavamed-mlflow", "llavamed:0.1.0")],
            LOCAL_QUEUE: [],
            SERVICE: [],
            NAMESPACE: [named("research")],
        },
        namespace="research",
        options=" --namespace research",
    )


def a100(snapshot: Snapshot) -> Object:
    group: Object = snapshot.all(RAY_CLUSTER)[0]["spec"]["workerGroupSpecs"][1]
    return group


def container(snapshot: Snapshot) -> Object:
    found: Object = a100(snapshot)["template"]["spec"]["containers"][0]
    return found


def problems(snapshot: Snapshot) -> list[Finding]:
    return [finding for finding in examine(snapshot) if finding.level != "ok"]


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


MESSAGE = (
    "0/14 nodes are available: 1 Insufficient memory, 3 Insufficient nvidia.com/gpu, 2 node(s) had "
    "untolerated taint {nvidia.com/gpu: present}, 5 node(s) didn't match Pod's node affinity/"
    "selector, 1 node(s) were unschedulable. preemption: 0/14 nodes are available"
)


def test_the_schedulers_message_becomes_causes() -> None:
    assert list(unschedulable(MESSAGE)) == [
        "1 nodes lack free memory; add nodes, or wait for other work",
        "3 nodes lack free nvidia.com/gpu; add nodes, or wait for other work",
        "5 nodes have other labels than its nodeSelector; correct the selector",
        "2 nodes have the taint nvidia.com/gpu: present; add a toleration",
        "1 nodes are cordoned; uncordon them or add others",
    ]
    (cause,) = unschedulable('persistentvolumeclaim "weights" not found')
    assert cause == "its volume claim weights does not exist; create it"
    (cause,) = unschedulable("0/1: pod has unbound immediate PersistentVolumeClaims.")
    assert "its volume claim is not bound" in cause


def pod(phase: str = "Pending", **status: Any) -> Object:
    return named("p", status={"phase": phase} | status, spec={})


def event(reason: str, message: str, kind: str = "Pod", name: str = "p") -> Object:
    about = {"kind": kind, "name": name}
    return {"reason": reason, "message": message, "type": "Warning", "involvedObject": about}


def waiting(reason: str, message: str = "m") -> list[Object]:
    state = {"waiting": {"reason": reason, "message": message}}
    return [{"name": "ray", "image": "i", "state": state}]


ENDED = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}


@pytest.mark.parametrize(
    ("pods", "events", "cause"),
    [
        ([pod(containerStatuses=waiting("ErrImagePull"))], [], "p: image i cannot be pulled (ErrI"),
        ([pod(initContainerStatuses=waiting("CreateContainerConfigError", "secret x"))], [],
         "p: container ray cannot be created: secret x; create what it names"),
        ([pod("Running", containerStatuses=[{"name": "ray", "state": {}, "lastState": ENDED}])], [],
         "p: container ray was killed for its memory; raise the memory"),
        ([pod("Running", containerStatuses=waiting("CrashLoopBackOff"))], [],
         "p: container ray ends again and again with exit code unknown"),
        ([pod("Failed", reason="Evicted", message="low on memory")], [], "p: was taken away (Ev"),
        ([pod()], [event("FailedMount", "no volume")], "p: cannot mount a volume: no volume"),
        ([pod()], [event("NotTriggerScaleUp", "")], "p: no node pool can grow for it"),
        ([named("p", status={"phase": "Pending"}, spec={"schedulingGates": [{"name": "q"}]})], [],
         "p: waits for its queue to admit it"),
        ([], [event("FailedCreate", "pods x is forbidden: exceeded quota: g", "RayCluster", "c")],
         "RayCluster c: exceeded quota: g; raise the quota"),
        ([], [event("FailedCreate", 'x violates PodSecurity "restricted"', "RayCluster", "c")],
         'RayCluster c: violates PodSecurity "restricted"; use a namespace'),
    ],
)  # fmt: skip
def test_states_and_events_become_causes(
    pods: list[Object], events: list[Object], cause: str
) -> None:
    (found,) = causes(pods, events)
    assert found.startswith(cause)


def test_pods_with_one_cause_are_named_together_and_those_that_run_are_not() -> None:
    many = [pod(containerStatuses=waiting("ErrImagePull")) for _ in range(3)]
    (found,) = causes([*many, pod("Running")], [event("Scheduled", "fine")])
    assert found.startswith("p and 2 more: image i")
