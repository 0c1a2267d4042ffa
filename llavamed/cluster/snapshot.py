"""The objects that `doctor` examines, read from a namespace and its cluster, or from files."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from llavamed.cluster.kinds import (
    CLAIM,
    CONFIG_MAP,
    DEPLOYMENT,
    EVENT,
    LOCAL_QUEUE,
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
)
from llavamed.cluster.shape import ray_objects
from llavamed.errors import ClusterError, ConfigError, NotFoundError, UnreachableError

if TYPE_CHECKING:
    from llavamed.cluster.client import Cluster

OPERATOR = Kind("KubeRay operator", "apps", "v1", "deployments")
"""The Deployments of the operator, in any namespace."""
OPERATOR_LABELS = (
    "app.kubernetes.io/name in (kuberay-operator,kuberay),"
    "app.kubernetes.io/component notin (kuberay-apiserver)"
)
"""Selects it, whether KubeRay's chart or its Kustomize files installed it."""
_NAMESPACED = (
    *(RAY_CLUSTER, RAY_JOB, RAY_SERVICE, POD, EVENT, QUOTA, SECRET, CONFIG_MAP, CLAIM),
    *(SERVICE_ACCOUNT, SERVICE, DEPLOYMENT, LOCAL_QUEUE, NODE),
)


@dataclass(frozen=True)
class Snapshot:
    """Objects by kind at one moment."""

    objects: dict[Kind, list[Object]]
    unreadable: dict[Kind, str] = field(default_factory=dict)
    """Why the objects of a kind are not known. A kind in neither mapping was not requested."""
    namespace: str = ""
    options: str = ""
    """What another command needs to get to the namespace; see `Cluster.options`."""

    def all(self, kind: Kind) -> list[Object]:
        """Return the objects of a kind; none if they are not known."""
        return self.objects.get(kind, [])

    def knows(self, kind: Kind) -> bool:
        """Return whether all objects of a kind are known."""
        return kind in self.objects

    @property
    def ray(self) -> list[Object]:
        """All objects of KubeRay that need pods.

        These are not the clusters that it created for jobs and services, nor jobs that are over.
        """
        clusters = [
            each for each in self.all(RAY_CLUSTER) if not each["metadata"].get("ownerReferences")
        ]
        jobs = [
            job
            for job in self.all(RAY_JOB)
            if (job.get("status") or {}).get("jobDeploymentStatus") != "Complete"
        ]
        return [*clusters, *jobs, *self.all(RAY_SERVICE)]


def take_snapshot(cluster: "Cluster") -> Snapshot:
    """Read everything that is examined, and note what cannot be read.

    Raises:
        UnreachableError: The API server does not answer.
    """
    found = Snapshot({}, namespace=cluster.namespace, options=cluster.options)
    try:
        found.objects[NAMESPACE] = [cluster.get(NAMESPACE, cluster.namespace)]
    except UnreachableError:
        raise
    except NotFoundError:
        found.objects[NAMESPACE] = []
    except ClusterError as error:
        found.unreadable[NAMESPACE] = str(error)
    for kind in (OPERATOR, *_NAMESPACED):
        is_operator = kind is OPERATOR
        selector = OPERATOR_LABELS if is_operator else ""
        try:
            found.objects[kind] = cluster.find_all(kind, selector=selector, everywhere=is_operator)
        except UnreachableError:
            raise
        except ClusterError as error:
            found.unreadable[kind] = str(error)
    return found


def read_manifests(paths: list[Path]) -> Snapshot:
    """Return the RayClusters, RayJobs and RayServices of manifests. Raises: ConfigError."""
    objects: dict[Kind, list[Object]] = {RAY_CLUSTER: [], RAY_JOB: [], RAY_SERVICE: []}
    for path in paths:
        try:
            found = ray_objects(list(yaml.safe_load_all(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"offline={path}: cannot be read ({reason}); give YAML, as `helm template` prints"
            ) from error
        for kind in objects:
            objects[kind] += [each for each in found if each["kind"] == kind.name]
    if not any(objects.values()):
        names = ", ".join(map(str, paths))
        raise ConfigError(
            f"offline={names}: holds no RayCluster, RayJob or RayService; give what `helm "
            "template` prints"
        )
    return Snapshot(objects)


def read_template(path: Path) -> Object:
    """Return the one RayJob or RayCluster of a file.

    Raises:
        ConfigError: The file cannot be read, or holds none or several, or one of another form.
    """
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"template={path}: cannot be read ({error}); check the file") from error
    kinds = (RAY_JOB.name, RAY_CLUSTER.name)
    found = [each for each in documents if isinstance(each, dict) and each.get("kind") in kinds]
    if len(found) != 1:
        raise ConfigError(
            f"template={path}: holds {len(found)} RayJobs and RayClusters and must hold one; give "
            "k8s/rayjob.yaml, or a file with one of them"
        )
    try:
        # Its name is not used, so it may have none.
        (checked,) = ray_objects([{"metadata": {"name": "template"}} | found[0]])
    except ValueError as error:
        raise ConfigError(f"template={path}: cannot be used ({error}); correct it") from error
    return checked
