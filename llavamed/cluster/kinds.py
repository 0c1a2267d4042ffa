"""The kinds of Kubernetes objects that are read or written here."""

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
"""An object of the Kubernetes API as JSON."""
PART_OF = "app.kubernetes.io/name=llavamed"
"""Selects the objects of the chart and of submitted jobs."""


@dataclass(frozen=True)
class Kind:
    """A kind of object and its place in the API."""

    name: str
    group: str
    """Group of its API; empty for the core."""
    version: str
    plural: str
    is_namespaced: bool = True

    @property
    def api_version(self) -> str:
        """The `apiVersion` of an object of the kind."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """Name of the resource as kubectl takes it, such as `rayjobs.ray.io`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str | None, name: str = "") -> str:
        """Return the path of an object, or of all objects in a namespace or, with None, in the
        cluster."""
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"
        inside = f"/namespaces/{namespace}" if self.is_namespaced and namespace else ""
        return f"{root}{inside}/{self.plural}{f'/{name}' if name else ''}"


RAY_JOB = Kind("RayJob", "ray.io", "v1", "rayjobs")
RAY_CLUSTER = Kind("RayCluster", "ray.io", "v1", "rayclusters")
RAY_SERVICE = Kind("RayService", "ray.io", "v1", "rayservices")
NAMESPACE = Kind("Namespace", "", "v1", "namespaces", is_namespaced=False)
NODE = Kind("Node", "", "v1", "nodes", is_namespaced=False)
POD = Kind("Pod", "", "v1", "pods")
EVENT = Kind("Event", "", "v1", "events")
QUOTA = Kind("ResourceQuota", "", "v1", "resourcequotas")
SECRET = Kind("Secret", "", "v1", "secrets")
CONFIG_MAP = Kind("ConfigMap", "", "v1", "configmaps")
CLAIM = Kind("PersistentVolumeClaim", "", "v1", "persistentvolumeclaims")
SERVICE_ACCOUNT = Kind("ServiceAccount", "", "v1", "serviceaccounts")
SERVICE = Kind("Service", "", "v1", "services")
DEPLOYMENT = Kind("Deployment", "apps", "v1", "deployments")
LOCAL_QUEUE = Kind("LocalQueue", "kueue.x-k8s.io", "v1beta2", "localqueues")
SERVICE_PROXY = Kind("Service", "", "v1", "services/proxy")


@dataclass(frozen=True, kw_only=True)
class Named:
    """An object as a command line names it."""

    name: str
    options: str = ""
    """What a command needs besides the name to get to the object; see `Cluster.options`."""

    @property
    def target(self) -> str:
        """The name and the options, as another command takes them."""
        return f"{self.name}{self.options}"


def name_of(thing: Object) -> str:
    """Return the name of an object."""
    return str(thing["metadata"]["name"])


def is_being_deleted(thing: Object) -> bool:
    """Return whether an object is being deleted, and still there until its pods have ended."""
    return "deletionTimestamp" in thing["metadata"]


def labels_of(thing: Object) -> dict[str, str]:
    """Return the labels of an object."""
    return dict(thing["metadata"].get("labels") or {})
