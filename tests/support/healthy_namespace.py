"""A namespace in which `doctor` finds nothing, to be broken."""

from typing import Any

from llavamed.cluster.doctor import Finding, examine
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
    Object,
)
from llavamed.cluster.snapshot import OPERATOR, Snapshot
from tests.support.ray_objects import manifest

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


def problems(snapshot: Snapshot) -> list[Finding]:
    """What `doctor` finds but for what is well."""
    return [finding for finding in examine(snapshot) if finding.level != "ok"]
