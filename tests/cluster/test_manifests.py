"""The plain manifests equal the chart, nodes and queues fit it, and the rules do bite."""

import importlib.util
import re
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from llavamed.cluster.rules import broken_rules
from tests.support.chart_release import ROOT, objects, ray_pods
from tests.support.dockerfile import copied, instructions
from tests.support.kubernetes_rules import (
    Object,
    UniqueKeyLoader,
    core_violations,
    custom_violations,
    load_objects,
    pod_specs,
    restriction_violations,
)

K8S = ROOT / "k8s"


def plain(name: str) -> Object:
    (manifest,) = load_objects((K8S / name).read_text(encoding="utf-8"))
    return manifest


@pytest.fixture(scope="module")
def render() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render", K8S / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_manifests_are_up_to_date(name: str, render: ModuleType) -> None:
    text = (K8S / name).read_text(encoding="utf-8")
    assert text == render.manifests()[name], "out of date: run `make k8s`"


def test_the_cluster_is_the_charts() -> None:
    cluster = objects()["RayCluster/llavamed"]
    assert plain("raycluster.yaml")["spec"] == cluster["spec"]
    del cluster["spec"]["upgradeStrategy"]  # a job's cluster is never upgraded
    assert plain("rayjob.yaml")["spec"]["rayClusterSpec"] == cluster["spec"]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberay_accepts_the_manifests(name: str, reference_data: Path) -> None:
    manifest = plain(name)
    assert custom_violations(manifest, reference_data / "data" / "kuberay-crds") == []
    assert broken_rules(manifest) == []
    assert [restriction_violations(pod) for pod in pod_specs(manifest)] == [[]] * 3


def test_the_job_survives_its_log_stream_and_its_head() -> None:
    spec = plain("rayjob.yaml")["spec"]
    assert spec["submissionMode"] == "HTTPMode"
    assert spec["backoffLimit"] > 0


def test_the_jobs_head_stays_after_a_failure() -> None:
    """Also after one that has no status of Ray's: a missed deadline, a refused submission."""
    rules = plain("rayjob.yaml")["spec"]["deletionStrategy"]["deletionRules"]
    seconds = {}
    for rule in rules:
        condition = dict(rule["condition"])
        kept = condition.pop("ttlSeconds")
        seconds[rule["policy"], *condition.items()] = kept
    failed = ("jobDeploymentStatus", "Failed")
    succeeded = ("jobStatus", "SUCCEEDED")
    assert seconds.keys() == {
        ("DeleteWorkers", failed),
        ("DeleteCluster", failed),
        ("DeleteCluster", succeeded),
    }
    assert seconds["DeleteWorkers", failed] == 0
    assert seconds["DeleteCluster", failed] > seconds["DeleteCluster", succeeded] > 0


def test_the_job_runs_a_script_of_the_image() -> None:
    command, script = plain("rayjob.yaml")["spec"]["entrypoint"].split()
    (workdir,) = [words[1] for words in instructions() if words[0] == "WORKDIR"]
    assert command == "python"
    assert script.startswith(f"{workdir}/ray_jobs/")
    assert (ROOT / Path(script).relative_to(workdir)).is_file()
    assert "ray_jobs" in copied()


def test_the_namespace_admits_only_restricted_pods() -> None:
    namespace = plain("namespace.yaml")
    assert core_violations(namespace) == []
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_readme_names_values_that_exist() -> None:
    text = (K8S / "README.md").read_text(encoding="utf-8")
    values = yaml.safe_load((ROOT / "helm" / "values.yaml").read_text(encoding="utf-8"))
    set_ = re.findall(r"--set ([\w.]+)=", text)
    named = [name for name in re.findall(r"`([\w.]+)`", text) if name.split(".")[0] in values]
    assert len(set_) >= 4
    assert len(named) >= 3
    for name in set_ + named:
        place: Any = values
        for key in name.split("."):
            place = place[key]
    for file in re.findall(r"-f (k8s/\S+)", text):
        assert (ROOT / file).is_file()


def changed(path: str, value: Any) -> Object:
    """The plain job with one field set; a number in the path is an index."""
    manifest = deepcopy(plain("rayjob.yaml"))
    *parents, leaf = path.split("/")
    place: Any = manifest["spec"]
    for parent in parents:
        place = place[int(parent) if parent.isdigit() else parent]
    place[leaf] = value
    return manifest


