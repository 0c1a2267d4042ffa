"""Values for the chart: for each one that it has another, and how they are given to helm."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from tests.support.chart_release import BUCKET, BUNDLED, POSTGRES, SCALED, SERVED, nested

# For every value of the chart another one; the release must then differ.
OTHER: dict[str, Any] = {
    "image.repository": "registry.example.org/team/llavamed",
    "image.tag": "1.2.3",
    "image.digest": "sha256:" + "0" * 64,
    "image.pullPolicy": "Always",
    "image.pullSecrets": ["registry"],
    "image.prePull": True,
    "runConfig": "demo.yaml",
    "runAsUser": 1234,
    "podLabels": {"azure.workload.identity/use": "true"},
    "podAnnotations": {"sidecar.istio.io/inject": "false"},
    "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "extra"}}],
    "serviceAccount.name": "training",
    "serviceAccount.annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/llavamed"},
    "storage.existingSecret": "object-storage",
    "storage.endpointUrl": "http://minio.storage:9000",
    "externalSecrets.storeKind": "SecretStore",
    "externalSecrets.storeName": "vault",
    "externalSecrets.storageKey": "team/object-storage",
    "externalSecrets.databaseKey": "team/database",
    "huggingface.offline": True,
    "ray.version": "2.60.1",
    "ray.upgradeStrategy": "Recreate",
    "ray.terminationGracePeriodSeconds": 60,
    "ray.jobStopWaitSeconds": 30,
    "ray.workerStartTimeoutSeconds": 600,
    "ray.disruptionBudget": False,
    "ray.priorityClass": "training",
    "ray.extraEnv": [{"name": "NCCL_DEBUG", "value": "INFO"}],
    "ray.claims": [{"claim": "datasets", "mountPath": "/data", "readOnly": True}],
    "ray.extraVolumes": [{"name": "scratch", "emptyDir": {}}],
    "ray.extraVolumeMounts": [{"name": "configs", "mountPath": "/configs"}],
    "ray.weights.uri": "s3://bucket/weights",
    "ray.weights.mountPath": "/models",
    "ray.weights.size": "90Gi",
    "ray.autoscaling.enabled": True,
    "ray.autoscaling.idleTimeoutSeconds": 60,
    "ray.head.cpu": "1500m",
    "ray.head.memory": "8Gi",
    "ray.head.sharedMemory": "1Gi",
    "ray.head.disk": "30Gi",
    "ray.head.nodeSelector": {"pool": "system"},
    "ray.head.tolerations": [{"key": "system", "operator": "Equal", "value": "yes"}],
    "ray.cpu.replicas": 4,
    "ray.cpu.minReplicas": 1,
    "ray.cpu.maxReplicas": 4,
    "ray.cpu.cpu": 2,
    "ray.cpu.memory": "40.5Gi",
    "ray.cpu.sharedMemory": "1Gi",
    "ray.cpu.disk": "30Gi",
    "ray.cpu.nodeSelector": {"pool": "cpu"},
    "ray.cpu.tolerations": [{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9}],
    "ray.a100.replicas": 2,
    "ray.a100.minReplicas": 1,
    "ray.a100.maxReplicas": 1,
    "ray.a100.gpus": 4,
    "ray.a100.gpuResource": "nvidia.com/mig-3g.40gb",
    "ray.a100.runtimeClass": "nvidia",
    "ray.a100.cpu": 32,
    "ray.a100.memory": "256Gi",
    "ray.a100.sharedMemory": "1Gi",
    "ray.a100.disk": "30Gi",
    "ray.a100.nodeLabel.key": "cloud.google.com/gke-accelerator",
    "ray.a100.nodeLabel.value": "NVIDIA-A100-SXM4-40GB",
    "ray.a100.nodeSelector": {"cloud.google.com/gke-spot": "true"},
    "ray.a100.tolerations": [],
    "ray.a100.extraResources": {"vpc.amazonaws.com/efa": 4, "hugepages-2Mi": "5120Mi"},
    "ray.a100.extraEnv": [{"name": "FI_PROVIDER", "value": "efa"}],
    "ray.a100.capabilities": ["IPC_LOCK"],
    "ray.gpuGroups": [{"name": "h100", "replicas": 1, "gpus": 4}],
    "job.enabled": True,
    "job.entrypoint": "python /app/ray_jobs/prepare.py",
    "job.backoffLimit": 1,
    "job.preRunningDeadlineSeconds": 600,
    "job.activeDeadlineSeconds": 86400,
    "job.keepSeconds": 60,
    "job.keepFailedSeconds": 60,
    "job.queue": "team",
    "job.labels": {"volcano.sh/queue-name": "team"},
    "serve.enabled": True,
    "serve.export": "s3://bucket/runs/demo/exports/vqa",
    "serve.revision": "2",
    "serve.existingSecret": "service-token",
    "serve.replicas": 2,
    "serve.gpus": 0,
    "serve.cpu": 8,
    "serve.memory": "64Gi",
    "serve.disk": "90Gi",
    "mlflow.trackingUri": "https://mlflow.example.org/team",
    "mlflow.nodeSelector": {"pool": "services"},
    "mlflow.tolerations": [{"key": "services", "operator": "Exists"}],
    "mlflow.extraVolumes": [{"name": "authority", "configMap": {"name": "authority"}}],
    "mlflow.extraVolumeMounts": [{"name": "tmp", "mountPath": "/scratch"}],
    "mlflow.image": "registry.example.org/mlflow:3.17.2",
    "mlflow.priorityClass": "services",
    "mlflow.extraEnv": [{"name": "MLFLOW_LOGGING_LEVEL", "value": "DEBUG"}],
    "mlflow.host": "::",
    "mlflow.metrics": True,
    "mlflow.auth.existingSecret": "mlflow-users",
    "mlflow.gc.enabled": True,
    "mlflow.gc.schedule": "30 4 * * *",
    "mlflow.gc.olderThan": "7d",
    "monitoring.labels": {"release": "prometheus"},
    "monitoring.podMonitors": True,
    "monitoring.dashboards": True,
    "monitoring.alerts.enabled": True,
    "monitoring.alerts.noProgressMinutes": 60,
    "monitoring.alerts.checkpointAgeMinutes": 30,
    "monitoring.alerts.headMemoryPercent": 80,
    "monitoring.alerts.spilledGigabytes": 500,
    "mlflow.cpu": 2,
    "mlflow.memory": "4Gi",
    "mlflow.extraAllowedHosts": ["mlflow.example.org"],
    "mlflow.database.existingSecret.name": "database",
    "mlflow.database.existingSecret.key": "url",
    "mlflow.database.bundled.enabled": True,
    "mlflow.database.bundled.image": "registry.example.org/postgres:17.6",
    "mlflow.database.bundled.size": "20Gi",
    "mlflow.artifacts.destination": "s3://bucket/mlflow",
    "mlflow.persistence.size": "100Gi",
    "mlflow.persistence.storageClass": "fast",
    "networkPolicy.enabled": False,
    "networkPolicy.clients": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}],
    "networkPolicy.prometheus": [],
}
STORED = {"externalSecrets.storeName": "store", "storage.existingSecret": "object-storage"}
ENTRY = STORED | {"externalSecrets.storageKey": "team"}
COLLECTED = POSTGRES | BUCKET | {"mlflow.gc.enabled": True}
# Sections and values that matter only beside these.
BESIDE_SECTION: dict[str, dict[str, Any]] = {
    "serve": SERVED,
    "job": {"job.enabled": True},
    "monitoring.alerts": {"monitoring.alerts.enabled": True},
    "monitoring.labels": {"monitoring.dashboards": True},
    "mlflow.gc": COLLECTED,
    "mlflow.database.existingSecret.key": POSTGRES,
    "mlflow.database.bundled": BUNDLED,
    "ray.autoscaling.idleTimeoutSeconds": SCALED,
    "ray.weights": {"ray.weights.uri": "s3://bucket/other"},
    "externalSecrets.store": ENTRY,
    "externalSecrets.storageKey": STORED,
    "externalSecrets.databaseKey": STORED | POSTGRES,
}
BESIDE: dict[str, dict[str, Any]] = {
    name: {key: given for key, given in beside.items() if (key, given) != (name, OTHER[name])}
    for name in OTHER
    for section, beside in BESIDE_SECTION.items()
    if name.startswith(section)
}
# Values that exclude others, or the restricted standard.
ALL = {
    name: value
    for name, value in OTHER.items()
    if name
    not in (
        *("job.enabled", "job.queue", "ray.a100.capabilities", "mlflow.database.bundled.enabled"),
        *("mlflow.trackingUri", "serviceAccount.name"),
    )
}
VALUE_SETS: dict[str, dict[str, Any]] = {
    "default": {},
    "postgres": POSTGRES,
    "bundled": BUNDLED,
    "served": SERVED,
    "bucket": BUCKET,
    "stateless": POSTGRES | BUCKET,
    "all-other": ALL,
    "all-other-fixed-size": ALL
    | {"ray.autoscaling.enabled": False, "ray.a100.replicas": 1, "job.queue": "team"},
}


def escaped(text: str) -> str:
    """A value as `--set` takes it."""
    return re.sub(r"([,{}])", r"\\\1", text)


def given(way: str, name: str, folder: Path, value: Any) -> list[str]:
    """The options of helm that give a value: `set`, `set-string` or `file`."""
    if way == "file":
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(nested({name: value})), encoding="utf-8")
        return ["--values", str(file)]
    if isinstance(value, dict | list):
        return ["--set-json", f"{name}={json.dumps(value)}"]
    text = json.dumps(value) if isinstance(value, bool) else str(value)
    return [f"--{way}", f"{name}={escaped(text)}"]


def check_refusal(said: str, name: str) -> None:
    """The schema refuses, and names the key: as missing, or as of another type."""
    assert "values don't meet the specifications of the schema" in said
    *parents, leaf = name.split(".")
    place = re.escape("/" + "/".join(parents) if parents else "")
    missing = rf"at '{place}': missing propert(y|ies) .*'{leaf}'"
    assert f"at '/{name.replace('.', '/')}'" in said or re.search(missing, said), (name, said)
