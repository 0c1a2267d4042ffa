"""Objects of KubeRay: the plain manifests of k8s/, and a service with the cluster of one."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from tests.support.kubernetes_rules import Object

K8S = Path(__file__).parents[2] / "k8s"
MANIFESTS = {
    kind: yaml.safe_load((K8S / f"{kind}.yaml").read_text()) for kind in ("rayjob", "raycluster")
}


def manifest(kind: str) -> Object:
    """A `rayjob` or `raycluster`, to be changed."""
    return deepcopy(MANIFESTS[kind])


def service(**changes: Any) -> Object:
    """A RayService whose cluster is that of the release."""
    cluster = manifest("raycluster")["spec"]
    del cluster["upgradeStrategy"]
    spec = {"upgradeStrategy": {"type": "NewCluster"}, "rayClusterConfig": cluster}
    return {"kind": "RayService", "metadata": {"name": "llavamed-serve"}, "spec": spec | changes}
