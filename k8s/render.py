"""Write k8s/raycluster.yaml and k8s/rayjob.yaml: the chart's RayCluster, without Helm.

They are the chart rendered with its default values and, for the job, with job.enabled, so there
is one pod specification to keep, and a test fails when they are out of date. `make k8s` (with the
`dev` extra) renews them.
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
# - submissionMode: the operator itself submits and watches the job, so a lost log stream does
#   no harm, and no submitter pod is created, which a restricted namespace would refuse.
# - backoffLimit: a lost head ends the attempt; the next one resumes from the last checkpoint, on a
#   new cluster.
# - preRunningDeadlineSeconds: an attempt whose nodes or image do not come in time has failed.
# - deletionStrategy: the cluster goes soon after success; after a failure only the workers do, and
#   the head stays for a day, for its logs.
"""


def rendered(values: dict[str, Any]) -> dict[str, Any]:
    """Return the RayCluster of the chart, or with `job.enabled` its RayJob."""
    with helm_python.Chart.load(K8S.parent / "helm") as chart:
        documents = chart.render(values, name=RELEASE, namespace=RELEASE)
    manifest: dict[str, Any] = yaml.safe_load(documents["llavamed/templates/raycluster.yaml"])
    return manifest


def labels() -> dict[str, str]:
    """Return what marks the objects that Helm did not make."""
    return {"app.kubernetes.io/name": "llavamed", "app.kubernetes.io/instance": RELEASE}


def manifests() -> dict[str, str]:
    """Return the text of each file, by its name."""
    cluster, job = rendered({}), rendered({"job": {"enabled": True}})
    cluster["metadata"] = {"name": RELEASE, "labels": labels()}
    job["metadata"] = {"name": f"{RELEASE}-train", "labels": labels()}
    return {
        "raycluster.yaml": CLUSTER_HEADER + HEADER + as_yaml(cluster),
        "rayjob.yaml": JOB_HEADER + HEADER + as_yaml(job),
    }


def as_yaml(manifest: dict[str, Any]) -> str:
    """Write YAML with the keys in their order and every repeated part written out."""
    dumper = type("Plain", (yaml.SafeDumper,), {"ignore_aliases": lambda *_: True})
    text: str = yaml.dump(manifest, Dumper=dumper, sort_keys=False, width=100)
    return text


if __name__ == "__main__":
    for name, text in manifests().items():
        (K8S / name).write_text(text, encoding="utf-8")
