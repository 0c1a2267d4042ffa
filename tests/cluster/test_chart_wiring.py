"""The chart's parts find each other: Ray pods, run configs, MLflow, credentials, and the user."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.environment_variables
import pytest
import ray
import yaml
from mlflow.cli import server as mlflow_server
from mlflow.server.security_utils import is_allowed_host_header
from ray._private import services

from llavamed import __version__
from llavamed.cluster.rayjob import DIRECTORY, RUN
from llavamed.config.load import load_config
from tests.support.chart_release import (
    BUCKET,
    BUNDLED,
    CHART,
    POSTGRES,
    ROOT,
    SCALED,
    environment,
    mlflow_pod,
    objects,
    ray_pods,
    release,
)
from tests.support.kubernetes_rules import Object

CONFIGS = {file.name: file.read_bytes() for file in ROOT.glob("ray_jobs/configs/*.yaml")}


def mlflow_options(values: dict[str, Any] | None = None) -> dict[str, str]:
    arguments = mlflow_pod(values)["containers"][0]["args"]
    return dict(argument.split("=", 1) for argument in arguments)


def test_the_configs_are_mounted_verbatim() -> None:
    assert CONFIGS
    data = objects()["ConfigMap/llavamed-configs"]["data"]
    assert {name: text.encode() for name, text in data.items()} == CONFIGS


@pytest.mark.parametrize("name", CONFIGS)
def test_the_progress_of_a_job_is_found_where_its_run_writes_it(name: str) -> None:
    """As where it was submitted; an entrypoint of another kind may run anything."""
    job = {"job.enabled": True, "runConfig": name}
    config = load_config(ROOT / "ray_jobs" / "configs" / name, [])
    annotations = objects(job)["RayJob/llavamed"]["metadata"]["annotations"]
    assert (annotations[RUN], annotations[DIRECTORY]) == (config.name, config.directory)
    other = objects(job | {"job.entrypoint": "python /app/ray_jobs/train.py name=other"})
    assert DIRECTORY not in other["RayJob/llavamed"]["metadata"]["annotations"]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_ray_pod_sees_the_config_it_is_told_to_run(name: str) -> None:
    found = objects({"runConfig": name})
    for pod in ray_pods(found):
        folder, _, file = environment(pod)["LLAVAMED_CONFIG"].rpartition("/")
        mounts = {item["mountPath"]: item["name"] for item in pod["containers"][0]["volumeMounts"]}
        volumes = {item["name"]: item for item in pod["volumes"]}
        mounted = volumes[mounts[folder]]["configMap"]["name"]
        assert file == name
        assert name in found[f"ConfigMap/{mounted}"]["data"]


def test_ray_pods_differ_only_where_they_must() -> None:
    head, cpu, a100 = ray_pods(objects())
    assert environment(head).items() - environment(cpu).items() == {
        ("RAY_JOB_STOP_WAIT_TIME_S", "120")
    }
    assert environment(cpu) == environment(a100)
    assert head["containers"][0]["volumeMounts"] == a100["containers"][0]["volumeMounts"]
    assert {"name": "ray-logs", "mountPath": "/tmp/ray"} in head["containers"][0]["volumeMounts"]


def test_memory_and_disk_of_a_ray_pod_are_bounded() -> None:
    values = {"ray.cpu.sharedMemory": "3Gi", "ray.cpu.disk": "70Gi"}
    _, cpu, _ = ray_pods(objects(values))
    volumes = {item["name"]: item for item in cpu["volumes"]}
    mounts = {item["mountPath"]: item["name"] for item in cpu["containers"][0]["volumeMounts"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "3Gi"}
    # Where Ray logs and spills objects; kubelet evicts what takes more than it asked for.
    assert volumes[mounts["/tmp/ray"]]["emptyDir"] == {"sizeLimit": "70Gi"}
    assert cpu["containers"][0]["resources"]["limits"]["ephemeral-storage"] == "70Gi"


@pytest.mark.parametrize("preset", ["", "trial", "gke", "eks", "aks", "h100"])
def test_ray_keeps_its_objects_in_shared_memory(
    preset: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Asked of Ray itself: it takes the disk where its store is larger than /dev/shm."""
    file = CHART / "presets" / f"{preset}.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8")) if preset else {}
    spec = objects(values)["RayCluster/llavamed"]["spec"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        (size,) = [
            volume["emptyDir"]["sizeLimit"]
            for volume in group["template"]["spec"]["volumes"]
            if volume["name"] == "shared-memory"
        ]
        shared = int(size.removesuffix("Gi")) * 2**30
        store = int(group["rayStartParams"]["object-store-memory"])
        assert 0.8 * shared < store < shared
        for module, name in ((ray._private.utils, "get_shared_memory_bytes"),
                             (ray._common.utils, "get_system_memory")):  # fmt: skip
            size_of = shared if name == "get_shared_memory_bytes" else 2**41
            monkeypatch.setattr(module, name, lambda given=size_of: given)
        directory, *_ = services.determine_plasma_store_config(store, str(tmp_path))
        assert directory == "/dev/shm"


def test_a_worker_drains_before_it_is_killed() -> None:
    for pod in ray_pods(objects({"ray.terminationGracePeriodSeconds": 90})):
        assert pod["terminationGracePeriodSeconds"] == 90
        assert environment(pod)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "75"


def test_the_token_is_asked_for_everywhere() -> None:
    found = objects()
    assert found["RayCluster/llavamed"]["spec"]["authOptions"] == {"mode": "token"}
    assert [environment(pod)["RAY_AUTH_MODE"] for pod in ray_pods(found)] == ["token"] * 3


def test_nothing_phones_home() -> None:
    found = objects()
    for pod in ray_pods(found):
        told = environment(pod)
        assert told["RAY_USAGE_STATS_ENABLED"] == "0"
        assert told["HF_HUB_DISABLE_TELEMETRY"] == "1"
    for pod in [*ray_pods(found), mlflow_pod()]:
        assert environment(pod)["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_the_head_runs_no_tasks_and_training_runs_on_a100s() -> None:
    found = objects()
    head, cpu, a100 = ray_pods(found)
    spec = found["RayCluster/llavamed"]["spec"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    gpus = [pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for pod in
            (head, cpu, a100)]  # fmt: skip
    assert gpus == [None, None, "8"]
    assert a100["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
    assert a100["tolerations"][0]["key"] == "nvidia.com/gpu"
    for pod in (head, cpu, a100):
        resources = pod["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]


def test_another_node_label_replaces_the_first() -> None:
    label = {"ray.a100.nodeLabel.key": "accelerator", "ray.a100.nodeLabel.value": "a100"}
    _, _, a100 = ray_pods(objects(label | {"ray.a100.nodeSelector": {"spot": "true"}}))
    assert a100["nodeSelector"] == {"accelerator": "a100", "spot": "true"}


def test_replicas_are_the_autoscalers_once_it_runs() -> None:
    fixed = objects()["RayCluster/llavamed"]["spec"]
    scaled = objects(SCALED)["RayCluster/llavamed"]["spec"]
    assert [group["replicas"] for group in fixed["workerGroupSpecs"]] == [2, 1]
    assert "enableInTreeAutoscaling" not in fixed
    assert not any("replicas" in group for group in scaled["workerGroupSpecs"])
    assert scaled["autoscalerOptions"]["version"] == "v2"
    head_container = scaled["headGroupSpec"]["template"]["spec"]["containers"][0]
    sidecar = scaled["autoscalerOptions"]["securityContext"]
    assert sidecar == head_container["securityContext"]


def test_the_image_is_a_tag_or_a_digest() -> None:
    digest = "sha256:" + "a" * 64
    expected: dict[str, dict[str, Any]] = {
        f"llavamed:{__version__}": {},
        "registry.example.org/llavamed:2": {
            "image.repository": "registry.example.org/llavamed",
            "image.tag": "2",
        },
        f"llavamed@{digest}": {"image.digest": digest, "image.tag": "2"},
    }
    for image, values in expected.items():
        pods = [*ray_pods(objects(values)), mlflow_pod(values)]
        assert {pod["containers"][0]["image"] for pod in pods} == {image}


def test_credentials_reach_ray_and_mlflow_by_name_only() -> None:
    values = {"storage.existingSecret": "keys", "storage.endpointUrl": "http://minio:9000"}
    for pod in [*ray_pods(objects(values)), mlflow_pod(values)]:
        assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "keys"}}]
        assert environment(pod)["AWS_ENDPOINT_URL"] == "http://minio:9000"
        assert environment(pod)["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_required"
    for pod in [*ray_pods(objects()), mlflow_pod()]:
        assert "envFrom" not in pod["containers"][0]
        assert not [name for name in environment(pod) if name.startswith("AWS_")]


def test_ray_finds_mlflow() -> None:
    found = objects()
    service = found["Service/llavamed-mlflow"]
    labels = found["Deployment/llavamed-mlflow"]["spec"]["template"]["metadata"]["labels"]
    port = service["spec"]["ports"][0]
    container = mlflow_pod()["containers"][0]
    assert {environment(pod)["MLFLOW_TRACKING_URI"] for pod in ray_pods(found)} == {
        f"http://{service['metadata']['name']}:{port['port']}"
    }
    assert service["spec"]["selector"].items() <= labels.items()
    assert container["ports"] == [{"name": port["targetPort"], "containerPort": 5000}]
    assert mlflow_options()["--port"] == "5000"


def test_mlflow_knows_its_options_and_variables() -> None:
    known = {option for param in mlflow_server.params for option in param.opts}
    read = {param.envvar for param in mlflow_server.params}
    assert mlflow_options().keys() <= known
    names = {name for name in environment(mlflow_pod()) if name.startswith("MLFLOW_")}
    assert {name for name in names - read if not hasattr(mlflow.environment_variables, name)} == (
        set()
    )


def test_mlflow_answers_to_its_own_names_only() -> None:
    hosts = mlflow_options({"mlflow.extraAllowedHosts": ["mlflow.example.org"]})["--allowed-hosts"]
    short = "llavamed-mlflow"
    names = [short, f"{short}.research", f"{short}.research.svc", "mlflow.example.org"]
    good = [*names, f"{short}.research.svc.cluster.local", "localhost", "127.0.0.1"]
    bad = ["example.org", f"{short}.example.org", "10.example.org", f"{short}.other"]
    allowed: Callable[[str], bool] = lambda host: is_allowed_host_header(hosts.split(","), host)  # noqa: E731
    assert [host for host in good if not (allowed(host) and allowed(f"{host}:5000"))] == []
    assert [host for host in bad if allowed(host) or allowed(f"{host}:5000")] == []


def test_mlflow_listens_on_ipv6_and_knows_the_address_of_its_pod_there() -> None:
    assert mlflow_options()["--host"] == "0.0.0.0"
    options = mlflow_options({"mlflow.host": "::", "mlflow.metrics": True})
    assert options["--host"] == "::"
    hosts = options["--allowed-hosts"].replace("$(POD_IP)", "fd00::2").split(",")
    assert is_allowed_host_header(hosts, "[fd00::2]:5000")
    assert not is_allowed_host_header(hosts, "[fd00::3]:5000")


@pytest.mark.parametrize(
    ("values", "database", "destination", "claimed"),
    [
        ({}, "sqlite:////mlflow/mlflow.db", "/mlflow/artifacts", True),
        (POSTGRES, None, "/mlflow/artifacts", True),
        (BUCKET, "sqlite:////mlflow/mlflow.db", "s3://bucket/mlflow", True),
        (POSTGRES | BUCKET, None, "s3://bucket/mlflow", False),
    ],
    ids=["neither", "postgres", "bucket", "both"],
)
def test_mlflow_has_a_claim_as_long_as_it_keeps_something(
    values: dict[str, Any], database: str | None, destination: str, claimed: bool
) -> None:
    found = objects(values)
    container = mlflow_pod(values)["containers"][0]
    backend = next(e for e in container["env"] if e["name"] == "MLFLOW_BACKEND_STORE_URI")
    assert backend.get("value") == database
    if database is None:
        assert backend["valueFrom"] == {"secretKeyRef": {"name": "database", "key": "uri"}}
    assert mlflow_options(values)["--artifacts-destination"] == destination
    mounts = {item["mountPath"] for item in container["volumeMounts"]}
    assert mounts == ({"/tmp", "/mlflow"} if claimed else {"/tmp"})
    assert ("PersistentVolumeClaim/llavamed-mlflow" in found) == claimed
    # The old server must be gone before the new one migrates the database.
    assert found["Deployment/llavamed-mlflow"]["spec"]["strategy"] == {"type": "Recreate"}


def test_mlflow_writes_only_where_it_must() -> None:
    container = mlflow_pod()["containers"][0]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert environment(mlflow_pod())["HOME"] == "/tmp"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}


def test_network_policies_select_the_pods_they_mean() -> None:
    found = objects()
    ray = found["NetworkPolicy/llavamed-ray"]["spec"]
    tracking = found["NetworkPolicy/llavamed-mlflow"]["spec"]
    labels = found["Deployment/llavamed-mlflow"]["spec"]["template"]["metadata"]["labels"]
    for group in [
        found["RayCluster/llavamed"]["spec"]["headGroupSpec"],
        *found["RayCluster/llavamed"]["spec"]["workerGroupSpecs"],
    ]:
        ours = group["template"]["metadata"]["labels"]
        assert ray["podSelector"]["matchLabels"].items() <= ours.items()
    assert not ray["podSelector"]["matchLabels"].items() <= labels.items()
    assert ray["ingress"][0] == {"from": [{"podSelector": ray["podSelector"]}]}
    assert tracking["podSelector"]["matchLabels"].items() <= labels.items()
    assert not [name for name in objects({"networkPolicy.enabled": False}) if "Policy" in name]


def allowed_peers(policy: Object) -> dict[Any, list[Object]]:
    """Who may reach each port; the rule without ports is of all ports."""
    return {
        port: rule["from"]
        for rule in policy["spec"]["ingress"]
        for port in [item["port"] for item in rule.get("ports", [])] or ["all"]
    }


def test_the_network_lets_prometheus_and_named_clients_in() -> None:
    client = {"namespaceSelector": {"matchLabels": {"name": "ingress"}}}
    found = objects({"networkPolicy.clients": [client]})
    ray = allowed_peers(found["NetworkPolicy/llavamed-ray"])
    assert ray.keys() == {"all", 8265, "metrics", "as-metrics", "dash-metrics"}
    assert client in ray[8265]
    assert client in allowed_peers(found["NetworkPolicy/llavamed-mlflow"])["http"]
    (prometheus,) = ray["metrics"]
    assert prometheus["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "prometheus"}
    assert client not in ray["all"] + ray["metrics"]
    closed = allowed_peers(objects({"networkPolicy.prometheus": []})["NetworkPolicy/llavamed-ray"])
    assert closed.keys() == {"all", 8265}


def test_every_port_that_a_policy_names_is_a_pods() -> None:
    found = objects()
    head, cpu, a100 = ray_pods(found)
    for pod in (head, cpu, a100, mlflow_pod()):
        names = [port["name"] for port in pod["containers"][0]["ports"]]
        assert len(set(names)) == len(names)
    port = {"name": "metrics", "containerPort": 8080, "protocol": "TCP"}
    for pod in (head, cpu, a100):
        assert port in pod["containers"][0]["ports"]
    spec = found["RayCluster/llavamed"]["spec"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        assert group["rayStartParams"]["metrics-export-port"] == "8080"
    assert {"all", 8265} | {port["name"] for port in head["containers"][0]["ports"]} >= (
        allowed_peers(found["NetworkPolicy/llavamed-ray"]).keys()
    )


def test_notes_tell_the_next_commands() -> None:
    notes = release()["notes"]
    assert "get secret llavamed -o jsonpath='{.data.auth_token}'" in notes
    assert "port-forward service/llavamed-head-svc 8265" in notes
    assert "ray job submit --working-dir . -- python ray_jobs/train.py" in notes
    assert "port-forward service/llavamed-mlflow 5000" in notes


def test_notes_of_a_job_tell_how_to_follow_it() -> None:
    notes = release({"job.enabled": True})["notes"]
    assert "get rayjob llavamed --watch" in notes
    assert "delete rayjob llavamed" in notes
    assert "raycluster" not in notes
    assert "ray job submit" not in notes


def test_notes_of_a_job_warn_where_nothing_starts_its_pods_together() -> None:
    two: dict[str, Any] = {"job.enabled": True, "ray.a100.replicas": 2}
    assert "nothing starts the 2 GPU pods of the job together" in release(two)["notes"]
    volcano = {"job.labels": {"volcano.sh/queue-name": "team"}}
    for values in (two | {"job.queue": "team"}, two | volcano, {"job.enabled": True}):
        assert "nothing starts" not in release(values)["notes"]


def test_notes_tell_what_an_upgrade_changes() -> None:
    assert "delete pods -l ray.io/cluster=llavamed" in release()["notes"]
    notes = release({"ray.upgradeStrategy": "Recreate"})["notes"]
    assert "ends a running job" in notes
    assert "delete pods" not in notes


def test_the_checksum_changes_with_the_pods_only() -> None:
    def checksum(values: dict[str, Any]) -> str:
        annotations = objects(values)["RayCluster/llavamed"]["metadata"]["annotations"]
        found: str = annotations["llavamed/pods"]
        return found

    same: list[dict[str, Any]] = [
        {"ray.cpu.replicas": 4, "ray.a100.replicas": 2, "ray.a100.maxReplicas": 9},
        {"ray.upgradeStrategy": "Recreate"},
        {"mlflow.memory": "4Gi"},
    ]
    assert {checksum(values) for values in same} == {checksum({})}
    for changed in ({"image.tag": "2"}, {"ray.cpu.cpu": 2}, SCALED, {"huggingface.offline": True}):
        assert checksum(changed) != checksum({}), changed


@pytest.mark.parametrize(
    ("values", "warnings"),
    [({}, 2), (POSTGRES, 1), (BUNDLED | BUCKET, 1), (BUCKET, 1), (POSTGRES | BUCKET, 0)],
    ids=["neither", "postgres", "bundled", "bucket", "both"],
)
def test_notes_warn_of_what_is_only_for_trials(values: dict[str, Any], warnings: int) -> None:
    notes = release(values)["notes"]
    assert len(re.findall("^WARNING: MLflow", notes, re.MULTILINE)) == warnings
    assert ("helm uninstall" in notes) == (warnings > 0)


def test_versions_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["version"] == chart["appVersion"] == __version__
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    ray = objects()["RayCluster/llavamed"]["spec"]["rayVersion"]
    assert re.search(rf"^ray(\[.*\])?=={re.escape(ray)}$", pins, re.MULTILINE)
