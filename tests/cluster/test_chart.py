"""The chart: what it renders is accepted, restricted and wired; what it must refuse, it refuses."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from llavamed.cluster.rules import broken_rules
from tests.support.chart_release import (
    BUCKET,
    BUNDLED,
    CHART,
    POSTGRES,
    SCALED,
    nested,
    objects,
    ray_pods,
    release,
)
from tests.support.chart_values import BESIDE, OTHER, VALUE_SETS
from tests.support.kubernetes_rules import (
    core_violations,
    custom_violations,
    is_core,
    pod_specs,
    restriction_violations,
)


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
    core = [item for item in objects(values).values() if is_core(item)]
    assert {item["kind"] for item in core} >= {"ConfigMap", "Deployment", "Service"}
    assert {item["metadata"]["name"]: core_violations(item) for item in core} == {
        item["metadata"]["name"]: [] for item in core
    }


def test_kuberay_accepts_the_cluster(values: dict[str, Any], reference_data: Path) -> None:
    cluster = objects(values)["RayCluster/llavamed"]
    assert custom_violations(cluster, reference_data / "data" / "kuberay-crds") == []
    assert broken_rules(cluster) == []


def test_every_pod_is_restricted(values: dict[str, Any]) -> None:
    pods = [pod for item in objects(values).values() for pod in pod_specs(item)]
    assert len(pods) >= 4
    assert [restriction_violations(pod) for pod in pods] == [[]] * len(pods)
    assert {pod["serviceAccountName"] for pod in pods} == {"llavamed"}


def test_only_an_autoscaling_head_may_call_the_api(values: dict[str, Any]) -> None:
    found = objects(values)
    head, *workers = ray_pods(found)
    mlflow = found["Deployment/llavamed-mlflow"]["spec"]["template"]["spec"]
    assert found["ServiceAccount/llavamed"]["automountServiceAccountToken"] is False
    scaled = values.get("ray.autoscaling.enabled", False)
    assert head["automountServiceAccountToken"] is scaled
    assert [pod["automountServiceAccountToken"] for pod in [*workers, mlflow]] == (
        [False] * (len(workers) + 1)
    )


def test_no_secret_is_written(values: dict[str, Any]) -> None:
    found = objects(values)
    secrets = [name for name in found if name.startswith("Secret/")]
    bundled = values.get("mlflow.database.bundled.enabled")
    assert secrets == (["Secret/llavamed-postgres"] if bundled else [])
    secret = re.compile("PASSWORD|SECRET|TOKEN|_KEY|CREDENTIAL")
    for pod in (pod for item in found.values() for pod in pod_specs(item)):
        given = [item for item in pod["containers"][0].get("env", []) if "value" in item]
        assert [item for item in given if secret.search(item["name"])] == []


def test_every_value_has_another_here() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert leaves(defaults) == OTHER.keys()


@pytest.mark.parametrize("name", OTHER)
def test_every_value_is_used(name: str) -> None:
    beside = BESIDE.get(name, {})
    assert manifest(beside | {name: OTHER[name]}) != manifest(beside)


def manifest(values: dict[str, Any]) -> str:
    """All objects of a release, without the password, which is another each time."""
    return re.sub(r"^  (password|uri): .*", "", release(values)["manifest"], flags=re.MULTILINE)


def test_every_value_is_commented() -> None:
    lines = (CHART / "values.yaml").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 300
    for above, line in pairwise(lines):
        is_leaf = re.match(r" *\w+: *[^ ]", line) and not line.lstrip().startswith(("#", "-"))
        if is_leaf and not re.match(r" {6,}(operator|effect)", line):
            assert above.lstrip().startswith("# -- "), line


def test_templates_are_short() -> None:
    for template in (CHART / "templates").rglob("*.*"):
        assert len(template.read_text(encoding="utf-8").splitlines()) <= 120, template.name


REFUSED = {
    "label of the chart": (
        {"podLabels": {"app.kubernetes.io/name": "x"}},
        "podLabels: app.kubernetes.io/name is set by the chart or by KubeRay; use another key",
    ),
    "role of an account of your own": (
        {"serviceAccount": {"name": "x", "annotations": {"role": "y"}}},
        "serviceAccount.name=x: exists, so the chart does not annotate it; take serviceAccount",
    ),
    "two servers": (
        BUNDLED | {"mlflow.trackingUri": "https://mlflow.example.org"},
        "mlflow.trackingUri=https://mlflow.example.org: the chart creates no MLflow server",
    ),
    "mount of no volume": (
        {"mlflow.extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}]},
        "mlflow.extraVolumeMounts: ca, mounted at /ca, is none of the volumes tmp, data; add it",
    ),
    "typo": ({"runConfg": "demo.yaml"}, "additional properties 'runConfg' not allowed"),
    "nested typo": ({"ray.a100.gpu": 8}, "additional properties 'gpu' not allowed"),
    "text for a number": ({"ray.a100.gpus": "8"}, "/ray/a100/gpus': got string, want integer"),
    "no gpu": ({"ray.a100.gpus": 0}, "/ray/a100/gpus': minimum: got 0, want 1"),
    "text for a switch": ({"networkPolicy.enabled": "no"}, "got string, want boolean"),
    "memory without unit": ({"mlflow.memory": "4"}, "/mlflow/memory': '4' does not match"),
    "old Ray": ({"ray.version": "2.51.0"}, "/ray/version': '2.51.0' does not match"),
    "pull policy": ({"image.pullPolicy": "always"}, "/image/pullPolicy': value must be one of"),
    "short digest": ({"image.digest": "sha256:12"}, "/image/digest': 'sha256:12' does not match"),
    "other storage": ({"mlflow.artifacts.destination": "wasb://b"}, "'wasb://b' does not match"),
    "blank": ({"mlflow.artifacts.destination": "s3://b/a b"}, "/destination': 's3://b/a b' does"),
    "scheme": ({"image.repository": "https://r.io/llavamed"}, "/image/repository': 'https://r.io"),
    "tag": ({"image.repository": "r.io/llavamed:1.0"}, "/image/repository': 'r.io/llavamed:1.0'"),
    "slash": ({"image.repository": "r.io/llavamed/"}, "/image/repository': 'r.io/llavamed/' does"),
    "no label": ({"ray.cpu.nodeSelector": {"pool": "a b"}}, "/ray/cpu/nodeSelector/pool': 'a b'"),
    "strategy": ({"ray.upgradeStrategy": "Rolling"}, "/ray/upgradeStrategy': value must be one of"),
    "peer": ({"networkPolicy.clients": [{"namespace": "x"}]}, "properties 'namespace' not allowed"),
    "null": ({"ray.a100.nodeSelector": None}, "/ray/a100': missing property 'nodeSelector'"),
    "any host": ({"mlflow.extraAllowedHosts": ["*"]}, "extraAllowedHosts/0': '\\*' does not match"),
    "password in a URL": ({"storage.endpointUrl": "https://me:pw@s3"}, "does not match pattern"),
    "no time to drain": ({"ray.terminationGracePeriodSeconds": 15}, "minimum: got 15, want 30"),
    "toleration": ({"ray.head.tolerations": [{"name": "x"}]}, "properties 'name' not allowed"),
    "seconds of a toleration": (
        {"ray.cpu.tolerations": [{"operator": "Exists", "tolerationSeconds": 9}]},
        "/ray/cpu/tolerations/0': missing property 'effect'",
    ),
    "value of a toleration": (
        {"mlflow.tolerations": [{"key": "pool", "value": "a b"}]},
        "/mlflow/tolerations/0/value': 'a b' does not match",
    ),
    "two dots": ({"ray.priorityClass": "a..b"}, "/ray/priorityClass': 'a..b' does not match"),
    "two sources of a variable": (
        {
            "ray.extraEnv": [
                {"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}
            ]
        },
        "/ray/extraEnv/0/value': maxLength: got 1, want 0",
    ),
    "a variable from nowhere": (
        {"ray.extraEnv": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s"}}}]},
        "/ray/extraEnv/0/valueFrom/secretKeyRef': missing property 'key'",
    ),
    "two sources of a volume": (
        {"ray.extraVolumes": [{"name": "x", "emptyDir": {}, "configMap": {"name": "c"}}]},
        "/ray/extraVolumes/0': maxProperties: got 3, want 2",
    ),
    "a field of a mount": (
        {"ray.extraVolumeMounts": [{"name": "configs", "mountPath": "/c", "readonly": True}]},
        "properties 'readonly' not allowed",
    ),
    "CPUs as a device": (
        {"ray.a100.extraResources": {"cpu": 4}},
        "/ray/a100/extraResources': additional properties 'cpu' not allowed",
    ),
    "no name of a label": (
        {"podLabels": {"a b": "x"}},
        "/podLabels': additional properties 'a b' not allowed",
    ),
    "a number of large pages": (
        {"ray.a100.extraResources": {"hugepages-2Mi": 5120}},
        "/ray/a100/extraResources/hugepages-2Mi': minimum: got 5,120, want 65,536",
    ),
    "GPUs twice": (
        {"ray.a100.extraResources": {"nvidia.com/gpu": 4}},
        r"ray\.a100\.extraResources: nvidia\.com/gpu is the resource of the GPUs; set gpus=4 ins",
    ),
    "unknown config": (
        {"runConfig": "mine.yaml"},
        r"runConfig=mine\.yaml is not in ray_jobs/configs",
    ),
    "replicas": (
        {"ray.cpu.replicas": 9},
        r"ray\.cpu: minReplicas=0 <= replicas=9 <= maxReplicas=8 does not hold",
    ),
    "more shared memory than memory": (
        {"ray.cpu.memory": "9G"},
        r"ray\.cpu: sharedMemory=10Gi is part of memory=9G, and must be less",
    ),
    "no shared memory": (
        {"ray.gpuGroups": [{"name": "h100", "sharedMemory": "64Mi"}]},
        r"ray\.h100: sharedMemory=64Mi is part of memory=512Gi, and must be less, and 100Mi or",
    ),
    "more groups than Kueue takes": (
        {"ray.gpuGroups": [{"name": f"group-{index}"} for index in range(16)]},
        "/ray/gpuGroups': maxItems: got 16, want 15",
    ),
    "two labels for a node": (
        {"ray.a100.nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A100-PCIE-40GB"}},
        r"ray\.a100\.nodeSelector: asks for nvidia\.com/gpu\.product=NVIDIA-A100-PCIE-40GB, and "
        "nodeLabel for NVIDIA-A100-SXM4-80GB; set nodeLabel",
    ),
    "a group twice": (
        {"ray.gpuGroups": [{"name": "h100"}, {"name": "h100"}]},
        r"ray\.gpuGroups: the name h100 is taken; each group needs its own",
    ),
    "a group called head": (
        {"ray.gpuGroups": [{"name": "head"}]},
        r"ray\.gpuGroups: the name head is taken",
    ),
    "a volume's name of the chart": (
        {"ray.extraVolumes": [{"name": "shared-memory", "emptyDir": {}}]},
        r"ray\.extraVolumes: the name shared-memory is taken; choose another",
    ),
    "two claims at a path": (
        {"ray.claims": [{"claim": name, "mountPath": "/data"} for name in ("a", "b")]},
        r"ray: two volumes are mounted at /data; move that of extraVolumeMounts, claims or",
    ),
    "a mount of no volume": (
        {"ray.extraVolumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]},
        r"ray\.extraVolumeMounts: scratch, mounted at /scratch, is none of the volumes ray-logs, "
        r"shared-memory, configs; add it to ray\.extraVolumes",
    ),
    "a label of the chart": (
        {"job.labels": {"app.kubernetes.io/name": "x"}},
        r"job\.labels: app\.kubernetes\.io/name is set by the chart; use another key",
    ),
    "a queue as a label": (
        {"job.enabled": True, "job.labels": {"kueue.x-k8s.io/queue-name": "team"}},
        r"job\.labels: kueue\.x-k8s\.io/queue-name=team is set by job\.queue, .*; set job\.queue="
        "team",
    ),
    "a queue for a cluster that grows": (
        SCALED | {"job.queue": "team"},
        r"job\.queue=team: Kueue admits a job of a fixed size; set ray\.autoscaling\.enabled=false",
    ),
    "two databases": (
        POSTGRES | BUNDLED,
        r"mlflow\.database\.bundled\.enabled=true: excludes a database of your own",
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


def test_every_group_of_values_is_closed_and_complete() -> None:
    schema = helm_python.Chart.load(CHART).schema
    assert schema is not None
    pending = [schema]
    while pending:
        part = pending.pop()
        assert part.get("additionalProperties") is False, part
        # Helm takes a value away where the user gives null: nothing may be left out.
        of_parents = {"global", "enabled"} if part is schema else set()
        assert set(part["required"]) == part["properties"].keys() - of_parents
        inner = part["properties"].values()
        pending += [item for item in inner if "properties" in item]


@pytest.mark.parametrize("name", ["a" * 51, "1st", "a.b"])
def test_names_that_kuberay_would_refuse_or_cut_are_refused(name: str) -> None:
    with pytest.raises(helm_python.HelmError, match=f'release name "{re.escape(name)}"'):
        release(name=name)


def test_a_name_too_long_for_what_kubernetes_makes_of_it_is_refused() -> None:
    collected = POSTGRES | BUCKET | {"mlflow.gc.enabled": True}
    with pytest.raises(
        helm_python.HelmError, match=r"takes 52 of a CronJob's name.*use 42 at most"
    ):
        release(collected, name="a" * 43)
    with pytest.raises(helm_python.HelmError, match=r"a StatefulSet's name.*use 43 at most"):
        release(BUNDLED, name="a" * 44)
    assert f"CronJob/{'a' * 42}-mlflow-gc" in objects(collected, name="a" * 42)


def test_the_longest_name_is_taken(reference_data: Path) -> None:
    cluster = objects(name="a" * 50)["RayCluster/" + "a" * 50]
    assert broken_rules(cluster) == []
