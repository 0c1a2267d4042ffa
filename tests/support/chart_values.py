"""Values for the chart: for each one that it has another, and the sets that tests render."""

from typing import Any

from tests.support.chart_release import BUCKET, POSTGRES, SCALED

# For every value of the chart another one; the release must then differ.
OTHER: dict[str, Any] = {
    "image.repository": "registry.example.org/team/llavamed",
    "image.tag": "1.2.3",
    "image.digest": "sha256:" + "0" * 64,
    "image.pullPolicy": "Always",
    "image.pullSecrets": ["registry"],
    "runConfig": "demo.yaml",
    "serviceAccount.annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/llavamed"},
    "storage.existingSecret": "object-storage",
    "storage.endpointUrl": "http://minio.storage:9000",
    "huggingface.offline": True,
    "ray.version": "2.60.1",
    "ray.upgradeStrategy": "Recreate",
    "ray.terminationGracePeriodSeconds": 60,
    "ray.jobStopWaitSeconds": 30,
    "ray.workerStartTimeoutSeconds": 600,
    "ray.autoscaling.enabled": True,
    "ray.autoscaling.idleTimeoutSeconds": 60,
    "ray.head.cpu": "1500m",
    "ray.head.memory": "8Gi",
    "ray.head.nodeSelector": {"pool": "system"},
    "ray.head.tolerations": [{"key": "system", "operator": "Equal", "value": "yes"}],
    "ray.cpu.replicas": 4,
    "ray.cpu.minReplicas": 1,
    "ray.cpu.maxReplicas": 4,
    "ray.cpu.cpu": 2,
    "ray.cpu.memory": "1.5Gi",
    "ray.cpu.nodeSelector": {"pool": "cpu"},
    "ray.cpu.tolerations": [{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9}],
    "ray.a100.replicas": 2,
    "ray.a100.minReplicas": 1,
    "ray.a100.maxReplicas": 1,
    "ray.a100.gpus": 4,
    "ray.a100.cpu": 32,
    "ray.a100.memory": "256Gi",
    "ray.a100.nodeLabel.key": "cloud.google.com/gke-accelerator",
    "ray.a100.nodeLabel.value": "NVIDIA-A100-SXM4-40GB",
    "ray.a100.nodeSelector": {"cloud.google.com/gke-spot": "true"},
    "ray.a100.tolerations": [],
    "mlflow.cpu": 2,
    "mlflow.memory": "4Gi",
    "mlflow.extraAllowedHosts": ["mlflow.example.org"],
    "mlflow.database.existingSecret.name": "database",
    "mlflow.database.existingSecret.key": "url",
    "mlflow.artifacts.destination": "s3://bucket/mlflow",
    "mlflow.persistence.size": "100Gi",
    "mlflow.persistence.storageClass": "fast",
    "networkPolicy.enabled": False,
    "networkPolicy.clients": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}],
    "networkPolicy.prometheus": [],
}
# Values that matter only beside these.
BESIDE: dict[str, dict[str, Any]] = {
    "ray.autoscaling.idleTimeoutSeconds": SCALED,
    "mlflow.database.existingSecret.key": POSTGRES,
}
VALUE_SETS: dict[str, dict[str, Any]] = {
    "default": {},
    "postgres": POSTGRES,
    "bucket": BUCKET,
    "stateless": POSTGRES | BUCKET,
    "all-other": OTHER,
    "all-other-fixed-size": OTHER | {"ray.autoscaling.enabled": False, "ray.a100.replicas": 1},
}
