"""Odd values that Kubernetes takes: the chart takes them too, and hands them on as they are."""

import json
from typing import Any

import pytest

from tests.support.chart_release import BUCKET, POSTGRES, environment, objects, ray_pods
from tests.support.kubernetes_rules import Object, core_violations, is_core, pod_specs

TEXTS = [
    *("", "a\nb", "a\n", "a\n\n", "\n", " lead\n and trail ", "\t", "a\r\nb", "\u2028"),
    *('it\'s "so"', "\u2603 \u00e9", "- x", "{{ x }}", "# c", "a: b", "$(HOME)", "x" * 300),
    *("0123", "1e6", "1_000", "0x1f", "0o7", "y", "null", "true", "2026-01-01", "12:30", ".inf"),
]
LABELS = ["", "0123", "1e6", "1_000", "0b1", "07", "1.0", "no", "null", "true", "2026-01-01"]


def is_taken(found: dict[str, Object]) -> bool:
    core = [item for item in found.values() if is_core(item)]
    return [violation for item in core for violation in core_violations(item)] == []


@pytest.mark.parametrize("in_job", [False, True], ids=["cluster", "job"])
def test_texts_stay_as_they_are(in_job: bool) -> None:
    variables = [{"name": f"X{index}", "value": text} for index, text in enumerate(TEXTS)]
    annotations = {f"x{index}": text for index, text in enumerate(TEXTS)}
    for last in (variables[index] for index in (0, 2, 3, 4, 6)):  # white space at the end counts
        given = [each for each in variables if each is not last] + [last]
        found = objects(
            {
                "job.enabled": in_job,
                "job.entrypoint": "echo 'a: \u00e9' \\\\\n  && true\n",
                "ray.extraEnv": given,
                "mlflow.extraEnv": given,
                "serviceAccount.annotations": annotations,
                "mlflow.gc.enabled": True,
            }
            | POSTGRES
            | BUCKET
        )
        assert is_taken(found)
        cluster = found["RayJob/llavamed" if in_job else "RayCluster/llavamed"]
        if in_job:
            assert cluster["spec"]["entrypoint"] == "echo 'a: \u00e9' \\\\\n  && true\n"
            cluster = {"kind": "RayCluster", "spec": cluster["spec"]["rayClusterSpec"]}
        (mlflow,) = pod_specs(found["Deployment/llavamed-mlflow"])
        (collector,) = pod_specs(found["CronJob/llavamed-mlflow-gc"])
        for pod in [
            *pod_specs(cluster),
            mlflow,
            {"containers": mlflow["initContainers"]},
            collector,
        ]:
            told = environment(pod)
            assert [told[each["name"]] for each in variables] == TEXTS
        assert found["ServiceAccount/llavamed"]["metadata"]["annotations"] == annotations


def test_labels_that_look_like_numbers_stay_texts() -> None:
    labels = {f"x{index}": text for index, text in enumerate(LABELS)}
    found = objects(
        {
            "job.labels": labels,
            "monitoring.labels": labels,
            "monitoring.dashboards": True,
            "ray.cpu.nodeSelector": labels,
            "ray.a100.nodeLabel": {"key": "node-role.kubernetes.io/gpu", "value": ""},
            "ray.a100.nodeSelector": labels,
        }
    )
    assert is_taken(found)
    _, cpu, a100 = ray_pods(found)
    assert cpu["nodeSelector"] == labels
    assert a100["nodeSelector"] == labels | {"node-role.kubernetes.io/gpu": ""}
    for name in ("RayCluster/llavamed", "ConfigMap/llavamed-dashboard-data"):
        assert labels.items() <= found[name]["metadata"]["labels"].items()


def test_numbers_of_any_size_stay_numbers() -> None:
    tolerations = [{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3_600_000}]
    security = {"runAsUser": 1_000_650_000}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}
    container = {"name": "x", "image": "x"}
    found = objects(
        {
            "runAsUser": 1_000_650_000,
            "ray.cpu.tolerations": tolerations,
            "ray.a100.extraResources": {"hugepages-2Mi": 10_737_418_240},
            "extraObjects": [
                pod | {"spec": {"securityContext": security, "containers": [container]}}
            ],
        }
    )
    assert is_taken(found)
    _, cpu, a100 = ray_pods(found)
    assert cpu["tolerations"] == tolerations
    assert a100["securityContext"]["runAsUser"] == 1_000_650_000
    assert a100["containers"][0]["resources"]["limits"]["hugepages-2Mi"] == "10737418240"
    assert found["Pod/x"]["spec"]["securityContext"] == security


