"""What is submitted to Kubernetes, and what is said of it: pure, without a cluster."""

import shlex
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llavamed.cluster.kinds import Object
from llavamed.cluster.logs import LogText
from llavamed.cluster.pods import quantity, request_of
from llavamed.cluster.rayjob import (
    DIRECTORY,
    Submission,
    choose_release,
    entrypoint,
    gpus_of,
    job_name,
    make_job,
    make_job_on,
)
from llavamed.cluster.rules import broken_rules
from llavamed.cluster.status import ProgressReport, describe, read_job, read_progress
from llavamed.config.load import load_config
from llavamed.errors import ClusterError, ConfigError
from llavamed.storage.location import locate
from llavamed.storage.manifest import write
from llavamed.storage.run_progress import RunProgress, Spending, StageProgress
from tests.conftest import CONFIGS
from tests.support.kubernetes_rules import custom_violations

K8S = Path(__file__).parents[2] / "k8s"
FILE = CONFIGS / "llava-med-v1.5.yaml"
GPU = "nvidia.com/gpu"
NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def template(kind: str = "rayjob") -> Object:
    found: Object = yaml.safe_load((K8S / f"{kind}.yaml").read_text())
    return found


def submission(*overrides: str, **options: Any) -> Submission:
    config = load_config(FILE, list(overrides))
    return Submission(config, FILE.read_text(), overrides, **options)


def workers(job: Object) -> dict[str, int]:
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return {group["groupName"]: group["replicas"] for group in groups}


@pytest.mark.parametrize("kind", ["rayjob", "raycluster"])
@pytest.mark.parametrize("options", [{}, {"queue": "team"}], ids=["plain", "queued"])
def test_a_job_keeps_the_rules_of_kuberay(
    kind: str, options: dict[str, str], reference_data: Path
) -> None:
    job = make_job(submission(**options), template(kind))
    assert custom_violations(job, reference_data / "data" / "kuberay-crds") == []
    assert broken_rules(job) == []
    assert "upgradeStrategy" not in job["spec"]["rayClusterSpec"]
    assert job["metadata"]["annotations"][DIRECTORY] == "s3://llavamed/runs/llava-med-v1.5"
    assert ("shutdownAfterJobFinishes" in job["spec"]) == bool(options)


