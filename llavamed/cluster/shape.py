"""The form of KubeRay's objects, as far as it is read here: files may hold anything.

An API server has checked what it gives, so its objects need no check.
"""

from typing import Annotated, Any, Required

from pydantic import AfterValidator, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 only

from llavamed.cluster.kinds import RAY_CLUSTER, RAY_JOB, RAY_SERVICE, Object
from llavamed.cluster.pods import quantity


def _check_quantity(value: str | int | float) -> str | int | float:
    quantity(value)
    return value


_Quantity = Annotated[str | int | float, AfterValidator(_check_quantity)]
_Amounts = dict[str, _Quantity]
_Texts = dict[str, str]


class _Named(TypedDict):
    name: str


class _Metadata(TypedDict, total=False):
    labels: _Texts
    annotations: _Texts


class _NamedMetadata(_Metadata, total=False):
    name: Required[str]
    ownerReferences: list[dict[str, Any]]


class _Variable(_Named, total=False):
    value: str
    valueFrom: dict[str, dict[str, Any]]


class _Mount(_Named, total=False):
    mountPath: str


class _Resources(TypedDict, total=False):
    requests: _Amounts
    limits: _Amounts


class _Container(_Named, total=False):
    image: str
    resources: _Resources
    env: list[_Variable]
    envFrom: list[dict[str, Any]]
    volumeMounts: list[_Mount]


class _EmptyDir(TypedDict, total=False):
    medium: str
    sizeLimit: _Quantity


class _Volume(_Named, total=False):
    emptyDir: _EmptyDir
    persistentVolumeClaim: dict[str, Any]
    secret: dict[str, Any]
    configMap: dict[str, Any]


class _Pod(TypedDict, total=False):
    containers: Required[list[_Container]]
    initContainers: list[_Container]
    volumes: list[_Volume]
    nodeSelector: _Texts
    tolerations: list[_Texts | dict[str, Any]]
    imagePullSecrets: list[_Named]
    serviceAccountName: str
    restartPolicy: str


class _Template(TypedDict, total=False):
    metadata: _Metadata
    spec: Required[_Pod]


class _Head(TypedDict, total=False):
    rayStartParams: _Texts
    template: Required[_Template]
    headService: dict[str, Any]


class _Workers(TypedDict, total=False):
    groupName: Required[str]
    replicas: int
    minReplicas: int
    maxReplicas: int
    rayStartParams: _Texts
    template: Required[_Template]


class _Cluster(TypedDict, total=False):
    rayVersion: str
    enableInTreeAutoscaling: bool
    autoscalerOptions: dict[str, Any]
    authOptions: dict[str, Any]
    headGroupSpec: _Head
    workerGroupSpecs: list[_Workers]


class _Condition(TypedDict, total=False):
    jobStatus: str
    jobDeploymentStatus: str
    ttlSeconds: int


class _Rule(TypedDict, total=False):
    policy: str
    condition: _Condition


class _Deletion(TypedDict, total=False):
    deletionRules: list[_Rule]


class _Job(TypedDict, total=False):
    rayClusterSpec: _Cluster
    clusterSelector: _Texts
    deletionStrategy: _Deletion
    submissionMode: str


class _Service(TypedDict, total=False):
    rayClusterConfig: _Cluster
    serveConfigV2: str
    upgradeStrategy: dict[str, Any]
    rayClusterDeletionDelaySeconds: int


class _RayCluster(TypedDict, total=False):
    metadata: Required[_NamedMetadata]
    spec: _Cluster


class _RayJob(TypedDict, total=False):
    metadata: Required[_NamedMetadata]
    spec: _Job


class _RayService(TypedDict, total=False):
    metadata: Required[_NamedMetadata]
    spec: _Service


_FORMS: dict[str, TypeAdapter[Any]] = {
    RAY_CLUSTER.name: TypeAdapter(_RayCluster),
    RAY_JOB.name: TypeAdapter(_RayJob),
    RAY_SERVICE.name: TypeAdapter(_RayService),
}


def ray_objects(documents: list[Any]) -> list[Object]:
    """Return KubeRay's objects of YAML documents and of the lists in them, without nulls.

    Raises:
        ValueError: One has another form; the message names the field.
    """
    found = []
    for document in documents:
        if not isinstance(document, dict):
            continue
        if document.get("kind") == "List":
            items = document.get("items")
            found += ray_objects(items if isinstance(items, list) else [])
        elif document.get("kind") in (RAY_CLUSTER.name, RAY_JOB.name, RAY_SERVICE.name):
            found.append(_checked(_without_nulls(document)))
    return found


def _without_nulls(value: Any) -> Any:
    """Return a value as Kubernetes reads it: a field that is null is absent."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value


def _checked(document: Object) -> Object:
    try:
        _FORMS[document["kind"]].validate_python(document, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # Between the keys stand the names of pydantic's own steps, such as `function-after[...]`.
        keys = [str(part) for part in first["loc"] if not str(part).endswith("]")]
        said = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{document['kind']}: {'.'.join(keys)}: {said}") from error
    return document