@pytest.mark.parametrize(
    ("cpu", "asked"),
    [(0.5, "0.5"), ("0.25", "0.25"), ("1500m", "1500m"), (2.0, "2"), (100000, "100000")],
)
def test_a_part_of_a_cpu_may_be_asked_for(cpu: Any, asked: str) -> None:
    found = objects({"mlflow.cpu": cpu, "ray.head.cpu": cpu, "mlflow.memory": "0.5Gi"})
    assert is_taken(found)
    (mlflow,) = pod_specs(found["Deployment/llavamed-mlflow"])
    assert mlflow["containers"][0]["resources"]["limits"] == {"cpu": asked, "memory": "0.5Gi"}
    assert ray_pods(found)[0]["containers"][0]["resources"]["limits"]["cpu"] == asked


def test_no_worker_and_no_list_are_values() -> None:
    none: dict[str, Any] = {
        f"ray.{group}.{key}": 0
        for group in ("cpu", "a100")
        for key in ("replicas", "minReplicas", "maxReplicas")
    }
    empty: dict[str, Any] = {"ray.a100.tolerations": [], "networkPolicy.prometheus": []}
    groups = objects(none | empty)["RayCluster/llavamed"]["spec"]["workerGroupSpecs"]
    assert [group["replicas"] for group in groups] == [0, 0]
    assert "tolerations" not in groups[1]["template"]["spec"]


@pytest.mark.parametrize("schedule", ["@weekly", "*/30 2-4 ? JAN,jul MON-FRI"])
def test_schedules_are_those_of_kubernetes(schedule: str) -> None:
    values = POSTGRES | BUCKET | {"mlflow.gc.enabled": True, "mlflow.gc.schedule": schedule}
    assert objects(values)["CronJob/llavamed-mlflow-gc"]["spec"]["schedule"] == schedule


def test_what_a_user_adds_replaces_what_the_chart_sets() -> None:
    """Kubernetes refuses a variable, a volume or a label that is there twice."""
    server = {"name": "MLFLOW_TRACKING_URI", "value": "https://mlflow.example.org"}
    found = objects(
        {
            "ray.extraEnv": [server, {"name": "NCCL_DEBUG", "value": "INFO"}],
            "ray.a100.extraEnv": [{"name": "NCCL_DEBUG", "value": "WARN"}],
            "mlflow.extraEnv": [{"name": "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "value": "true"}],
            "monitoring.dashboards": True,
            "monitoring.labels": {
                "app.kubernetes.io/instance": "grafana",
                "grafana_dashboard": "2",
            },
        }
    )
    pods = [pod for item in found.values() for pod in pod_specs(item)]
    for pod in pods:
        names = [each["name"] for each in pod["containers"][0].get("env", [])]
        assert len(names) == len(set(names))
    head, _, a100 = ray_pods(found)
    assert environment(head)["MLFLOW_TRACKING_URI"] == "https://mlflow.example.org"
    assert [environment(pod)["NCCL_DEBUG"] for pod in (head, a100)] == ["INFO", "WARN"]
    (mlflow,) = pod_specs(found["Deployment/llavamed-mlflow"])
    assert environment(mlflow)["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "true"
    labels = found["ConfigMap/llavamed-dashboard-training"]["metadata"]["labels"]
    assert (labels["app.kubernetes.io/instance"], labels["grafana_dashboard"]) == ("grafana", "2")


def test_the_dashboards_of_two_releases_are_two_to_grafana() -> None:
    """It takes a title or a uid once, and no dashboard of a provider where one is there twice."""
    seen: list[Any] = []
    for name in ("llavamed", "other"):
        found = objects({"monitoring.dashboards": True}, name)
        texts = [item["data"] for key, item in found.items() if "-dashboard-" in key]
        boards = [json.loads(text) for data in texts for text in data.values()]
        seen += [board[key] for board in boards for key in ("title", "uid")]
        assert all(len(board["uid"]) <= 40 for board in boards)
    assert len(seen) == len(set(seen)) == 12


def test_alerts_are_of_the_release_and_of_the_jobs_made_by_its_settings() -> None:
    """By a label of the pods: the cluster of a job has another name than the release."""
    found = objects({"monitoring.alerts.enabled": True, "monitoring.podMonitors": True})
    (group,) = found["PrometheusRule/llavamed"]["spec"]["groups"]
    ((label, value),) = {"app_kubernetes_io_instance": "llavamed"}.items()
    assert all(f'{label}="{value}"' in rule["expr"] for rule in group["rules"])
    targets = found["PodMonitor/llavamed-ray"]["spec"]["podTargetLabels"]
    assert label in [each.replace(".", "_").replace("/", "_") for each in targets]
    cluster = found["RayCluster/llavamed"]["spec"]
    for part in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert part["template"]["metadata"]["labels"]["app.kubernetes.io/instance"] == value
