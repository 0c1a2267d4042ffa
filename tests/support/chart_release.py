"""Releases of the chart, as a client that never asks a cluster would make them."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import helm_python

from tests.support.kubernetes_rules import Object, load_objects, pod_specs

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm"
POSTGRES = {"mlflow.database.existingSecret.name": "database"}
BUNDLED = {"mlflow.database.bundled.enabled": True}
BUCKET = {"mlflow.artifacts.destination": "s3://bucket/mlflow"}
SERVED: dict[str, Any] = {
    "serve.enabled": True,
    "serve.export": "s3://bucket/runs/other/exports/vqa",
    "serve.existingSecret": "token",
}
SCALED = {"ray.autoscaling.enabled": True}


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` as `{"a": {"b": 1}}`."""
    tree: dict[str, Any] = {}
    for dotted, value in values.items():
        *parents, leaf = dotted.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = deepcopy(value)
    return tree


def release(values: dict[str, Any] | None = None, name: str = "llavamed") -> dict[str, Any]:
    """What `helm install --dry-run=client` gives: unlike a mere rendering it reads the YAML too."""
    with helm_python.Config(kube_apiserver="https://127.0.0.1:1") as config:
        answer: dict[str, Any] = config.install(
            CHART, name, nested(values or {}), namespace="research", dry_run="client"
        )
    return answer


def objects(values: dict[str, Any] | None = None, name: str = "llavamed") -> dict[str, Object]:
    """Every object of a release, as `Kind/name`."""
    found = load_objects(release(values, name)["manifest"])
    by_name = {f"{item['kind']}/{item['metadata']['name']}": item for item in found}
    assert len(by_name) == len(found)
    return by_name


def ray_pods(found: dict[str, Object]) -> list[Object]:
    return pod_specs(found["RayCluster/llavamed"])


def environment(pod: Object) -> dict[str, str]:
    return {item["name"]: item.get("value", "") for item in pod["containers"][0]["env"]}


def mlflow_pod(values: dict[str, Any] | None = None) -> Object:
    """The pod of MLflow."""
    pod: Object = objects(values)["Deployment/llavamed-mlflow"]["spec"]["template"]["spec"]
    return pod


def hook_pods(values: dict[str, Any]) -> dict[str, Object]:
    """The pods of `helm test`, by their name."""
    with helm_python.Chart.load(CHART) as chart:
        documents = chart.render(nested(values), name="llavamed", namespace="research")
    tests = (text for path, text in documents.items() if "/templates/tests/" in path)
    pods = [pod for text in tests for pod in load_objects(text)]
    return {pod["metadata"]["name"]: pod["spec"] for pod in pods}
