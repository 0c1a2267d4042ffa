"""What users add to the pods of the chart reaches each pod that needs it."""

from typing import Any

import pytest

from llavamed.cluster.pods import quantity
from llavamed.cluster.rayjob import gpus_of
from tests.support.chart_release import (
    BUCKET,
    BUNDLED,
    POSTGRES,
    SERVED,
    environment,
    hook_pods,
    objects,
    ray_pods,
    release,
)
from tests.support.kubernetes_rules import Object, pod_specs

PROXY = {"name": "HTTPS_PROXY", "value": "http://proxy.example.org:3128"}
AUTHORITY = {"name": "authority", "configMap": {"name": "authority"}}
MOUNT = {"name": "authority", "mountPath": "/etc/authority", "readOnly": True}


def templates(thing: Any) -> list[Object]:
    """Every pod in an object: what has a specification of containers."""
    if isinstance(thing, list):
        return [each for item in thing for each in templates(item)]
    if not isinstance(thing, dict):
        return []
    own = [thing] if "containers" in (thing.get("spec") or {}) else []
    return own + [each for item in thing.values() for each in templates(item)]


def test_labels_and_annotations_reach_every_pod() -> None:
    labels = {"azure.workload.identity/use": "true", "team": "0123"}
    annotations = {"karpenter.sh/do-not-disrupt": "false", "sidecar.istio.io/inject": "false"}
    values = BUNDLED | BUCKET | SERVED | {"image.prePull": True, "mlflow.gc.enabled": True}
    values |= {"podLabels": labels, "podAnnotations": annotations}
    found = objects(values).values()
    pods = [pod["metadata"] for item in found for pod in templates(item)]
    assert len(pods) == 9, "3 of the cluster, 2 of the service, 3 of MLflow, 1 that pulls the image"
    for pod in pods:
        assert labels.items() <= pod["labels"].items()
        assert annotations.items() <= pod["annotations"].items()
        assert pod["labels"]["app.kubernetes.io/instance"] == "llavamed"


def test_weights_are_fetched_by_the_way_of_the_containers() -> None:
    found = objects(
        {
            "ray.weights.uri": "s3://bucket/weights",
            "ray.extraEnv": [PROXY, {"name": "AWS_CA_BUNDLE", "value": "/other"}],
            "ray.a100.extraEnv": [{"name": "AWS_CA_BUNDLE", "value": "/etc/authority/ca.crt"}],
            "ray.extraVolumes": [AUTHORITY],
            "ray.extraVolumeMounts": [MOUNT],
        }
    )
    _, cpu, pod = ray_pods(found)
    # Kubernetes evicts a pod whose volumes hold more than its containers may.
    disks = [
        each["containers"][0]["resources"]["limits"]["ephemeral-storage"] for each in (cpu, pod)
    ]
    assert [quantity(disk) for disk in disks] == [quantity("100Gi"), quantity("250Gi")]
    fetch = {"containers": pod["initContainers"]}
    for each in (pod, fetch):
        told = environment(each)
        assert told["HTTPS_PROXY"] == PROXY["value"]
        assert told["AWS_CA_BUNDLE"] == "/etc/authority/ca.crt"
        assert MOUNT in each["containers"][0]["volumeMounts"]


def test_mlflow_and_its_own_have_nodes_and_certificates() -> None:
    tolerations = [{"key": "services", "operator": "Exists"}]
    given = {
        "mlflow.nodeSelector": {"kubernetes.io/arch": "amd64"},
        "mlflow.tolerations": tolerations,
        "mlflow.extraEnv": [PROXY],
        "mlflow.extraVolumes": [AUTHORITY],
        "mlflow.extraVolumeMounts": [MOUNT],
    }
    found = objects(given | POSTGRES | BUCKET | {"mlflow.gc.enabled": True})
    bundled = objects(given | BUNDLED)["StatefulSet/llavamed-postgres"]
    kinds = ("Deployment/llavamed-mlflow", "CronJob/llavamed-mlflow-gc")
    (server,), (collector,) = (pod_specs(found[kind]) for kind in kinds)
    for pod in (server, collector, *pod_specs(bundled)):
        assert pod["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
        assert pod["tolerations"] == tolerations
    for pod in (server, collector):
        assert AUTHORITY in pod["volumes"]
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert MOUNT in container["volumeMounts"]
            assert PROXY in container["env"]


def test_your_own_mlflow_takes_the_place_of_the_charts() -> None:
    address = "https://mlflow.example.org/team"
    values = {"mlflow.trackingUri": address, "mlflow.auth.existingSecret": "mlflow-users"}
    found = objects(values | {"monitoring.podMonitors": True, "mlflow.metrics": True})
    assert [name for name in found if "mlflow" in name] == []
    assert not any(name.startswith("PersistentVolumeClaim/") for name in found)
    for pod in ray_pods(found):
        told = {each["name"]: each for each in pod["containers"][0]["env"]}
        assert told["MLFLOW_TRACKING_URI"]["value"] == address
        assert told["MLFLOW_TRACKING_USERNAME"]["valueFrom"]["secretKeyRef"]["key"] == "username"
    notes = release(values)["notes"]
    assert f"Watch the runs in MLflow on {address}" in notes
    assert "WARNING: MLflow" not in notes


def test_notes_warn_where_mlflow_asks_for_no_password() -> None:
    said = "WARNING: nobody needs a password for MLflow"
    assert said in release()["notes"]
    assert said not in release({"mlflow.auth.existingSecret": "users"})["notes"]
    assert said not in release({"mlflow.trackingUri": "https://mlflow.example.org"})["notes"]


@pytest.mark.parametrize("resource", ["nvidia.com/mig-3g.40gb", "nvidia.com/gpu.shared"])
def test_a_gpu_may_be_a_slice_or_a_share(resource: str) -> None:
    values = {"ray.a100.gpuResource": resource, "ray.a100.gpus": 2}
    found = objects(values | {"ray.a100.runtimeClass": "nvidia", "image.prePull": True})
    group = found["RayCluster/llavamed"]["spec"]["workerGroupSpecs"][1]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits[resource] == "2"
    assert "nvidia.com/gpu" not in limits
    assert group["rayStartParams"]["num-gpus"] == "2", "KubeRay itself counts whole GPUs"
    assert gpus_of(group) == 2
    (pull,) = pod_specs(found["DaemonSet/llavamed-pull-a100"])
    for pod in (group["template"]["spec"], pull):
        assert pod["runtimeClassName"] == "nvidia"
    plain = objects()["RayCluster/llavamed"]["spec"]["workerGroupSpecs"][1]
    assert "num-gpus" not in plain["rayStartParams"]


def test_tests_run_on_nodes_of_the_head() -> None:
    values = {"ray.head.nodeSelector": {"kubernetes.io/arch": "amd64"}}
    pods = hook_pods(values).values()
    assert [pod["nodeSelector"] for pod in pods] == [values["ray.head.nodeSelector"]] * 2
