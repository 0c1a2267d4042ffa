"""What a Kubernetes API server and a restricted namespace would refuse.

Each function returns the violations it found, so that a test can compare with the empty list.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

Object = dict[str, Any]

KUBERNETES = "1.36"


class UniqueKeyLoader(yaml.CSafeLoader):
    """YAML that refuses a key given twice, as Kubernetes does and PyYAML does not."""


def _mapping(loader: UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    repeated = {key for key in keys if keys.count(key) > 1}
    if repeated:
        raise ValueError(f"repeated keys {sorted(repeated)}{node.start_mark}")
    return loader.construct_mapping(node, deep=True)


UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_objects(text: str) -> list[Object]:
    """Every object of a manifest."""
    documents = yaml.load_all(text, Loader=UniqueKeyLoader)
    return [document for document in documents if document is not None]


def is_core(manifest: Object) -> bool:
    """Whether it is of a kind that Kubernetes itself has, not of a custom resource."""
    group = manifest["apiVersion"].rpartition("/")[0]
    return "." not in group or group.endswith(".k8s.io")


def core_violations(manifest: Object) -> list[str]:
    """Against Kubernetes' own schemas, where an unknown field is an error."""
    return list(_core_violations(json.dumps(manifest)))


@functools.cache
def _core_violations(manifest: str) -> tuple[str, ...]:
    try:
        kubernetes_validate.validate(json.loads(manifest), KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return (f"{list(error.path)}: {error.message}",)
    return ()


@functools.cache
def resource_schema(folder: Path, kind: str) -> Object:
    """The schema of a KubeRay kind, version v1, from its custom resource definition."""
    text = (folder / f"ray.io_{kind.lower()}s.yaml").read_text(encoding="utf-8")
    definition = yaml.load(text, Loader=yaml.CSafeLoader)
    schemas = {v["name"]: v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"]}
    schema: Object = schemas["v1"]
    return schema


def custom_violations(manifest: Object, folder: Path) -> list[str]:
    """Against the schema of a custom resource, where an unknown field is an error too."""
    assert manifest["apiVersion"] == "ray.io/v1"
    schema = resource_schema(folder, manifest["kind"])
    errors = jsonschema.Draft7Validator(schema).iter_errors(manifest)
    unknown = unknown_fields(schema, {k: v for k, v in manifest.items() if k != "metadata"}, "")
    return [f"{error.json_path}: {error.message}" for error in errors] + list(unknown)


def unknown_fields(schema: Object, value: Any, path: str) -> Iterator[str]:
    """Fields the API server would drop: those the schema does not declare."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from unknown_fields(schema.get("items", {}), item, f"{path}[{index}]")
    elif isinstance(value, dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        for key, item in value.items():
            declared = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if declared is None:
                yield f"{path}.{key}: unknown field"
            else:
                yield from unknown_fields(declared, item, f"{path}.{key}")


def pod_specs(manifest: Object) -> list[Object]:
    """The pod specifications of an object, by their place."""
    spec = manifest.get("spec", {})
    match manifest["kind"]:
        case "Pod":
            return [spec]
        case "Deployment" | "StatefulSet" | "DaemonSet" | "Job":
            return [spec["template"]["spec"]]
        case "CronJob":
            return pod_specs({"kind": "Job", "spec": spec["jobTemplate"]["spec"]})
        case "RayJob":
            return pod_specs({"kind": "RayCluster", "spec": spec["rayClusterSpec"]})
        case "RayService":
            return pod_specs({"kind": "RayCluster", "spec": spec["rayClusterConfig"]})
        case "RayCluster":
            groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
            return [group["template"]["spec"] for group in groups]
    return []


def restriction_violations(pod: Object) -> list[str]:
    """The restricted Pod Security Standard, in the fields that our pods use, and numeric users."""
    security = pod.get("securityContext", {})
    rules = {
        "runAsNonRoot": security.get("runAsNonRoot") is True and security.get("runAsUser", 0) > 0,
        "seccompProfile": security.get("seccompProfile") == {"type": "RuntimeDefault"},
        "host namespaces": not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(),
        "host paths": not any("hostPath" in volume for volume in pod.get("volumes", [])),
    }
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        own = container.get("securityContext", {})
        name = container["name"]
        rules[f"{name}: escalation"] = own.get("allowPrivilegeEscalation") is False
        rules[f"{name}: capabilities"] = own.get("capabilities") == {"drop": ["ALL"]}
        rules[f"{name}: privileged"] = not own.get("privileged")
        rules[f"{name}: user"] = own.get("runAsUser", 1) > 0 and own.get("runAsNonRoot", True)
    return [rule for rule, kept in rules.items() if not kept]