@given(number=st.integers(1, 64), least=st.integers(1, 64))
def test_there_are_as_many_gpus_as_workers(number: int, least: int) -> None:
    least = min(least, number)
    config = load_config(FILE)
    scaling = config.scaling.model_copy(update={"num_workers": (least, number), "use_gpu": True})
    config = config.model_copy(update={"scaling": scaling})
    job = make_job(Submission(config, "", ()), template())
    (group,) = [
        group for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"] if gpus_of(group)
    ]
    gpus = gpus_of(group)
    assert 0 <= group["replicas"] * gpus - number < gpus
    assert 0 <= group["minReplicas"] * gpus - least < gpus
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_a_run_on_the_cpu_reserves_no_gpus() -> None:
    config = load_config(CONFIGS / "demo.yaml")
    assert not config.scaling.use_gpu
    job = make_job(Submission(config, "", ()), template())
    assert workers(job) == {"cpu": 2, "a100": 0}
    del job["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]
    with pytest.raises(ConfigError, match=r"scaling\.use_gpu=true: no worker group of the templat"):
        make_job(submission(), job)


def test_the_shell_hands_over_the_config_and_the_words_as_they_are(tmp_path: Path) -> None:
    """The entrypoint is run for real, with a program in the place of Python."""
    text = 'name: a\n# it\'s $HOME, `date` and "quotes" \\ %s\n'
    words = ("stages.align.optimizer.lr=1e-3", "data={a: 'b c'}")
    job = Submission(load_config(FILE), text, words, take_over=True, name="quoting")
    command = (
        entrypoint(job).replace("/tmp/", f"{tmp_path}/").replace("python -m", "printf '%s\\n'")
    )
    ran = subprocess.run(
        ["/bin/bash", "-c", command], capture_output=True, text=True, timeout=20, check=True
    )
    assert (tmp_path / "quoting.yaml").read_text() == text
    file = str(tmp_path / "quoting.yaml")
    assert ran.stdout.splitlines() == [
        "llavamed", "train", "--config", file, *words, "--take-over",
    ]  # fmt: skip
    assert shlex.split(command)


@pytest.mark.parametrize(
    ("run", "name"), [("demo", "demo"), ("llava-med-v1.5", "llava-med-v1-5"), ("7b", "run-7b")]
)
def test_a_job_is_named_like_its_run(run: str, name: str) -> None:
    assert job_name(submission(f"name={run}")) == name


@pytest.mark.parametrize("name", ["Big", "a" * 48, "-a", "1a"])
def test_a_name_that_kuberay_refuses_is_refused_first(name: str) -> None:
    with pytest.raises(ConfigError, match=f"name={name}: a job's name has lower case letters"):
        job_name(submission(name=name))


def test_a_job_on_the_standing_cluster() -> None:
    cluster = template("raycluster")
    job = make_job_on(submission(), cluster)
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": "llavamed"}
    assert "rayClusterSpec" not in job["spec"]
    assert broken_rules(job) == []
    config = load_config(FILE)
    scaling = config.scaling.model_copy(update={"num_workers": 64})
    many = Submission(config.model_copy(update={"scaling": scaling}), "", ())
    with pytest.raises(ConfigError, match=r"num_workers=64: RayCluster llavamed grows to 32 GPUs"):
        make_job_on(many, cluster)
    with pytest.raises(ConfigError, match="queue=team: Kueue admits jobs with a cluster of their"):
        make_job_on(submission(queue="team"), cluster)


def test_the_release_is_chosen_or_asked_for() -> None:
    one, other = template("raycluster"), template("raycluster")
    other["metadata"]["name"] = "second"
    assert choose_release([one], None, "research") is one
    of_a_job = template("raycluster")
    of_a_job["metadata"] |= {"name": "demo-abc", "ownerReferences": [{"kind": "RayJob"}]}
    assert choose_release([one, of_a_job], None, "research") is one
    assert choose_release([one, other], "second", "research") is other
    with pytest.raises(ClusterError, match="RayClusters of the chart: llavamed, second; name one"):
        choose_release([one, other], None, "research")
    with pytest.raises(
        ClusterError, match=r"namespace research .*: none; run `helm install llavam"
    ):
        choose_release([], None, "research")


def job_of(created: str = "2026-11-25T11:00:00Z", **status: Any) -> Object:
    annotations = {DIRECTORY: "s3://llavamed/runs/demo"}
    metadata = {"name": "demo", "creationTimestamp": created, "annotations": annotations}
    return {"metadata": metadata, "status": status}


@pytest.mark.parametrize(
    ("deployment", "job", "state"),
    [
        ("", "", "pending"),
        ("Initializing", "", "pending"),
        ("Running", "PENDING", "pending"),
        ("Running", "RUNNING", "running"),
        ("Complete", "SUCCEEDED", "succeeded"),
        ("Complete", "STOPPED", "stopped"),
        ("Failed", "FAILED", "failed"),
        ("Failed", "RUNNING", "failed"),
        ("ValidationFailed", "", "failed"),
        ("Suspended", "", "suspended"),
        ("Retrying", "FAILED", "pending"),
        ("Waiting", "", "pending"),
    ],
)
def test_a_job_is_judged_by_its_status(deployment: str, job: str, state: str) -> None:
    found = read_job(job_of(jobDeploymentStatus=deployment, jobStatus=job))
    assert found.state == state


def progress(**facts: Any) -> RunProgress:
    training = Spending(gpu_seconds=7200.0, cost=7.0)
    stages = (
        StageProgress(name="align", state="training", step=100, steps=300, training=training),
        StageProgress(name="instruct"),
    )
    known = {
        "name": "demo",
        "attempt": 2,
        "started_at": "2026-11-25T11:30:00+00:00",
        "updated_at": "2026-11-25T11:59:58+00:00",
        "task": "train",
        "stage": "align",
        "step": 100,
        "steps": 300,
        "loss": 2.4321,
        "tokens_per_second": 21_345.0,
        "mfu": 0.412,
        "seconds_left": 3600.0,
        "run_seconds_left": 36_000.0,
        "cost_at_end": 287.0,
        "num_workers": 8,
        "num_gpus": 8,
        "accelerator": "A100",
        "spent": training,
        "currency": "USD",
        "prices_date": "2026-11-01",
        "stages": stages,
    }
    return RunProgress.model_validate(known | facts)


RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "failed": 1}


def test_what_is_said_of_a_running_job() -> None:
    lines = describe(read_job(job_of(**RUNNING)), ProgressReport(progress()), NOW)
    assert lines == [
        ("job", "demo  running, attempt 2"),
        ("run", "demo  attempt 2, about 10:00:00 until instruct is trained"),
        ("stage", "align (1 of 2)  100 of 300 steps, 1:00:00 left"),
        ("speed", "loss 2.432, 21,345 tokens/s, 41.2% MFU"),
        ("workers", "8, on 8 A100 GPUs"),
        ("cost", "7.00 USD so far, 2.00 GPU hours; about 287.00 when instruct is trained"),
    ]
    evaluated = progress(task="evaluate", stage="instruct", cost_at_end=8.0)
    lines = describe(read_job(job_of(**RUNNING)), ProgressReport(evaluated), NOW)
    assert lines[-1][1].endswith("about 8.00 when instruct is evaluated")
    unknown = progress(run_seconds_left=None, cost_at_end=None)
    known = dict(describe(read_job(job_of(**RUNNING)), ProgressReport(unknown), NOW))
    assert known["run"] == "demo  attempt 2"
    assert known["cost"] == "7.00 USD so far, 2.00 GPU hours"


