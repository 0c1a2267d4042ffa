"""KubeRay's own rules, which its operator checks but the schema of its resources does not state.

Source: KubeRay 1.7.0, `ray-operator/controllers/ray/utils/validation.go`.
"""

import re
from collections.abc import Iterator
from itertools import pairwise

from llavamed.cluster.kinds import RAY_CLUSTER, RAY_JOB, RAY_SERVICE, Object, name_of
from llavamed.cluster.pods import cluster_spec

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_MAX_NAME = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
_OPERATOR_LABELS = {
    *("app.kubernetes.io/name", "app.kubernetes.io/created-by", "ray.io/cluster", "ray.io/group"),
    *("ray.io/node-type", "ray.io/identifier"),
}
"""Labels that the operator sets on pods."""
_GATED = ("networkPolicy", "tlsOptions", "historyServerOptions")
"""Options that need a feature gate, which is off by default."""
_DELETED_IN_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
_UPGRADES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
_AUTOSCALER_V2 = "RAY_enable_autoscaler_v2"


def broken_rules(thing: Object) -> list[str]:
    """Return the rules that an object of KubeRay breaks, with what to do."""
    kind, spec, name = thing["kind"], thing.get("spec", {}), name_of(thing)
    found = []
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME[kind]:
        found.append(
            f"metadata.name={name}: has {len(name)} characters; use lower case letters, digits and "
            f"'-', beginning with a letter, {_MAX_NAME[kind]} at most"
        )
    if kind == RAY_JOB.name:
        found += _job_rules(spec)
    elif kind == RAY_SERVICE.name:
        found += _service_rules(spec)
    cluster = cluster_spec(thing)
    return found + (list(_cluster_rules(cluster, kind)) if cluster else [])


def _job_rules(spec: Object) -> Iterator[str]:
    cluster = spec.get("rayClusterSpec") or {}
    mode = spec.get("submissionMode", "K8sJobMode")
    rules = (spec.get("deletionStrategy") or {}).get("deletionRules") or []
    shuts_down, selects = spec.get("shutdownAfterJobFinishes"), "clusterSelector" in spec
    if selects == bool(cluster):
        yield "spec: must have one of rayClusterSpec and clusterSelector; keep one"
    if spec.get("suspend") and not shuts_down:
        yield "spec.suspend=true: needs shutdownAfterJobFinishes; set it to true"
    if spec.get("ttlSecondsAfterFinished") and not shuts_down:
        yield "spec.ttlSecondsAfterFinished: needs shutdownAfterJobFinishes; set it to true"
    if rules and shuts_down:
        yield "spec.deletionStrategy: excludes shutdownAfterJobFinishes; remove one of them"
    if mode == "InteractiveMode" and spec.get("backoffLimit"):
        yield "spec.submissionMode=InteractiveMode: excludes backoffLimit; remove it"
    for key in ("suspend", "backoffLimit"):
        if selects and spec.get(key):
            yield f"spec.clusterSelector: excludes {key}; remove it"
    if selects and mode == "SidecarMode":
        yield "spec.clusterSelector: excludes submissionMode=SidecarMode; use HTTPMode"
    yield from _deletion_rules(rules, selects, scales=cluster.get("enableInTreeAutoscaling", False))


def _deletion_rules(rules: list[Object], selects: bool, *, scales: bool) -> Iterator[str]:
    key, seconds = "spec.deletionStrategy.deletionRules", {}
    for rule in rules:
        policy, condition = str(rule.get("policy")), rule.get("condition") or {}
        if selects and policy in ("DeleteCluster", "DeleteWorkers"):
            yield f"{key}: {policy} excludes clusterSelector; remove the rule"
        if scales and policy == "DeleteWorkers":
            yield f"{key}: DeleteWorkers excludes autoscaling; remove the rule"
        status = str(condition.get("jobStatus") or condition.get("jobDeploymentStatus"))
        if (status, policy) in seconds:
            yield f"{key}: holds a rule twice, {policy} at {status}; remove one"
        seconds[status, policy] = condition.get("ttlSeconds", 0)
    for status in sorted({status for status, _ in seconds}):
        there = [each for each in _DELETED_IN_ORDER if (status, each) in seconds]
        for first, then in pairwise(there):
            if seconds[status, first] > seconds[status, then]:
                yield (
                    f"{key}: at {status}, {first} comes {seconds[status, first]} s after the end "
                    f"and {then} {seconds[status, then]} s; delete workers first, then the cluster"
                )


