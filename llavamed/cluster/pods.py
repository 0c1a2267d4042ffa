"""What pods request, and which nodes have it: quantities, selectors, taints."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from llavamed.cluster.kinds import RAY_JOB, RAY_SERVICE, Object, labels_of, name_of

GPU = "nvidia.com/gpu"
_PARTS = re.compile(r"nvidia\.com/(?:mig-.+|gpu\.shared)")
_SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_SUFFIXES |= {f"{unit}i": 2 ** (10 * (n + 1)) for n, unit in enumerate("KMGTPE")}
_SMALL = {"n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000)}
_QUANTITY = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([A-Za-z]*)")

Amounts = dict[str, Fraction]
"""Quantities by the name of the resource."""


@dataclass(frozen=True)
class PodGroup:
    """The pods of one group of a Ray cluster: the head, or workers."""

    name: str
    spec: Object
    """Specification of its pods."""
    replicas: int
    """Number of pods at the start."""
    max_replicas: int
    labels: dict[str, str]

    @property
    def is_head(self) -> bool:
        """Whether this is the group of the head."""
        return self.name == "head"


def quantity(text: str | int | float) -> Fraction:
    """Return a quantity of Kubernetes, such as `500m` or `64Gi`, as a number.

    Raises:
        ValueError: The text is not a quantity.
    """
    found = _QUANTITY.fullmatch(str(text).strip())
    if found is None or found[2] not in _SUFFIXES | _SMALL:
        raise ValueError(f"{text!r} is not a quantity")
    return Fraction(found[1]) * Fraction(_SMALL.get(found[2]) or _SUFFIXES[found[2]])


def show(name: str, amount: Fraction) -> str:
    """Return an amount of a resource in readable form."""
    if name.endswith(("memory", "ephemeral-storage")):
        unit, size = ("Gi", 2**30) if abs(amount) >= 2**30 else ("Mi", 2**20)
        return f"{name} {float(amount / size):.4g}{unit}"
    return f"{name} {float(amount):.4g}"


def request_of(spec: Object) -> Amounts:
    """Return what a pod reserves: the sum over its containers, or the largest init container."""
    total: Amounts = {}
    for container in spec.get("containers", []):
        for name, amount in _requests(container).items():
            total[name] = total.get(name, Fraction(0)) + amount
    for container in spec.get("initContainers", []):
        for name, amount in _requests(container).items():
            total[name] = max(total.get(name, Fraction(0)), amount)
    return total


def gpus_of(spec: Object) -> tuple[Fraction, Fraction]:
    """Return the whole GPUs that a pod reserves, and the slices or shares of GPUs."""
    amounts = request_of(spec)
    parts = [amount for name, amount in amounts.items() if _PARTS.fullmatch(name)]
    return amounts.get(GPU, Fraction(0)), sum(parts, Fraction(0))


def _requests(container: Object) -> Amounts:
    resources = container.get("resources") or {}
    amounts = (resources.get("limits") or {}) | (resources.get("requests") or {})
    return {name: quantity(text) for name, text in amounts.items()}


def cluster_spec(thing: Object) -> Object | None:
    """Return the specification of the Ray cluster in an object of KubeRay, if it has one."""
    spec: Object = thing.get("spec", {})
    if thing.get("kind") == RAY_JOB.name:
        return spec.get("rayClusterSpec")
    if thing.get("kind") == RAY_SERVICE.name:
        return spec.get("rayClusterConfig")
    return spec


def token_secret(cluster: Object) -> str | None:
    """Return the name of the Secret with the token of a RayCluster, or None if it needs none.

    KubeRay creates one with the name of the cluster, unless `authOptions` names another.
    """
    auth = cluster["spec"].get("authOptions") or {}
    if auth.get("mode") != "token":
        return None
    return str(auth.get("secretName") or name_of(cluster))


def groups_of(thing: Object) -> list[PodGroup]:
    """Return the groups of the Ray cluster in an object of KubeRay, the head first."""
    spec = cluster_spec(thing)
    return [] if spec is None else list(_groups(spec))


def _groups(spec: Object) -> Iterator[PodGroup]:
    for group in [spec.get("headGroupSpec", {}), *spec.get("workerGroupSpecs", [])]:
        template = group.get("template", {})
        is_head = "groupName" not in group
        least = group.get("minReplicas", 0)
        yield PodGroup(
            name=group.get("groupName", "head"),
            spec=template.get("spec", {}),
            replicas=1 if is_head else group.get("replicas", least) or 0,
            max_replicas=1 if is_head else group.get("maxReplicas", 0) or 0,
            labels=(template.get("metadata") or {}).get("labels") or {},
        )


def obstacles(spec: Object, node: Object) -> list[str]:
    """Return what keeps a pod off an otherwise empty node; empty if it fits."""
    found = []
    labels = labels_of(node)
    for key, value in (spec.get("nodeSelector") or {}).items():
        if labels.get(key) != value:
            has = f"has {labels[key]}" if key in labels else "has no such label"
            found.append(f"label {key}={value} ({has})")
    if (node.get("spec") or {}).get("unschedulable"):
        found.append("it is cordoned")
    for taint in (node.get("spec") or {}).get("taints") or []:
        if taint.get("effect") == "PreferNoSchedule":
            continue
        if not any(_tolerates(each, taint) for each in spec.get("tolerations") or []):
            found.append(f"a toleration of taint {taint['key']}={taint.get('value', '')}")
    there = (node.get("status") or {}).get("allocatable") or {}
    for name, amount in request_of(spec).items():
        room = quantity(there.get(name, 0))
        if room < amount:
            found.append(
                f"{show(name, amount)} (has {show(name, room).removeprefix(name).strip()})"
            )
    return found


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("key") in (None, ""):
        return toleration.get("operator") == "Exists"
    if toleration["key"] != taint["key"]:
        return False
    exists = toleration.get("operator") == "Exists"
    return exists or toleration.get("value", "") == taint.get("value", "")


def pods_that_fit(spec: Object, nodes: list[Object]) -> int:
    """Return how many pods of a specification all nodes can hold when they are empty."""
    request = {name: amount for name, amount in request_of(spec).items() if amount}
    total = 0
    for node in nodes:
        if obstacles(spec, node):
            continue
        there = (node.get("status") or {}).get("allocatable") or {}
        rooms = [int(quantity(there.get(name, 0)) / amount) for name, amount in request.items()]
        total += min(rooms, default=10**6)
    return total


def nearest_node(spec: Object, nodes: list[Object]) -> tuple[str, list[str]] | None:
    """Return the node that lacks the least of what a pod needs, and what it lacks."""
    lacking = [(name_of(node), obstacles(spec, node)) for node in nodes]
    return min(lacking, key=lambda each: len(each[1]), default=None)
