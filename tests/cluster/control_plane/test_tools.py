"""`llavamed cluster` on a real API server: submit, watch, stop, and what it refuses.

KubeRay's operator is not here: a test writes the status of a job as the operator would.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import urllib3

from llavamed.cluster.client import Cluster
from llavamed.cluster.kinds import RAY_JOB, name_of
from llavamed.storage.checkpoint_request import find_request
from llavamed.storage.location import locate
from llavamed.storage.manifest import write
from llavamed.storage.run_progress import RunProgress, Spending, StageProgress
from tests.cluster.control_plane.conftest import Namespace, make_namespace
from tests.conftest import CONFIGS
from tests.support.chart_release import SERVED
from tests.support.control_plane import NOBODY, Api, Helm, program, write_kubeconfig
from tests.support.manifests import checkpoint_manifest
from tests.support.ray_dashboard import ray_dashboard

# A tool that prints nothing would be waited for.
pytestmark = [pytest.mark.xdist_group("control plane"), pytest.mark.timeout(120)]

Tool = Callable[..., tuple[int, str, str]]


@pytest.fixture
def place(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """A namespace with a release of the chart, which the kubeconfig of the environment names."""
    made = make_namespace(api, Helm(program("helm4")), tmp_path)
    made.install()
    monkeypatch.setenv("KUBECONFIG", str(made.helm.kubeconfig))
    yield made
    api.ask("DELETE", f"/api/v1/namespaces/{made.name}")


@pytest.fixture
def tool(place: Namespace, llavamed: Tool) -> Tool:
    """Run `llavamed cluster` in this process; gives the exit code, the output and the errors."""
    return lambda *words: llavamed("--quiet", "cluster", *words, "--namespace", place.name)


@pytest.fixture
def submit(tool: Tool, s3_uri: str) -> Callable[..., tuple[int, str, str]]:
    """Submit the demo, whose storage is a bucket."""

    def run(*words: str) -> tuple[int, str, str]:
        config = str(CONFIGS / "demo.yaml")
        return tool("submit", "--config", config, f"storage={s3_uri}/runs", *words)

    return run


def set_status(place: Namespace, of: str = "rayjobs/demo", **status: Any) -> None:
    """Write the status of the job, or another thing, as the operator would."""
    path = f"/apis/ray.io/v1/namespaces/{place.name}/{of}/status"
    answer = place.api.ask("PATCH", path, {"status": status})
    assert answer.status_code == 200, answer.text


RUNNING = {
    "jobDeploymentStatus": "Running",
    "jobStatus": "RUNNING",
    "jobId": "demo-x",
    "rayClusterName": "demo-abc",
}
SERVICE = "rayservices/llavamed-serve"
READY = {"type": "Ready", "status": "True", "reason": "NonZeroServeEndpoints", "message": ""}
READY["lastTransitionTime"] = "2026-11-25T12:00:00Z"
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}


def progress(step: int, **facts: Any) -> RunProgress:
    spent = Spending(gpu_seconds=3600.0 * step, cost=3.43 * step)
    known = {
        "name": "demo",
        "attempt": 1,
        "started_at": "2036-11-25T11:30:00+00:00",
        "updated_at": "2036-11-25T11:59:58+00:00",
        "task": "train",
        "stage": "align",
        "step": step,
        "steps": 40,
        "loss": 2.5,
        "tokens_per_second": 21_345.0,
        "mfu": 0.41,
        "num_workers": 8,
        "num_gpus": 8,
        "accelerator": "A100",
        "spent": spent,
        "currency": "USD",
        "prices_date": "2026-11-01",
        "stages": (StageProgress(name="align", state="training", step=step, training=spent),),
    }
    return RunProgress.model_validate(known | facts)


def test_a_run_is_submitted_watched_and_deleted(
    place: Namespace, tool: Tool, submit: Tool, s3_uri: str
) -> None:
    assert tool("list")[1] == f"no jobs and no services in namespace {place.name}\n"
    code, out, err = submit()
    assert code == 0, err
    assert f"`llavamed cluster status demo --namespace {place.name} --watch`" in out
    job = place.get("ray.io/v1/rayjobs", "demo")
    image = place.cluster()["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert head["containers"][0]["image"] == image
    assert head["serviceAccountName"] == "llavamed"
    assert "| pending |" in tool("list")[1].replace("│", "|")

    code, _, err = submit()
    assert code == 1
    assert "RayJob=demo: exists already" in err
    assert f"cluster delete demo --namespace {place.name}`, or choose another --name" in err

    set_status(place, **RUNNING)
    write(locate(f"{s3_uri}/runs/demo"), progress(2))
    code, out, _ = tool("status", "demo")
    assert code == 0
    assert out.splitlines() == [
        "job      demo  running",
        "run      demo  attempt 1",
        "stage    align (1 of 1)  2 of 40 steps",
        "speed    loss 2.5, 21,345 tokens/s, 41.0% MFU",
        "workers  8, on 8 A100 GPUs",
        "cost     6.86 USD so far, 2.00 GPU hours",
    ]
    code, _, err = tool("delete", "demo")
    assert code == 1
    assert "RayJob=demo: is running; stop it first with `llavamed cluster stop demo -" in err
    set_status(place, jobDeploymentStatus="Failed", reason="AppFailed", message="it broke")
    code, out, _ = tool("status", "demo", "--watch")
    assert code == 1
    assert "job      demo  failed\nreason   AppFailed: it broke\n" in out
    assert tool("delete", "demo")[0] == 0
    place.api.eventually(
        f"/apis/ray.io/v1/namespaces/{place.name}/rayjobs/demo", lambda found: found is None
    )


def test_a_service_of_a_model_is_listed_and_examined(place: Namespace, tool: Tool) -> None:
    place.upgrade(*(f"--set={name}={value}" for name, value in SERVED.items()))
    assert "service llavamed-serve: does not accept requests yet; `llavamed" in tool("list")[1]
    report = tool("doctor")[1]
    assert "warning  services       RayService llavamed-serve: does not accept requests" in report
    assert "ok       rules" in report
    application = {"status": "UNHEALTHY", "message": "a replica has died"}
    active = {"applicationStatuses": {"llavamed": application}}
    set_status(place, SERVICE, conditions=[READY], activeServiceStatus=active)
    assert "service llavamed-serve: accepts requests" in tool("list")[1]
    code, report, _ = tool("doctor")
    assert code == 1
    assert "application llavamed is UNHEALTHY: a replica has died; see the log" in report
    code, out, _ = tool("status", "llavamed-serve")
    assert code == 1
    assert out.splitlines()[-1].startswith("hint     see `llavamed cluster logs llavamed-serve -")


def test_a_service_is_watched_read_and_deleted(place: Namespace, tool: Tool) -> None:
    place.upgrade(*(f"--set={name}={value}" for name, value in SERVED.items()))
    assert "has no cluster yet, so it has no log" in tool("logs", "llavamed-serve")[2]
    path = f"/apis/ray.io/v1/namespaces/{place.name}/{SERVICE}"
    application = {"status": "RUNNING", "serveDeploymentStatuses": {"Model": {"status": "HEALTHY"}}}
    active = {"rayClusterName": "demo-abc", "applicationStatuses": {"llavamed": application}}
    set_status(place, SERVICE, activeServiceStatus=active)
    with in_background(place, "status", "llavamed-serve", "--watch", "--seconds=0.2") as watching:
        read_until(watching, "deployment Model is HEALTHY")
        set_status(place, SERVICE, conditions=[READY])
        out, err = watching.communicate(timeout=60)
    assert watching.returncode == 0, err
    assert out.lstrip("\n").splitlines() == [  # the empty line between two states may be read
        "service  llavamed-serve  accepts requests",
        f"model    {SERVED['serve.export']}",
        "cluster  demo-abc",
        "serve    application llavamed is RUNNING",
        "serve    deployment Model is HEALTHY",
    ]
    with ray_dashboard(place.api, place.name, "demo-abc") as dashboard:
        dashboard.replicas = {"abc": "one\ntwo\n", "xyz": "other\n"}
        code, out, err = tool("logs", "llavamed-serve")
        assert (code, out) == (0, "abc: one\nabc: two\nxyz: other\n"), err
    code, _, err = tool("delete", "llavamed-serve")
    assert code == 1
    assert "RayService=llavamed-serve: belongs to a release of Helm" in err
    assert (
        "`helm upgrade llavamed ./helm --reset-then-reuse-values --set serve.enabled=false " in err
    )
    own = {"metadata": {"labels": {"app.kubernetes.io/managed-by": "somebody"}}}
    assert place.api.ask("PATCH", path, own).status_code == 200
    assert "accepts requests; add --force to end it" in tool("delete", "llavamed-serve")[2]
    assert tool("delete", "llavamed-serve", "--force")[0] == 0
    place.api.eventually(path, lambda found: found is None)


def test_what_is_refused_says_what_to_do(
    place: Namespace, tool: Tool, submit: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert submit("--name", "one")[0] == 0
    code, _, err = tool("status", "two")
    assert code == 1
    assert f"RayJob=two: is not in namespace {place.name}; there are: one" in err
    code, _, err = submit("--release", "other")
    assert code == 1
    assert "release=other" in err
    assert "RayClusters of the chart: llavamed; name one with --release" in err
    with monkeypatch.context() as patch:
        patch.setenv("KUBECONFIG", str(write_kubeconfig(place.api, tmp_path, NOBODY)))
        code, _, err = tool("list")
    assert code == 1
    assert "nobody may not list rayjobs.ray.io" in err
    grant = err.partition("`kubectl create role ")[2].partition("`")[0]
    assert f"--verb list --resource rayjobs.ray.io --namespace {place.name}" in grant
    role = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    rules = [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["list"]}]
    named = {"metadata": {"name": "llavamed-list-rayjobs"}}
    place.api.create(role | named | {"kind": "Role", "rules": rules}, place.name)
    subject = {"kind": "User", "name": "nobody", "apiGroup": "rbac.authorization.k8s.io"}
    to = {"kind": "Role", "name": "llavamed-list-rayjobs", "apiGroup": subject["apiGroup"]}
    binding = role | named | {"kind": "RoleBinding", "subjects": [subject], "roleRef": to}
    place.api.create(binding, place.name)
    with monkeypatch.context() as patch:
        patch.setenv("KUBECONFIG", str(write_kubeconfig(place.api, tmp_path, NOBODY)))
        for _ in range(50):  # the authorizer learns of a role a moment later
            code, out, _ = tool("list")
            if code == 0:
                break
            time.sleep(0.1)
    assert "one" in out, "the rule that was named is enough"


def test_a_field_that_kubernetes_refuses_is_named(place: Namespace) -> None:
    from llavamed.errors import ClusterError

    spec = {"entrypoint": "true", "preRunningDeadlineSeconds": 0}
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a"}, "spec": spec}
    cluster = Cluster(place.name)
    with pytest.raises(
        ClusterError, match=r"RayJob=a: has fields that .* spec\.preRunningDeadlineSeconds"
    ):
        cluster.create(RAY_JOB, job)
    unknown = job | {"spec": {"entrypoint": "true", "submissionMod": "HTTPMode"}}
    with pytest.raises(ClusterError, match=r'unknown field \\?"spec\.submissionMod'):
        cluster.create(RAY_JOB, unknown)


def test_a_job_whose_answer_was_lost_is_found_again(
    place: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(place.name)
    send, lost = cluster._api.call_api, []

    def lose_the_first(*request: Any, **options: Any) -> Any:
        response = send(*request, **options)
        if request[0] == "POST" and not lost:
            lost.append(response.read())
            raise urllib3.exceptions.ProtocolError("connection reset")
        return response

    monkeypatch.setattr(cluster._api, "call_api", lose_the_first)
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": "once"},
        "spec": {"entrypoint": "true", "clusterSelector": {"ray.io/cluster": "llavamed"}},
    }
    assert name_of(cluster.create(RAY_JOB, job)) == "once"
    assert lost
    assert [name_of(each) for each in cluster.find_all(RAY_JOB)] == ["once"]


@contextmanager
def in_background(place: Namespace, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run the tool in a process of its own, which is ended behind the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llavamed", "cluster", *words, "--namespace", place.name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Read lines until one has some words."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if words in line:
            return text
    raise AssertionError(text + (process.stderr.read() if process.stderr else ""))


def test_watching_outlives_the_api_server(place: Namespace, submit: Tool, s3_uri: str) -> None:
    folder = locate(f"{s3_uri}/runs/demo")
    assert submit()[0] == 0
    set_status(place, **RUNNING)
    write(folder, progress(2))
    with in_background(place, "status", "demo", "--watch", "--seconds", "0.2") as watching:
        read_until(watching, "2 of 40 steps")
        with place.api.away():
            time.sleep(1)  # for some looks at a server that is not there
        assert watching.poll() is None
        write(folder, progress(5))
        read_until(watching, "5 of 40 steps")
        write(folder, progress(40, state="finished"))
        set_status(place, **DONE)
        out, err = watching.communicate(timeout=60)
    assert watching.returncode == 0
    assert "job      demo  succeeded" in out
    assert "the API server does not answer" in err
    assert "Traceback" not in err


def test_logs_outlive_the_api_server_and_the_head(place: Namespace, submit: Tool) -> None:
    assert submit()[0] == 0
    set_status(place, **RUNNING)
    with (
        ray_dashboard(place.api, place.name, "demo-abc") as dashboard,
        in_background(place, "logs", "demo", "--follow", "--seconds", "0.2") as following,
    ):
        dashboard.log = "one\ntwo\n"
        assert read_until(following, "two") == "one\ntwo\n"
        with place.api.away():
            dashboard.log += "three\n"
            time.sleep(1)
        dashboard.log += "four\n"
        assert read_until(following, "four") == "three\nfour\n"
        dashboard.log = "another head\n"
        assert read_until(following, "another") == "another head\n"
        set_status(place, **DONE)
        out, err = following.communicate(timeout=60)
    assert (following.returncode, out) == (0, "")
    assert "Traceback" not in err


def test_a_running_job_is_told_to_stop(
    place: Namespace, submit: Tool, tool: Tool, s3_uri: str
) -> None:
    folder = locate(f"{s3_uri}/runs/demo")
    assert submit()[0] == 0
    code, _, err = tool("stop", "demo")
    assert code == 1
    assert "RayJob=demo: is pending, so there is nothing to stop; `llavamed cluster delete" in err
    set_status(place, **RUNNING)
    write(folder, progress(12, updated_at="2016-11-01T11:59:58+00:00"))
    with ray_dashboard(place.api, place.name, "demo-abc", "front") as dashboard:
        code, out, err = tool("stop", "demo")
        assert code == 0, err
        assert dashboard.stopped == ["/api/jobs/demo-x/stop"]
        assert "demo: is asked to stop" in out
        assert "its cluster stays, with its GPUs, until `llavamed cluster delete demo -" in out
        assert "how many is not known: its progress is of an earlier job, until 2016" in out
        code, _, err = tool("stop", "demo", "--after-checkpoint")
        assert code == 1
        assert "its checkpoints cannot be read from here: " in err
        assert len(dashboard.stopped) == 1
        write(folder, progress(12))
        places = [folder / "stages" / "align" / "checkpoints" / name for name in ("10", "20")]
        write(places[0], checkpoint_manifest(step=10))
        out = tool("stop", "demo")[1]
        assert "demo: align has taken 12 steps and its last checkpoint holds 10; the next" in out
        assert "job repeats 2" in out
        saved = (places[1], checkpoint_manifest(step=20))
        saving = threading.Timer(1.0, lambda: find_request(folder) and write(*saved))
        saving.start()
        out = tool("stop", "demo", "--after-checkpoint", "--seconds", "0.1")[1]
        saving.join()
        assert len(dashboard.stopped) == 3
        assert "its last checkpoint holds 20; the next job repeats 0" in out
        assert find_request(folder) is None
        write(folder, progress(12, task="evaluate"))
        out = tool("stop", "demo", "--after-checkpoint")[1]
        assert "demo: no stage is in training, so no step is lost" in out
