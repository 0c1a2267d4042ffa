"""Examine a cluster before GPUs wait for it: a list of checks, each with one line of advice."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from llavamed.cluster.checks import environment, manifests, services
from llavamed.cluster.checks.problem import Problem
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
)
from llavamed.cluster.snapshot import OPERATOR, Snapshot

Level = Literal["ok", "warning", "failure"]
EXIT_CODES: dict[Level, int] = {"ok": 0, "warning": 0, "failure": 1}


@dataclass(frozen=True)
class Finding:
    """A line of the report."""

    check: str
    level: Level
    text: str


@dataclass(frozen=True)
class Check:
    """One thing that is examined."""

    name: str
    examine: Callable[[Snapshot], Iterable[Problem]]
    needs: tuple[Kind, ...]
    """Kinds whose objects must be known. The check is skipped if a kind was not requested."""
    ok: str
    """Text that is shown if no problem is found."""


_RAY = (RAY_CLUSTER, RAY_JOB, RAY_SERVICE)
CHECKS = (
    Check("namespace", environment.namespace, (NAMESPACE,), "exists, and has objects of KubeRay"),
    Check("kuberay", environment.operator, (OPERATOR,), "the operator runs, and is new enough"),
    Check("rules", manifests.rules, _RAY, "KubeRay accepts all of its objects"),
    Check(
        "versions", manifests.versions, _RAY, "Ray and llavamed have the versions of this program"
    ),
    Check(
        "references",
        environment.references,
        (*_RAY, SECRET, CONFIG_MAP, CLAIM, SERVICE_ACCOUNT),
        "all Secrets, ConfigMaps, claims and service accounts that pods name exist",
    ),
    Check("nodes", environment.nodes, (*_RAY, NODE), "nodes have what every group asks for"),
    Check("quota", environment.quota, (*_RAY, QUOTA, POD), "no quota is in the way"),
    Check("queue", manifests.queue, _RAY, "no RayJob can hold a part of its workers and wait"),
    Check("shared memory", manifests.shared_memory, _RAY, "/dev/shm is sized in every group"),
    Check("network", manifests.network, _RAY, "machines of a group talk by RDMA, or there is one"),
    Check(
        "storage",
        environment.storage,
        (*_RAY, SERVICE_ACCOUNT),
        "pods have credentials for storage",
    ),
    Check(
        "mlflow",
        environment.mlflow,
        (*_RAY, DEPLOYMENT, SERVICE),
        "MLflow servers of this namespace are available; --probe asks others",
    ),
    # With pods: manifests alone do not say whether a service answers.
    Check("services", services.services, (RAY_SERVICE, POD), "every RayService accepts requests"),
    Check("pods", environment.pods, (POD, EVENT), "no pod waits or fails"),
)


def examine(snapshot: Snapshot) -> list[Finding]:
    """Return the findings of all checks in order: the problems of each, or that there are none."""
    told: dict[Kind, str] = {}
    return [finding for check in CHECKS for finding in _findings(check, snapshot, told)]


def _findings(check: Check, snapshot: Snapshot, told: dict[Kind, str]) -> list[Finding]:
    """Return the findings of one check.

    Args:
        told: The check that says why the objects of a kind are not known; one is added.
    """
    for kind in check.needs:
        if kind in snapshot.unreadable:
            level: Level = "failure" if kind in _RAY else "warning"
            first = told.setdefault(kind, check.name)
            why = f": {snapshot.unreadable[kind]}"
            text = f"is not examined{why if first == check.name else f', as {first} is not'}"
            return [Finding(check.name, level, text)]
    if not all(snapshot.knows(kind) for kind in check.needs):
        return []
    found = [Finding(check.name, each.level, each.text) for each in check.examine(snapshot)]
    return found or [Finding(check.name, "ok", check.ok)]


def exit_code(findings: list[Finding]) -> int:
    """Return 1 where a finding is a failure, else 0."""
    return max((EXIT_CODES[finding.level] for finding in findings), default=0)
