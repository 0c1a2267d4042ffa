"""What a cluster must have for the pods of Ray: an operator, objects, nodes, quota, servers."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from fractions import Fraction

from llavamed.cluster.checks.problem import (
    Problem,
    each_group,
    failure,
    minor_version,
    title,
    warning,
)
from llavamed.cluster.explain import INSTALL_KUBERAY, install_chart, upgrade_kuberay
from llavamed.cluster.kinds import (
    CLAIM,
    CONFIG_MAP,
    DEPLOYMENT,
    EVENT,
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
    labels_of,
    name_of,
)
from llavamed.cluster.pending import causes
from llavamed.cluster.pods import (
    Amounts,
    PodGroup,
    cluster_spec,
    groups_of,
    nearest_node,
    pods_that_fit,
    quantity,
    request_of,
    show,
)
from llavamed.cluster.snapshot import OPERATOR, Snapshot

KUBERAY_VERSION = (1, 7)
"""The oldest KubeRay whose RayJobs have every field that ours use."""
_WANTED = ".".join(map(str, KUBERAY_VERSION))

_CREDENTIALS = {
    *("AWS_ACCESS_KEY_ID", "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("AWS_CONTAINER_CREDENTIALS_FULL_URI", "GOOGLE_APPLICATION_CREDENTIALS"),
}
"""Variables that lead the clients of object storage to credentials."""


def namespace(snapshot: Snapshot) -> Iterator[Problem]:
    """Examine whether the namespace is there, and holds anything that the checks are about."""
    if not snapshot.all(NAMESPACE):
        yield failure(
            f"{snapshot.namespace} does not exist; check --namespace and --context, or make it "
            f"with `kubectl create namespace {snapshot.namespace}`"
        )
    elif not snapshot.ray:
        yield warning(
            f"{snapshot.namespace} has no RayCluster, RayJob or RayService, so there is little to "
            "examine; check --namespace, or install the chart with "
            f"`{install_chart(snapshot.namespace)}`"
        )


def operator(snapshot: Snapshot) -> Iterator[Problem]:
    """Examine KubeRay's operator: whether it runs, its version and its feature gates."""
    found = snapshot.all(OPERATOR)
    if not found and any(each.get("status") for each in snapshot.ray):
        yield warning(
            "no Deployment of the KubeRay operator is found, but its objects have a state, so it "
            "runs, as that of GKE does, which is hosted; check that it is version "
            f"{_WANTED} or later"
        )
    elif not found:
        yield failure(
            "no KubeRay operator runs, so no RayCluster or RayJob becomes pods; install it with "
            f"`{INSTALL_KUBERAY}`"
        )
    for deployment in found:
        namespace = deployment["metadata"].get("namespace", "default")
        where = f"{namespace}/{name_of(deployment)}"
        if not (deployment.get("status") or {}).get("availableReplicas"):
            yield failure(
                f"the operator {where} is not available; see `kubectl describe deployment`"
            )
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        version = minor_version(str(container.get("image", "")).rpartition(":")[2])
        if version is not None and version < KUBERAY_VERSION:
            yield failure(
                f"the operator {where} is KubeRay {'.'.join(map(str, version))}, older than "
                f"{_WANTED}; upgrade it: `{upgrade_kuberay(namespace)}`"
            )
        words = " ".join([*(container.get("command") or []), *(container.get("args") or [])])
        uses_rules = any("deletionStrategy" in job.get("spec", {}) for job in snapshot.all(RAY_JOB))
        if "RayJobDeletionPolicy=false" in words and uses_rules:
            yield failure(
                "the operator's feature gate RayJobDeletionPolicy is off, so deletionStrategy of "
                "RayJobs is refused; turn it on"
            )


def references(snapshot: Snapshot) -> Iterator[Problem]:
    """Examine whether what pods name exists."""
    there: dict[Kind, set[str]] = {
        kind: {name_of(each) for each in snapshot.all(kind)}
        for kind in (SECRET, CONFIG_MAP, CLAIM, SERVICE_ACCOUNT)
    }
    missing: dict[tuple[Kind, str], list[str]] = {}
    for thing, group in each_group(snapshot):
        for kind, name in _named(group.spec):
            if name not in there[kind]:
                missing.setdefault((kind, name), []).append(f"{name_of(thing)}/{group.name}")
    for thing in snapshot.ray:
        secret = ((cluster_spec(thing) or {}).get("authOptions") or {}).get("secretName")
        if secret and secret not in there[SECRET]:
            missing.setdefault((SECRET, secret), []).append(f"{name_of(thing)} (its token)")
    for (kind, name), places in missing.items():
        yield failure(
            f"{kind.name} {name} does not exist, and pods of {', '.join(places)} need it; make it, "
            "or correct the name"
        )
    for claim in snapshot.all(CLAIM):
        phase = (claim.get("status") or {}).get("phase")
        if phase == "Lost":
            yield failure(f"claim {name_of(claim)} has lost its volume; make it again")


