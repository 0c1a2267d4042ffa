"""Make the RayJob that runs a config: on a cluster of its own, or on that of a release."""

import math
import re
import shlex
from copy import deepcopy
from dataclasses import dataclass

import yaml

from llavamed.cluster.explain import install_chart
from llavamed.cluster.kinds import RAY_CLUSTER, RAY_JOB, Object, labels_of, name_of
from llavamed.cluster.pods import GPU, request_of
from llavamed.config.run import RunConfig
from llavamed.errors import ClusterError, ConfigError

RUN = "llavamed.io/run"
"""Annotation of a job with the name of its run."""
DIRECTORY = "llavamed.io/directory"
"""Annotation of a job with the URI of its run's folder, which contains `progress.json`."""
QUEUE = "kueue.x-k8s.io/queue-name"
"""Label by which Kueue admits a job."""
MAX_NAME = 47
"""Maximum number of characters of a job's name in KubeRay."""
_BACKOFF_LIMIT = 3
_DEADLINE_SECONDS = 3600
_KEEP_SECONDS = 600
_KEEP_FAILED_SECONDS = 86400


@dataclass(frozen=True)
class Submission:
    """A run to submit."""

    config: RunConfig
    text: str
    """The text of the config file."""
    overrides: tuple[str, ...]
    take_over: bool = False
    name: str | None = None
    """Name of the job. By default that of the run."""
    queue: str | None = None
    """Kueue's local queue."""


def job_name(submission: Submission) -> str:
    """Return the name of the job. Raises: ConfigError."""
    given = submission.name
    name = given or re.sub(r"[^a-z0-9-]", "-", submission.config.name)
    if given is None and not name[0].isalpha():
        name = f"run-{name}"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > MAX_NAME:
        raise ConfigError(
            f"name={name}: a job's name has lower case letters, digits and '-', begins with a "
            f"letter, and has at most {MAX_NAME} characters, this one {len(name)}; choose one with "
            "--name"
        )
    return name


def make_job(submission: Submission, template: Object) -> Object:
    """Return the RayJob that creates a cluster of its own.

    Its image, service account, volumes, node selectors and sizes come from the template. The number
    of GPU workers follows from the config's `scaling`.

    Args:
        template: A RayCluster, or a RayJob with a cluster of its own.

    Raises:
        ConfigError: The template is another kind, or has no group for the workers.
    """
    if template.get("kind") == RAY_JOB.name and "rayClusterSpec" in template.get("spec", {}):
        spec = deepcopy(template["spec"])
    elif template.get("kind") == RAY_CLUSTER.name:
        if "spec" not in template:
            raise ConfigError(
                f"template={name_of(template)}: is a RayCluster without a spec; give "
                "k8s/raycluster.yaml, or what `helm template` prints of one"
            )
        cluster = {k: v for k, v in deepcopy(template["spec"]).items() if k != "upgradeStrategy"}
        spec = _lifecycle(cluster) | {"rayClusterSpec": cluster}
    else:
        raise ConfigError(
            f"template={template.get('kind')}: is neither a RayCluster nor a RayJob with a "
            "rayClusterSpec; give k8s/rayjob.yaml, or what `helm template` prints of one"
        )
    size_workers(spec["rayClusterSpec"], submission.config)
    spec |= {"entrypoint": entrypoint(submission), "submissionMode": "HTTPMode"}
    metadata = _metadata(submission, template)
    if QUEUE in metadata["labels"]:
        # Kueue suspends a job until it is admitted, which KubeRay refuses for jobs with rules.
        spec.pop("deletionStrategy", None)
        spec |= {"shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": _KEEP_SECONDS}
    return _job(metadata, spec)


def make_job_on(submission: Submission, cluster: Object) -> Object:
    """Return the RayJob that runs on an existing RayCluster.

    Raises:
        ConfigError: The cluster has fewer GPUs than the workers need, or a queue is requested.
    """
    if submission.queue is not None:
        raise ConfigError(
            f"queue={submission.queue}: Kueue admits jobs with a cluster of their own only; remove "
            "--queue or --on-cluster"
        )
    scaling = submission.config.scaling
    groups = cluster["spec"].get("workerGroupSpecs", [])
    most = sum(gpus_of(group) * group.get("maxReplicas", 0) for group in groups)
    if scaling.use_gpu and most < scaling.least_workers:
        raise ConfigError(
            f"scaling.num_workers={scaling.least_workers}: RayCluster {name_of(cluster)} grows to "
            f"{most} GPUs; raise maxReplicas of a GPU group, lower the workers, or submit without "
            "--on-cluster"
        )
    spec = {
        "clusterSelector": {"ray.io/cluster": name_of(cluster)},
        "entrypoint": entrypoint(submission),
        "submissionMode": "HTTPMode",
    }
    return _job(_metadata(submission, {"metadata": {"name": ""}}), spec)


