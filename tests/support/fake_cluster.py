"""What a cluster for training has: fake nodes of each cloud, volumes and KubeRay's kinds."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import yaml

from tests.support.control_plane import Api, collection
from tests.support.kubernetes_rules import Object

GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
AKS_TAINT = {"key": "sku", "value": "gpu", "effect": "NoSchedule"}
GKE = {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"}
EKS = {"node.kubernetes.io/instance-type": "p4de.24xlarge"}
AKS = {"node.kubernetes.io/instance-type": "Standard_ND96amsr_A100_v4"}
GKE_SPOT = {"cloud.google.com/gke-spot": "true"}
EKS_SPOT = {"karpenter.sh/capacity-type": "spot"}
AKS_SPOT = {"kubernetes.azure.com/scalesetpriority": "spot"}


def taint(label: dict[str, str]) -> dict[str, str]:
    """The taint of spot nodes, which clouds name as they name the label."""
    ((key, value),) = label.items()
    return {"key": key, "value": value, "effect": "NoSchedule"}


NODES: dict[str, tuple[dict[str, str], list[dict[str, str]]]] = {
    "cpu": ({}, []),
    "gpu-operator": ({"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}, [GPU_TAINT]),
    "a100-40gb": ({"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB"}, [GPU_TAINT]),
    "h100": ({"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}, [GPU_TAINT]),
    "gke": (GKE, [GPU_TAINT]),
    "gke-spot": (GKE | GKE_SPOT, [GPU_TAINT, taint(GKE_SPOT)]),
    "eks": (EKS | {"karpenter.sh/capacity-type": "on-demand"}, [GPU_TAINT]),
    "eks-spot": (EKS | EKS_SPOT, [GPU_TAINT]),
    "aks": (AKS, [GPU_TAINT, AKS_TAINT]),
    "aks-spot": (AKS | AKS_SPOT, [GPU_TAINT, AKS_TAINT, taint(AKS_SPOT)]),
}
"""Labels and taints of one node of each kind; all but the first have GPUs."""
OPEN_KINDS = [
    ("external-secrets.io", "v1", "ExternalSecret"),
    ("kueue.x-k8s.io", "v1beta2", "LocalQueue"),
    ("monitoring.coreos.com", "v1", "PodMonitor"),
    ("monitoring.coreos.com", "v1", "PrometheusRule"),
    ("scheduling.volcano.sh", "v1beta1", "PodGroup"),
]


def fill(api: Api) -> None:
    """Make the nodes, the volumes and the kinds of operators, but for KubeRay's."""
    for group, version, kind in OPEN_KINDS:
        api.create(open_definition(group, version, kind))
    for name, (labels, taints) in NODES.items():
        make_node(api, name, labels, taints)
    for index in range(100):
        api.create(volume(f"volume-{index}"))


def add_kuberay(api: Api, custom_resources: Path) -> None:
    """Make KubeRay's custom resource definitions, and wait until their kinds are served."""
    for file in sorted(custom_resources.glob("*.yaml")):
        api.create(yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader))
    for kind in ("rayclusters", "rayjobs", "rayservices"):
        api.eventually(f"/apis/ray.io/v1/{kind}", lambda found: found is not None)


def open_definition(group: str, version: str, kind: str) -> Object:
    """The definition of a kind of an operator that is not here: any object of it is taken."""
    plural = f"{kind.lower()}s"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    served = {"name": version, "served": True, "storage": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural},
            "versions": [served | {"schema": {"openAPIV3Schema": schema}}],
        },
    }


def make_node(api: Api, name: str, labels: dict[str, str], taints: list[dict[str, str]]) -> None:
    """Make a node of a kind that kwok looks after; it has eight GPUs where it has labels."""
    amounts = {"cpu": "1000", "memory": "4Ti", "pods": "500", "ephemeral-storage": "100Ti"}
    if labels:
        amounts |= {"nvidia.com/gpu": "64", "vpc.amazonaws.com/efa": "32", "rdma/ib": "64"}
        amounts |= {"hugepages-2Mi": "64Gi"}
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": labels | {"kubernetes.io/hostname": name},
            "annotations": {"kwok.x-k8s.io/node": "fake"},
        },
        "spec": {"taints": taints},
    }
    api.create(node)
    status = {"capacity": amounts, "allocatable": amounts}
    answer = api.ask("PATCH", f"/api/v1/nodes/{name}/status", {"status": status})
    assert answer.status_code == 200, answer.text
    # The admission plugin TaintNodesByCondition marks every new node as not ready.
    answer = api.ask("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": taints}})
    assert answer.status_code == 200, answer.text


def volume(name: str) -> Object:
    """A volume that any claim without a storage class may bind."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "500Gi"},
            "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": f"/nonexistent/{name}"},
        },
    }


def pods_of(cluster: Object) -> Iterator[Object]:
    """The pods that KubeRay makes of a RayCluster, one a group, with its labels."""
    spec, name, uid = cluster["spec"], cluster["metadata"]["name"], cluster["metadata"].get("uid")
    owner = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "name": name, "controller": True}
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        kind = "worker" if "groupName" in group else "head"
        group_name = group.get("groupName", "headgroup")
        template = deepcopy(group["template"])
        labels = template["metadata"]["labels"] | {
            "ray.io/cluster": name,
            "ray.io/node-type": kind,
            "ray.io/group": group_name,
            "app.kubernetes.io/name": "kuberay",
            "app.kubernetes.io/created-by": "kuberay-operator",
        }
        yield {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"{name}-{group_name}",
                "labels": labels,
                "annotations": template["metadata"].get("annotations", {}),
                "ownerReferences": [owner | {"uid": uid}] if uid else [],
            },
            "spec": template["spec"] | {"restartPolicy": "Never"},
        }


def make_pods(api: Api, cluster: Object) -> dict[str, str]:
    """Make the pods of a RayCluster, as KubeRay would; on which node each came to run, by group."""
    namespace = cluster["metadata"]["namespace"]
    nodes = {}
    for pod in pods_of(cluster):
        created = api.create(pod, namespace)
        path = f"{collection(pod, namespace)}/{created['metadata']['name']}"
        ran = api.eventually(path, lambda found: found["status"]["phase"] == "Running")
        nodes[pod["metadata"]["labels"]["ray.io/group"]] = ran["spec"]["nodeName"]
    return nodes