def _named(pod: Object) -> Iterator[tuple[Kind, str]]:
    """Yield what a pod names and cannot start without."""
    yield SERVICE_ACCOUNT, pod.get("serviceAccountName") or "default"
    for secret in pod.get("imagePullSecrets") or []:
        yield SECRET, secret["name"]
    for container in [*(pod.get("initContainers") or []), *(pod.get("containers") or [])]:
        for source in container.get("envFrom") or []:
            yield from _sources(source, {"secretRef": SECRET, "configMapRef": CONFIG_MAP})
        for variable in container.get("env") or []:
            keys = {"secretKeyRef": SECRET, "configMapKeyRef": CONFIG_MAP}
            yield from _sources(variable.get("valueFrom") or {}, keys)
    for volume in pod.get("volumes") or []:
        if "persistentVolumeClaim" in volume:
            yield CLAIM, volume["persistentVolumeClaim"]["claimName"]
        secret = volume.get("secret") or {}
        if secret and not secret.get("optional"):
            yield SECRET, secret["secretName"]
        yield from _sources(volume, {"configMap": CONFIG_MAP})


def _sources(holder: Object, keys: dict[str, Kind]) -> Iterator[tuple[Kind, str]]:
    for key, kind in keys.items():
        source = holder.get(key) or {}
        if source.get("name") and not source.get("optional"):
            yield kind, source["name"]


def nodes(snapshot: Snapshot) -> Iterator[Problem]:
    """Examine whether nodes fit the pods of every group, and what the nearest node lacks."""
    every = snapshot.all(NODE)
    for thing, group in each_group(snapshot):
        wanted = group.replicas or min(group.max_replicas, 1)
        if not wanted:
            continue
        room = pods_that_fit(group.spec, every)
        where = f"{title(thing)}: group {group.name}"
        if room == 0:
            nearest = nearest_node(group.spec, every)
            lacks = (
                f"the nearest, {nearest[0]}, lacks {'; '.join(nearest[1])}"
                if nearest
                else "there is none"
            )
            yield failure(
                f"{where}: none of {len(every)} nodes can hold a pod of it; {lacks}; add such "
                "nodes, or change the group (a node pool that grows from zero may still bring one)"
            )
        elif room < wanted:
            yield warning(
                f"{where}: wants {wanted} pods, and all nodes when empty hold {room}; add nodes, "
                "or lower its replicas"
            )


def quota(snapshot: Snapshot) -> Iterator[Problem]:
    """Examine whether quotas leave room for all pods of each Ray cluster."""
    for thing in snapshot.ray:
        pods = [
            pod
            for pod in snapshot.all(POD)
            if labels_of(pod).get("ray.io/cluster", "").startswith(name_of(thing))
        ]
        for each in snapshot.all(QUOTA):
            spec, status = each.get("spec") or {}, each.get("status") or {}
            need = _demand(group for group in groups_of(thing) if _is_limited(spec, group.spec))
            own: Amounts = {}
            for pod in pods:
                if _is_limited(spec, pod["spec"]):
                    _add(own, _quota_names(request_of(pod["spec"]), 1))
            used = status.get("used") or {}
            for name, limit in (status.get("hard") or spec.get("hard") or {}).items():
                free = quantity(limit) - quantity(used.get(name, 0)) + own.get(name, Fraction(0))
                if need.get(name, Fraction(0)) > free:
                    yield failure(
                        f"{title(thing)}: ResourceQuota {name_of(each)} leaves {show(name, free)} "
                        f"of {limit}, and its pods need {show(name, need[name])}; raise the quota, "
                        "or ask for less"
                    )


def _is_limited(quota: Object, pod: Object) -> bool:
    """Return whether a quota counts a pod: its scopes may leave pods out."""
    terms = [{"scopeName": name, "operator": "Exists"} for name in quota.get("scopes") or []]
    terms += (quota.get("scopeSelector") or {}).get("matchExpressions") or []
    return all(_is_in_scope(term, pod) for term in terms)


def _is_in_scope(term: Object, pod: Object) -> bool:
    has_end = "activeDeadlineSeconds" in pod
    priority = pod.get("priorityClassName") or ""
    match term["scopeName"], term["operator"]:
        case (("BestEffort" | "NotBestEffort" as scope), _):
            return bool(request_of(pod)) == (scope == "NotBestEffort")
        case (("Terminating" | "NotTerminating" as scope), _):
            return has_end == (scope == "Terminating")
        case "PriorityClass", ("In" | "NotIn" as operator):
            return (priority in (term.get("values") or [])) == (operator == "In")
        case "PriorityClass", operator:
            return bool(priority) == (operator == "Exists")
    return False  # of volumes, or of affinities, which the pods have none of