def test_a_job_that_is_being_deleted_is_said_to_be() -> None:
    job = job_of(**RUNNING)
    job["metadata"]["deletionTimestamp"] = "2026-11-26T09:00:00Z"
    lines = describe(read_job(job, " --namespace research"), ProgressReport(progress()), NOW)
    assert lines[0] == ("job", "demo  running, being deleted, attempt 2")


def test_what_is_said_of_a_stopped_job_is_what_it_still_holds() -> None:
    """KubeRay deletes the cluster of a job that has succeeded or failed, and of no stopped one."""
    stopped = job_of(jobDeploymentStatus="Complete", jobStatus="STOPPED", rayClusterName="demo-abc")
    own: Object = {"rayClusterSpec": {}}
    for spec, stays in (
        (own, True), (own | {"shutdownAfterJobFinishes": True}, False), ({}, False),
    ):  # fmt: skip
        lines = dict(describe(read_job(stopped | {"spec": spec}), ProgressReport(progress()), NOW))
        said = "demo-abc stays, with its GPUs, until `llavamed cluster delete demo`"
        assert lines.get("cluster") == (said if stays else None)


def test_what_is_said_of_one_that_ended_is_silent_or_unknown() -> None:
    failed = read_job(
        job_of(jobDeploymentStatus="Failed", jobStatus="FAILED", reason="AppFailed", message="x")
    )
    lines = dict(
        describe(failed, ProgressReport(progress(state="failed", reason="a=b: rule")), NOW)
    )
    assert lines["reason"] == "AppFailed: x"
    assert lines["run"] == "demo  attempt 2 failed: a=b: rule"
    assert lines["cost"] == "7.00 USD, 2.00 GPU hours"
    running = read_job(job_of(**RUNNING))
    late = dict(describe(running, ProgressReport(progress()), NOW + timedelta(minutes=5)))
    assert late["silent"] == "for 0:05:02: see `llavamed cluster logs demo`"
    again = read_job(job_of("2026-11-25T11:59:59Z", **RUNNING))
    assert "of an earlier job" in dict(describe(again, ProgressReport(progress()), NOW))["progress"]
    unpriced = progress(spent=Spending(gpu_seconds=3600, cost=None))
    assert dict(describe(running, ProgressReport(unpriced), NOW))["cost"].endswith(
        "an unknown price"
    )


def test_progress_is_read_from_storage_or_said_to_be_out_of_reach(s3_uri: str) -> None:
    def at(directory: str | None) -> ProgressReport:
        job = job_of(**RUNNING)
        job["metadata"]["annotations"] = {} if directory is None else {DIRECTORY: directory}
        return read_progress(read_job(job))

    write(locate(f"{s3_uri}/runs/demo"), progress())
    assert at(f"{s3_uri}/runs/demo").found == progress()
    assert at(f"{s3_uri}/runs/none").why_not.endswith("/runs/none has none yet")
    assert "is a folder of the cluster" in at("/mnt/runs/demo").why_not
    assert "was not submitted with" in at(None).why_not
    assert "no filesystem for nowhere://" in at("nowhere://bucket/demo").why_not


@given(st.lists(st.text(), max_size=6))
def test_a_log_is_given_once_whatever_breaks_in_between(parts: list[str]) -> None:
    log, given, text = LogText(), "", ""
    for part in parts:
        text += part
        given += log.new_lines(text)
        assert log.new_lines(text) == "", "a connection that was made again"
    assert given == text
    another = f"{chr(ord(text[0]) ^ 1) if text else ''}another head"
    assert log.new_lines(another) == another


def test_quantities_and_what_a_pod_reserves() -> None:
    amounts = [quantity(text) for text in ("500m", "1", "64Gi", "1e3", "2k", 8)]
    assert amounts == [0.5, 1, 64 * 2**30, 1000, 2000, 8]
    with pytest.raises(ValueError, match="'8GB' is not a quantity"):
        quantity("8GB")
    containers = [{"resources": {"requests": {"cpu": 1}, "limits": {"cpu": 2, GPU: "8"}}}] * 2
    init = [{"resources": {"requests": {"cpu": 5}}}]
    request = request_of({"containers": containers, "initContainers": init})
    assert request == {"cpu": 5, GPU: 16}