def _service_rules(spec: Object) -> Iterator[str]:
    cluster, upgrade = spec.get("rayClusterConfig") or {}, spec.get("upgradeStrategy") or {}
    kind = upgrade.get("type", "NewCluster")
    service = (cluster.get("headGroupSpec") or {}).get("headService") or {}
    if (service.get("metadata") or {}).get("name"):
        yield (
            "spec.rayClusterConfig.headGroupSpec.headService.metadata.name: KubeRay names the "
            "service itself; remove it"
        )
    if kind not in _UPGRADES:
        yield f"spec.upgradeStrategy.type={kind}: is not known; use one of {', '.join(_UPGRADES)}"
    if (delay := spec.get("rayClusterDeletionDelaySeconds", 0)) < 0:
        yield f"spec.rayClusterDeletionDelaySeconds={delay}: is negative; use 0 or more"
    if kind == "NewClusterWithIncrementalUpgrade":
        if not cluster.get("enableInTreeAutoscaling"):
            yield f"spec.upgradeStrategy.type={kind}: needs enableInTreeAutoscaling; set it to true"
        if not (upgrade.get("clusterUpgradeOptions") or {}).get("gatewayClassName"):
            yield (
                f"spec.upgradeStrategy.type={kind}: needs clusterUpgradeOptions.gatewayClassName; "
                "set it, or use NewCluster"
            )


def _cluster_rules(spec: Object, kind: str) -> Iterator[str]:
    version = str(spec.get("rayVersion", ""))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    auth = spec.get("authOptions") or {}
    if auth.get("mode") == "token" and numbers < (2, 52):
        yield f"rayVersion={version or 'null'}: authOptions.mode=token needs 2.52.0; state it"
    if auth.get("enableK8sTokenAuth") and (kind != RAY_CLUSTER.name or numbers < (2, 55)):
        yield "authOptions.enableK8sTokenAuth: is for RayClusters from Ray 2.55 only; remove it"
    for option in _GATED:
        if option in spec:
            yield f"{option}: needs a feature gate of the operator; remove it, or turn the gate on"
    scales = spec.get("enableInTreeAutoscaling", False)
    v2 = (spec.get("autoscalerOptions") or {}).get("version") == "v2"
    for group in [spec.get("headGroupSpec") or {}, *spec.get("workerGroupSpecs", [])]:
        name = group.get("groupName", "head")
        if "groupName" in group:
            yield from _size_rules(group, scales=scales)
        yield from (f"group {name}: {text}" for text in _group_rules(group, scales=scales, v2=v2))


def _size_rules(group: Object, *, scales: bool) -> Iterator[str]:
    name, low, high = group["groupName"], group.get("minReplicas"), group.get("maxReplicas")
    if low is None or high is None:
        yield f"group {name}: needs minReplicas and maxReplicas; set both"
    elif low > high:
        yield f"group {name}: minReplicas={low} is more than maxReplicas={high}; swap them"
    elif not scales and not low <= group.get("replicas", low) <= high:
        yield (
            f"group {name}: replicas={group.get('replicas')} is not between minReplicas={low} and "
            f"maxReplicas={high}; change one of them"
        )


def _group_rules(group: Object, *, scales: bool, v2: bool) -> Iterator[str]:
    parameters, template = group.get("rayStartParams") or {}, group.get("template") or {}
    if "labels" in parameters:
        yield "rayStartParams.labels: KubeRay reads labels of the group; move them there"
    if "resources" in parameters:
        yield "rayStartParams.resources: KubeRay reads resources of the group; move them there"
    labels = (template.get("metadata") or {}).get("labels") or {}
    for label in sorted(_OPERATOR_LABELS & labels.keys()):
        yield f"label {label}: is set by KubeRay itself; remove it"
    pod = template.get("spec") or {}
    restarts = pod.get("restartPolicy", "Never")
    if scales and restarts != "Never":
        yield f"restartPolicy={restarts}: autoscaler v2 needs Never; set it, or remove the field"
    names = {
        each.get("name") for container in pod.get("containers", [])[:1]
        for each in container.get("env") or []
    }  # fmt: skip
    if _AUTOSCALER_V2 in names and (v2 or not scales):
        yield f"env {_AUTOSCALER_V2}: autoscalerOptions.version says so already; remove it"
