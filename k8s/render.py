"""Write k8s/raycluster.yaml and k8s/rayjob.yaml: the chart's RayCluster, without Helm.

They are the chart rendered with its default values, so there is one pod specification to keep, and
a test fails when they are out of date. `make k8s` (with the `dev` extra) renews them.
"""

from pathlib import Path
from typing import Any

import helm_python
import yaml

K8S = Path(__file__).resolve().parent
RELEASE = "llavamed"
HEADER = """\
# Made by `make k8s` from the chart's default values: change those, not this file.
# Needs the objects that k8s/README.md lists.
"""
CLUSTER_HEADER = "# A standing Ray cluster: kubectl apply -f k8s/raycluster.yaml\n"
JOB_HEADER = """\
# One training run on a cluster of its own: kubectl create -f k8s/rayjob.yaml
# - submissionMode: the operator itself submits and watches the job, so a lost log stream ends
#   nothing, and no submitter pod is made, which a restricted namespace would refuse.
# - backoffLimit: a lost head ends the attempt; the next one resumes from the last checkpoint, on a
#   new cluster.
# - preRunningDeadlineSeconds: an attempt whose nodes or image do not come in time has failed.
# - ttlSecondsAfterFinished: time to read the dashboard before the cluster is taken down.
"""


def rendered_cluster() -> dict[str, Any]:
    """The RayCluster of the chart with default values."""
    with helm_python.Chart.load(K8S.parent / "helm") as chart:
        documents = chart.render(name=RELEASE, namespace=RELEASE)
    cluster: dict[str, Any] = yaml.safe_load(documents["llavamed/templates/raycluster.yaml"])
    return cluster


def rayjob(cluster_spec: dict[str, Any]) -> dict[str, Any]:
    """A job that brings its own cluster, trains, and takes it down again."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": f"{RELEASE}-train", "labels": labels()},
        "spec": {
            "entrypoint": "python /app/ray_jobs/train.py",
            "submissionMode": "HTTPMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "backoffLimit": 3,
            "preRunningDeadlineSeconds": 3600,
            "rayClusterSpec": cluster_spec,
        },
    }


def labels() -> dict[str, str]:
    """What marks the objects that Helm did not make."""
    return {"app.kubernetes.io/name": "llavamed", "app.kubernetes.io/instance": RELEASE}


def manifests() -> dict[str, str]:
    """The text of each file, by its name."""
    cluster = rendered_cluster()
    cluster["metadata"] = {"name": RELEASE, "labels": labels()}
    return {
        "raycluster.yaml": CLUSTER_HEADER + HEADER + as_yaml(cluster),
        "rayjob.yaml": JOB_HEADER + HEADER + as_yaml(rayjob(cluster["spec"])),
    }


def as_yaml(manifest: dict[str, Any]) -> str:
    """YAML with the keys in their order and every repeated part written out."""
    dumper = type("Plain", (yaml.SafeDumper,), {"ignore_aliases": lambda *_: True})
    text: str = yaml.dump(manifest, Dumper=dumper, sort_keys=False, width=100)
    return text


if __name__ == "__main__":
    for name, text in manifests().items():
        (K8S / name).write_text(text, encoding="utf-8")