def _demand(groups: Iterable[PodGroup]) -> Amounts:
    total: Amounts = {}
    for group in groups:
        if group.replicas:
            _add(total, _quota_names(request_of(group.spec), group.replicas))
    return total


def _quota_names(request: Amounts, number: int) -> Amounts:
    """Return the amounts of some equal pods under the names that quotas have."""
    found: Amounts = {"pods": Fraction(number), "count/pods": Fraction(number)}
    for name, amount in request.items():
        found[f"requests.{name}"] = amount * number
        if name in ("cpu", "memory", "ephemeral-storage"):
            found[name] = found[f"limits.{name}"] = amount * number
    return found


def _add(total: Amounts, more: Amounts) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, Fraction(0)) + amount


def storage(snapshot: Snapshot) -> Iterator[Problem]:
    """Examine whether pods have a source of credentials for object storage."""
    accounts = {name_of(each): each for each in snapshot.all(SERVICE_ACCOUNT)}
    without: dict[str, list[str]] = {}
    for thing, group in each_group(snapshot):
        account = accounts.get(group.spec.get("serviceAccountName") or "default", {})
        annotations = (account.get("metadata") or {}).get("annotations") or {}
        has_role = any("role-arn" in key or "gcp-service-account" in key or "azure" in key
                       for key in annotations)  # fmt: skip
        containers = group.spec.get("containers") or [{}]
        names = {each["name"] for each in containers[0].get("env") or []}
        has_secret = bool(containers[0].get("envFrom")) or bool(_CREDENTIALS & names)
        if not (has_role or has_secret):
            without.setdefault(title(thing), []).append(group.name)
    for where, names_of_groups in without.items():
        yield warning(
            f"{where}: {', '.join(names_of_groups)} have neither a Secret with credentials "
            "(storage.existingSecret) nor a cloud role (serviceAccount.annotations); unless the "
            "cloud knows their account (EKS Pod Identity), they reach only storage that their "
            "nodes may reach"
        )


def mlflow(snapshot: Snapshot) -> Iterator[Problem]:
    """Examine whether the MLflow server that pods name is available."""
    services = set()
    for _, group in each_group(snapshot):
        for container in group.spec.get("containers", [])[:1]:
            for each in container.get("env") or []:
                if each["name"] == "MLFLOW_TRACKING_URI":
                    found = re.match(r"https?://([a-z0-9-]+)(:|/|$)", each.get("value", ""))
                    services |= {found[1]} if found else set()
    deployments = {name_of(each): each for each in snapshot.all(DEPLOYMENT)}
    others = {name_of(each) for each in snapshot.all(SERVICE)} - deployments.keys()
    for service in sorted(services - others):  # a server of your own may have any pods behind it
        deployment = deployments.get(service)
        if deployment is None:
            yield failure(
                f"no Service {service}, which MLFLOW_TRACKING_URI names, so runs end before they "
                "begin; install the chart, or set mlflow.trackingUri to your own server"
            )
        elif not (deployment.get("status") or {}).get("availableReplicas"):
            yield failure(
                f"the MLflow server {service} is not available, and runs end before they begin; "
                f"see `kubectl describe deployment {service}`"
            )


def pods(snapshot: Snapshot) -> Iterator[Problem]:
    """Examine pods that wait or fail, and pods that could not be created."""
    ours = [pod for pod in snapshot.all(POD) if _is_ours(pod)]
    events = [event for event in snapshot.all(EVENT) if _matters(event, snapshot)]
    for cause in causes(ours, events):
        yield failure(cause)
    total = Counter((pod.get("status") or {}).get("phase") for pod in ours)
    if total["Unknown"]:
        yield warning(f"{total['Unknown']} pods are on nodes that do not answer")


def _is_ours(pod: Object) -> bool:
    labels = labels_of(pod)
    return "ray.io/cluster" in labels or labels.get("app.kubernetes.io/name") == "llavamed"


def _matters(event: Object, snapshot: Snapshot) -> bool:
    """Return whether an event is about an object of a release or a job that still needs pods.

    A namespace may have objects of others, and keeps its events for an hour.
    """
    kind, name = (str(event["involvedObject"].get(key) or "") for key in ("kind", "name"))
    for known in (RAY_CLUSTER, RAY_JOB, RAY_SERVICE):
        if kind == known.name:
            states = {
                name_of(each): (each.get("status") or {}).get("state")
                for each in snapshot.all(known)
            }
            return name in states and states[name] != "ready"
    releases = {labels_of(each).get("app.kubernetes.io/instance") for each in snapshot.ray}
    return kind == "Pod" or any(name.startswith(f"{each}-") for each in releases if each)