def entrypoint(submission: Submission) -> str:
    """Return the command of the head, which writes the config to a file and trains with it."""
    file = f"/tmp/{job_name(submission)}.yaml"
    words = ["python", "-m", "llavamed", "train", "--config", file, *submission.overrides]
    if submission.take_over:
        words.append("--take-over")
    # exec: a signal must reach Python, not the shell.
    return f"printf %s {shlex.quote(submission.text)} >{file} && exec {shlex.join(words)}"


def size_workers(cluster: Object, config: RunConfig) -> None:
    """Give the first GPU group of a cluster as many pods as a run needs, and other GPU groups none.

    Args:
        cluster: Specification of a RayCluster, which is changed.

    Raises:
        ConfigError: The run needs GPUs, and no group has any.
    """
    groups = cluster.get("workerGroupSpecs", [])
    with_gpus = [group for group in groups if gpus_of(group)]
    scaling = config.scaling
    if scaling.use_gpu and not with_gpus:
        raise ConfigError(
            f"scaling.use_gpu=true: no worker group of the template has {GPU}; give one with GPUs, "
            "or set scaling.use_gpu to false"
        )
    autoscales = cluster.get("enableInTreeAutoscaling", False)
    for position, group in enumerate(with_gpus):
        takes = scaling.use_gpu and position == 0
        number = math.ceil(scaling.most_workers / gpus_of(group)) if takes else 0
        least = math.ceil(scaling.least_workers / gpus_of(group)) if takes else 0
        group["maxReplicas"] = max(number, 1) if autoscales else number
        group["minReplicas"] = 0 if autoscales else least
        if not autoscales:
            group["replicas"] = number


def gpus_of(group: Object) -> int:
    """Return the number of GPUs of one pod of a worker group, as Ray counts them.

    A group whose GPUs are slices or shares of a GPU requests another resource than whole GPUs, and
    says in its start parameters how many it has.
    """
    told = (group.get("rayStartParams") or {}).get("num-gpus")
    return int(told) if told else int(request_of(group["template"]["spec"]).get(GPU, 0))


def choose_release(clusters: list[Object], name: str | None, namespace: str) -> Object:
    """Return the RayCluster of a release of the chart.

    Args:
        clusters: All RayClusters of releases.
        name: Name of the release; by default the only one.
        namespace: The namespace, for the error.

    Raises:
        ClusterError: There is no such release, or several.
    """
    found = {
        name_of(cluster): cluster
        for cluster in clusters
        if not cluster["metadata"].get("ownerReferences")  # otherwise KubeRay created it for a job
    }
    chosen = [found[name]] if name in found else [] if name else list(found.values())
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(sorted(found)) or "none"
    install = f"run `{install_chart(namespace)}`, check --namespace"
    hint = "name one with --release" if found else install
    raise ClusterError(
        f"release={name or 'any'}: namespace {namespace} has these RayClusters of the chart: "
        f"{names}; {hint}, or give a manifest with --template"
    )


def to_yaml(manifest: Object) -> str:
    """Return a manifest as YAML for kubectl, with the keys in their order."""
    text: str = yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=100)
    return text


class _Dumper(yaml.SafeDumper):
    """Writes multi-line text as a block, and repeated parts without aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    )


_Dumper.add_representer(str, _represent_text)


def _lifecycle(cluster: Object) -> Object:
    """Return the settings for the end of the job's cluster, as in the chart's own jobs."""
    # Not by jobStatus: a job that missed a deadline, or could not be submitted, has none.
    failed = {"jobDeploymentStatus": "Failed"}
    rules: list[Object] = [
        {
            "policy": "DeleteCluster",
            "condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": _KEEP_SECONDS},
        },
        {"policy": "DeleteCluster", "condition": failed | {"ttlSeconds": _KEEP_FAILED_SECONDS}},
    ]
    if not cluster.get("enableInTreeAutoscaling"):
        rules.insert(1, {"policy": "DeleteWorkers", "condition": failed | {"ttlSeconds": 0}})
    return {
        "backoffLimit": _BACKOFF_LIMIT,
        "preRunningDeadlineSeconds": _DEADLINE_SECONDS,
        "deletionStrategy": {"deletionRules": rules},
    }


def _metadata(submission: Submission, template: Object) -> Object:
    name = job_name(submission)
    queue = submission.queue or labels_of(template).get(QUEUE)
    labels = {
        "app.kubernetes.io/name": "llavamed",
        "app.kubernetes.io/instance": labels_of(template).get("app.kubernetes.io/instance", name),
        "app.kubernetes.io/managed-by": "llavamed",
    }
    return {
        "name": name,
        "labels": labels | ({QUEUE: queue} if queue else {}),
        "annotations": {RUN: submission.config.name, DIRECTORY: submission.config.directory},
    }


def _job(metadata: Object, spec: Object) -> Object:
    return {
        "apiVersion": RAY_JOB.api_version,
        "kind": RAY_JOB.name,
        "metadata": metadata,
        "spec": spec,
    }
