"""Start a probe in a pod of each group, wait for its report, and judge it."""

import json
import platform
import re
import time
from collections.abc import Iterator
from copy import deepcopy
from typing import TYPE_CHECKING

from llavamed import __version__
from llavamed.cluster.checks.problem import Problem, failure, warning
from llavamed.cluster.doctor import Finding
from llavamed.cluster.kinds import EVENT, POD, Object, name_of
from llavamed.cluster.pending import causes
from llavamed.cluster.pods import PodGroup, groups_of
from llavamed.cluster.probe import ProbeReport
from llavamed.cluster.snapshot import Snapshot

if TYPE_CHECKING:
    from llavamed.cluster.client import Cluster

LEAST_SHARED_MEMORY = 2**30
"""Minimum number of bytes of /dev/shm for NCCL and Ray's object store."""
_ENDED = ("Succeeded", "Failed")
_UNNEEDED = ("initContainers", "restartPolicy")


def make_probe(cluster: Object, group: PodGroup, uri: str | None) -> Object:
    """Return a pod that probes a group, with the group's image, account, environment and volumes.

    It requests no GPU and few other resources, so that it starts even if all GPUs are in use. It
    has the node selector and tolerations of the group.
    """
    spec = {key: value for key, value in deepcopy(group.spec).items() if key not in _UNNEEDED}
    container = spec["containers"][0]
    container |= {
        "name": "probe",
        "command": ["python", "-m", "llavamed.cluster.probe"],
        "args": [] if uri is None else [uri],
        # Limits as the group has them: Kubernetes sizes /dev/shm by that of memory, and a quota may
        # demand both.
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": _limits(container)},
    }
    for key in ("ports", "livenessProbe", "readinessProbe", "lifecycle"):
        container.pop(key, None)
    name = f"{name_of(cluster)}-probe-{re.sub('[^a-z0-9-]', '-', group.name)}"[:63].rstrip("-")
    labels = {key: value for key, value in group.labels.items() if not key.startswith("ray.io/")}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": spec | {"containers": [container], "restartPolicy": "Never"},
    }


def _limits(container: Object) -> dict[str, str]:
    given = (container.get("resources") or {}).get("limits") or {}
    return {name: given[name] for name in ("cpu", "memory") if name in given}


def probe_groups(
    cluster: "Cluster", snapshot: Snapshot, uri: str | None, *, seconds: float
) -> Iterator[Finding]:
    """Yield the findings of a probe in each group of each running cluster; its pod is deleted.

    Args:
        uri: Folder in storage to write to.
        seconds: Seconds that a probe may take, including the start of its pod.

    Raises:
        ClusterError: A pod cannot be created or read.
    """
    for ray in snapshot.ray:
        for group in groups_of(ray):
            made = name_of(cluster.create(POD, make_probe(ray, group, uri)))
            try:
                pod = _wait(cluster, made, seconds)
                events = [] if _has_ended(pod) else cluster.find_all(EVENT)
                found = list(_judge_pod(pod, events, seconds))
            finally:
                cluster.delete(POD, made)
            name = f"probe {group.name}"
            yield from (Finding(name, each.level, f"{name_of(ray)}: {each.text}") for each in found)
            if not found:
                tried = "storage, MLflow" if uri else "MLflow"
                yield Finding(name, "ok", f"{name_of(ray)}: {tried}, /dev/shm and versions")


def _wait(cluster: "Cluster", name: str, seconds: float) -> Object:
    deadline = time.monotonic() + seconds
    while True:
        found = cluster.get(POD, name)
        if _has_ended(found) or time.monotonic() > deadline:
            return found
        time.sleep(min(1.0, seconds / 10))


def _has_ended(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in _ENDED


def _judge_pod(pod: Object, events: list[Object], seconds: float) -> Iterator[Problem]:
    status = pod.get("status") or {}
    if not _has_ended(pod):
        why = "; ".join(causes([pod], events)) or f"it is {status.get('phase')}"
        yield failure(
            f"pod {name_of(pod)} did not end within {seconds:.0f} s: {why}; mend that, or wait "
            "longer with --probe-seconds"
        )
        return
    states = [each.get("state") or {} for each in status.get("containerStatuses") or []]
    ended = (states[0] if states else {}).get("terminated") or {}
    text = str(ended.get("message") or "")
    try:
        facts = json.loads(text)
    except ValueError:
        reasons = (text, status.get("reason"), status.get("message"))
        why = ": ".join(filter(None, reasons)) or "no reason given"
        code = ended.get("exitCode", "unknown")
        yield failure(
            f"the probe ended with code {code} and no report ({why}); the image may lack llavamed, "
            "or the node could not start it"
        )
        return
    yield from judge(facts)


def judge(facts: ProbeReport) -> Iterator[Problem]:
    """Yield what is wrong in the report of a probe."""
    if facts.get("storage"):
        yield failure(f"storage: {facts['storage']}")
    if facts.get("mlflow"):
        yield failure(f"MLflow: {facts['mlflow']}; check its Deployment and the NetworkPolicies")
    size = facts.get("shared_memory", 0)
    if size < LEAST_SHARED_MEMORY:
        yield failure(
            f"/dev/shm has {size / 2**20:.0f} MiB, too little for Ray and NCCL; set sharedMemory"
        )
    if facts.get("llavamed") != __version__:
        yield warning(
            f"the image has llavamed {facts.get('llavamed')} and this program is {__version__}; a "
            "config of one may be refused by the other"
        )
    if facts.get("ray") is None:
        yield failure("the image has no Ray; build it from our Dockerfile")
    ours = platform.python_version().rpartition(".")[0]
    theirs = str(facts.get("python", "")).rpartition(".")[0]
    if theirs != ours:
        yield warning(
            f"the image has Python {theirs} and this machine {ours}; this matters only "
            "to a Ray Client connection from here"
        )
