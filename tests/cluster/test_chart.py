"""The chart: what it renders is accepted, restricted and wired; what it must refuse, it refuses."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from tests.support.chart_release import (
    BUCKET,
    CHART,
    POSTGRES,
    SCALED,
    nested,
    objects,
    ray_pods,
    release,
)
from tests.support.kubernetes_rules import (
    core_violations,
    custom_violations,
    operator_violations,
    pod_specs,
    restriction_violations,
)

# For every value of the chart another one; the release must then differ.
OTHER: dict[str, Any] = {
    "image.repository": "registry.example.org/team/llavamed",
    "image.tag": "1.2.3",
    "image.digest": "sha256:" + "0" * 64,
    "image.pullPolicy": "Always",
    "image.pullSecrets": ["registry"],
    "runConfig": "demo.yaml",
    "serviceAccount.annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/llavamed"},
    "storage.existingSecret": "object-storage",
    "storage.endpointUrl": "http://minio.storage:9000",
    "huggingface.offline": True,
    "ray.version": "2.60.1",
    "ray.terminationGracePeriodSeconds": 60,
    "ray.jobStopWaitSeconds": 30,
    "ray.workerStartTimeoutSeconds": 600,
    "ray.autoscaling.enabled": True,
    "ray.autoscaling.idleTimeoutSeconds": 60,
    "ray.head.cpu": "1500m",
    "ray.head.memory": "8Gi",
    "ray.head.nodeSelector": {"pool": "system"},
    "ray.head.tolerations": [{"key": "system", "operator": "Equal", "value": "yes"}],
    "ray.cpu.replicas": 4,
    "ray.cpu.minReplicas": 1,
    "ray.cpu.maxReplicas": 4,
    "ray.cpu.cpu": 2,
    "ray.cpu.memory": "1.5Gi",
    "ray.cpu.nodeSelector": {"pool": "cpu"},
    "ray.cpu.tolerations": [{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9}],
    "ray.a100.replicas": 2,
    "ray.a100.minReplicas": 1,
    "ray.a100.maxReplicas": 1,
    "ray.a100.gpus": 4,
    "ray.a100.cpu": 32,
    "ray.a100.memory": "256Gi",
    "ray.a100.nodeLabel.key": "cloud.google.com/gke-accelerator",
    "ray.a100.nodeLabel.value": "NVIDIA-A100-SXM4-40GB",
    "ray.a100.nodeSelector": {"cloud.google.com/gke-spot": "true"},
    "ray.a100.tolerations": [],
    "mlflow.cpu": 2,
    "mlflow.memory": "4Gi",
    "mlflow.extraAllowedHosts": ["mlflow.example.org"],
    "mlflow.database.existingSecret.name": "database",
    "mlflow.database.existingSecret.key": "url",
    "mlflow.artifacts.destination": "s3://bucket/mlflow",
    "mlflow.persistence.size": "100Gi",
    "mlflow.persistence.storageClass": "fast",
    "networkPolicy.enabled": False,
}
# Values that matter only beside these.
BESIDE: dict[str, dict[str, Any]] = {
    "ray.autoscaling.idleTimeoutSeconds": SCALED,
    "mlflow.database.existingSecret.key": POSTGRES,
}
VALUE_SETS: dict[str, dict[str, Any]] = {
    "default": {},
    "postgres": POSTGRES,
    "bucket": BUCKET,
    "stateless": POSTGRES | BUCKET,
    "all-other": OTHER,
    "all-other-fixed-size": OTHER | {"ray.autoscaling.enabled": False, "ray.a100.replicas": 1},
}


def leaves(tree: dict[str, Any], path: str = "") -> set[str]:
    """Dotted names of the values; empty maps and lists are values."""
    names = set()
    for key, value in tree.items():
        inner = leaves(value, f"{path}{key}.") if isinstance(value, dict) else set()
        names |= inner or {path + key}
    return names


@pytest.fixture(params=list(VALUE_SETS.values()), ids=list(VALUE_SETS))
def values(request: pytest.FixtureRequest) -> dict[str, Any]:
    chosen: dict[str, Any] = request.param
    return chosen


def test_lint_finds_nothing(values: dict[str, Any]) -> None:
    report = helm_python.lint(CHART, nested(values), strict=True)
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] > 1] == []


def test_kubernetes_accepts_every_object(values: dict[str, Any]) -> None:
    core = [item for item in objects(values).values() if item["apiVersion"] != "ray.io/v1"]
    assert {item["kind"] for item in core} >= {"ConfigMap", "Deployment", "Service"}
    assert {item["metadata"]["name"]: core_violations(item) for item in core} == {
        item["metadata"]["name"]: [] for item in core
    }


def test_kuberay_accepts_the_cluster(values: dict[str, Any], reference_data: Path) -> None:
    cluster = objects(values)["RayCluster/llavamed"]
    assert custom_violations(cluster, reference_data / "data" / "kuberay-crds") == []
    assert operator_violations(cluster) == []


def test_every_pod_is_restricted(values: dict[str, Any]) -> None:
    pods = [pod for item in objects(values).values() for pod in pod_specs(item)]
    assert len(pods) == 4
    assert [restriction_violations(pod) for pod in pods] == [[]] * 4
    assert {pod["serviceAccountName"] for pod in pods} == {"llavamed"}


def test_only_an_autoscaling_head_may_call_the_api(values: dict[str, Any]) -> None:
    found = objects(values)
    head, *workers = ray_pods(found)
    mlflow = found["Deployment/llavamed-mlflow"]["spec"]["template"]["spec"]
    assert found["ServiceAccount/llavamed"]["automountServiceAccountToken"] is False
    scaled = values.get("ray.autoscaling.enabled", False)
    assert head["automountServiceAccountToken"] is scaled
    assert [pod["automountServiceAccountToken"] for pod in [*workers, mlflow]] == [False] * 3


def test_no_secret_is_written(values: dict[str, Any]) -> None:
    found = objects(values)
    assert not [name for name in found if name.startswith("Secret/")]
    secret = re.compile("PASSWORD|SECRET|TOKEN|_KEY|CREDENTIAL")
    for pod in (pod for item in found.values() for pod in pod_specs(item)):
        given = [item for item in pod["containers"][0]["env"] if "value" in item]
        assert [item for item in given if secret.search(item["name"])] == []


def test_every_value_has_another_here() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    lists_within = {"ray.a100.tolerations"}
    assert leaves(defaults) | lists_within == OTHER.keys()


@pytest.mark.parametrize("name", OTHER)
def test_every_value_is_used(name: str) -> None:
    beside = BESIDE.get(name, {})
    assert release(beside | {name: OTHER[name]})["manifest"] != release(beside)["manifest"]


def test_every_value_is_commented() -> None:
    lines = (CHART / "values.yaml").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 250
    for above, line in pairwise(lines):
        is_leaf = re.match(r" *\w+: *[^ ]", line) and not line.lstrip().startswith(("#", "-"))
        if is_leaf and not re.match(r" {6,}(operator|effect)", line):
            assert above.lstrip().startswith("# -- "), line


def test_templates_are_short() -> None:
    for template in (CHART / "templates").iterdir():
        assert len(template.read_text(encoding="utf-8").splitlines()) <= 120, template.name


REFUSED = {
    "typo": ({"runConfg": "demo.yaml"}, "additional properties 'runConfg' not allowed"),
    "nested typo": ({"ray.a100.gpu": 8}, "additional properties 'gpu' not allowed"),
    "text for a number": ({"ray.a100.gpus": "8"}, "/ray/a100/gpus': got string, want integer"),
    "no gpu": ({"ray.a100.gpus": 0}, "/ray/a100/gpus': minimum: got 0, want 1"),
    "text for a switch": ({"networkPolicy.enabled": "no"}, "got string, want boolean"),
    "memory without unit": ({"mlflow.memory": "4"}, "/mlflow/memory': '4' does not match"),
    "old Ray": ({"ray.version": "2.51.0"}, "/ray/version': '2.51.0' does not match"),
    "pull policy": ({"image.pullPolicy": "always"}, "/image/pullPolicy': value must be one of"),
    "short digest": ({"image.digest": "sha256:12"}, "/image/digest': 'sha256:12' does not match"),
    "other storage": ({"mlflow.artifacts.destination": "gs://b"}, "'gs://b' does not match"),
    "any host": ({"mlflow.extraAllowedHosts": ["*"]}, "extraAllowedHosts/0': '\\*' does not match"),
    "password in a URL": ({"storage.endpointUrl": "https://me:pw@s3"}, "does not match pattern"),
    "no time to drain": ({"ray.terminationGracePeriodSeconds": 15}, "minimum: got 15, want 30"),
    "toleration": ({"ray.head.tolerations": [{"name": "x"}]}, "properties 'name' not allowed"),
    "unknown config": (
        {"runConfig": "mine.yaml"},
        r"runConfig=mine\.yaml is not in ray_jobs/configs",
    ),
    "replicas": (
        {"ray.cpu.replicas": 9},
        r"ray\.cpu: minReplicas=0 <= replicas=9 <= maxReplicas=8 does not hold",
    ),
    "crossed bounds": (
        SCALED | {"ray.a100.minReplicas": 5},
        r"ray\.a100: minReplicas=5 <= replicas=5 <= maxReplicas=4 does not hold",
    ),
}


@pytest.mark.parametrize(("wrong", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_wrong_values_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(helm_python.HelmReleaseError, match=message):
        release(wrong)


def test_every_group_of_values_refuses_unknown_keys() -> None:
    schema = helm_python.Chart.load(CHART).schema
    assert schema is not None
    pending = [schema]
    while pending:
        part = pending.pop()
        assert part.get("additionalProperties") is False, part
        inner = part["properties"].values()
        pending += [item for item in inner if "properties" in item]


@pytest.mark.parametrize("name", ["a" * 51, "1st", "a.b"])
def test_names_that_kuberay_would_refuse_or_cut_are_refused(name: str) -> None:
    with pytest.raises(helm_python.HelmError, match=f'release name "{re.escape(name)}"'):
        release(name=name)


def test_the_longest_name_is_taken(reference_data: Path) -> None:
    cluster = objects(name="a" * 50)["RayCluster/" + "a" * 50]
    assert operator_violations(cluster) == []