CLUSTER = "rayClusterSpec"
GROUP = f"{CLUSTER}/workerGroupSpecs/0"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("submissionMod", "HTTPMode", ".spec.submissionMod: unknown field"),
        (f"{GROUP}/numOfHost", 1, "workerGroupSpecs[0].numOfHost: unknown field"),
        (f"{GROUP}/template/spec/nodeSelectors", {}, "nodeSelectors: unknown field"),
        (f"{GROUP}/maxReplicas", "4", "'4' is not of type 'integer'"),
        (f"{CLUSTER}/authOptions/mode", "tokens", "'tokens' is not one of"),
    ],
)
def test_the_schema_check_bites(path: str, value: Any, message: str, reference_data: Path) -> None:
    manifest = changed(path, value)
    found = custom_violations(manifest, reference_data / "data" / "kuberay-crds")
    assert any(message in violation for violation in found), found


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("ttlSecondsAfterFinished", 60, "ttlSecondsAfterFinished: needs"),
        ("suspend", True, "suspend=true: needs shutdownAfterJobFinishes"),
        ("shutdownAfterJobFinishes", True, "deletionStrategy: excludes shutdownAfterJobFinishes"),
        (f"{CLUSTER}/enableInTreeAutoscaling", True, "DeleteWorkers excludes autoscaling"),
        ("submissionMode", "InteractiveMode", "InteractiveMode: excludes backoffLimit"),
        ("clusterSelector", {"ray.io/cluster": "x"}, "clusterSelector: excludes backoffLimit"),
        (f"{CLUSTER}/rayVersion", "2.51.0", "authOptions.mode=token needs 2.52"),
        (f"{CLUSTER}/networkPolicy", {}, "networkPolicy: needs a feature gate"),
        (f"{GROUP}/minReplicas", 9, "group cpu: minReplicas=9 is more than maxReplicas=8"),
        (f"{GROUP}/replicas", 9, "group cpu: replicas=9 is not between minReplicas=0"),
        (f"{GROUP}/rayStartParams/labels", "a=b", "rayStartParams.labels: KubeRay reads labels"),
        (
            f"{GROUP}/template/metadata/labels",
            {"ray.io/group": "x"},
            "ray.io/group: is set by KubeRay",
        ),
    ],
)
def test_the_operators_rules_bite(path: str, value: Any, message: str) -> None:
    found = broken_rules(changed(path, value))
    assert any(message in violation for violation in found), found


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        ("securityContext/runAsUser", 0, "runAsNonRoot"),
        ("hostNetwork", True, "host namespaces"),
        ("volumes", [{"name": "x", "hostPath": {"path": "/"}}], "host paths"),
        ("containers/0/securityContext/privileged", True, "ray-worker: privileged"),
        ("containers/0/securityContext/capabilities", {}, "ray-worker: capabilities"),
    ],
)
def test_the_restrictions_bite(path: str, value: Any, rule: str) -> None:
    manifest = changed(f"{GROUP}/template/spec/{path}", value)
    _, worker, _ = pod_specs(manifest)
    assert restriction_violations(worker) == [rule]


def test_a_repeated_key_is_refused() -> None:
    with pytest.raises(ValueError, match="repeated keys \\['a'\\]"):
        yaml.load("{a: 1, a: 2}", Loader=UniqueKeyLoader)


def test_the_queue_has_room_for_the_default_job() -> None:
    queue = next(
        item
        for item in load_objects((K8S / "kueue.yaml").read_text(encoding="utf-8"))
        if item["kind"] == "ClusterQueue"
    )
    (group,) = queue["spec"]["resourceGroups"]
    spec = plain("rayjob.yaml")["spec"]["rayClusterSpec"]
    asked = dict.fromkeys(group["coveredResources"], 0)
    for part in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        limits = part["template"]["spec"]["containers"][0]["resources"]["limits"]
        for name, amount in limits.items():
            asked[name] += quantity(amount) * part.get("replicas", 1)
    quota = dict.fromkeys(asked, 0)
    for flavor in group["flavors"]:
        assert [item["name"] for item in flavor["resources"]] == group["coveredResources"]
        for item in flavor["resources"]:
            quota[item["name"]] += quantity(item["nominalQuota"])
    assert all(quota[name] >= asked[name] for name in asked), (asked, quota)


def quantity(amount: str | int) -> int:
    """A quantity of Kubernetes as a number."""
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi|Ti)?", str(amount)).groups()  # type: ignore[union-attr]
    return int(number) * {None: 1, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}[unit]


def placement(*presets: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The labels that A100 workers look for with some presets, and the taints they tolerate."""
    values: dict[str, Any] = {}
    for name in presets:
        file = ROOT / "helm" / "presets" / f"{name}.yaml"
        group = yaml.safe_load(file.read_text(encoding="utf-8"))["ray"]["a100"]
        values |= {f"ray.a100.{key}": value for key, value in group.items()}
    _, _, a100 = ray_pods(objects(values))
    return a100["nodeSelector"], a100["tolerations"]


def is_tolerated(taint: dict[str, str], tolerations: list[dict[str, str]]) -> bool:
    return any(
        item["key"] == taint["key"]
        and item["effect"] == taint["effect"]
        and (item["operator"] == "Exists" or item["value"] == taint["value"])
        for item in tolerations
    )


def test_the_nodes_of_eks_are_those_that_its_presets_look_for() -> None:
    (group,) = plain("nodes/eks.yaml")["managedNodeGroups"]
    given = {"node.kubernetes.io/instance-type": group["instanceType"]} | group["labels"]
    looked_for, tolerations = placement("eks")
    assert looked_for.items() <= given.items()
    assert all(is_tolerated(taint, tolerations) for taint in group["taints"])
    node = plain("nodes/karpenter.yaml")["spec"]["template"]["spec"]
    offered = {item["key"]: item["values"] for item in node["requirements"]}
    looked_for, tolerations = placement("eks", "eks-spot")
    assert all(value in offered[key] for key, value in looked_for.items())
    assert all(is_tolerated(taint, tolerations) for taint in node["taints"])


def test_the_nodes_of_gke_and_aks_are_those_that_their_presets_look_for() -> None:
    """What the commands of the README say; the clouds add labels and taints of their own."""
    text = (K8S / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"--node-taints (\S+)=(\w+):(\w+)", text)
    taints = [{"key": key, "value": value, "effect": effect} for key, value, effect in found]
    spot, sku = taints
    looked_for, tolerations = placement("gke", "gke-spot")
    (gpu,) = re.findall(r"--accelerator type=([\w-]+),count=8", text)
    assert looked_for["cloud.google.com/gke-accelerator"] == gpu
    assert is_tolerated(spot, tolerations)
    looked_for, tolerations = placement("aks", "aks-spot")
    (size,) = re.findall(r"--node-vm-size (\w+)", text)
    assert looked_for["node.kubernetes.io/instance-type"] == size
    assert is_tolerated(sku, tolerations)
