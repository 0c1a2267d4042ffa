"""The traits that helm/README.md lists, where no other file tests them, and that list itself."""

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import ray
import yaml

from llavamed.train.metrics import METRICS
from tests.support.chart_release import (
    BUCKET,
    BUNDLED,
    CHART,
    POSTGRES,
    ROOT,
    SERVED,
    objects,
    ray_pods,
)
from tests.support.kubernetes_rules import Object, pod_specs

README = (CHART / "README.md").read_text(encoding="utf-8")


def rows(head: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    section = README.split(f"## {head}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_traits_name_values_and_tests_that_exist() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    for _, names, _, test in rows("Traits"):
        for name in re.findall(r"`([\w.]+)`", names):
            place: Any = values
            for key in name.split("."):
                place = place[key]
        for name in re.findall(r"`(helm/\w+)`", names):
            assert (ROOT / name).is_dir()
        assert (ROOT / "tests" / "cluster" / test.strip("`")).is_file(), test


PODS: dict[str, tuple[str, dict[str, str]]] = {
    "pods of the namespace": ("research", {"app": "notebook"}),
    "KubeRay operator": ("kuberay", {"app.kubernetes.io/component": "kuberay-operator"}),
    "GKE's API server": ("kube-system", {"k8s-app": "konnectivity-agent"}),
    "AKS's API server": ("kube-system", {"app": "konnectivity-agent"}),
    "`networkPolicy.clients`": ("ingress", {"app": "nginx"}),
    "`networkPolicy.prometheus`": ("monitoring", {"app.kubernetes.io/name": "prometheus"}),
    "anybody else": ("other", {"app": "x"}),
    "anybody else by that name": ("other", {"app": "konnectivity-agent"}),
}
PORTS = {8265, 5000, 5432, 8000, 8080, 44217, 44227, 6379, 10001}


def selects(selector: Object, labels: dict[str, str]) -> bool:
    assert not selector.get("matchExpressions")
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def is_from(peer: Object, namespace: str, labels: dict[str, str]) -> bool:
    if "namespaceSelector" in peer:
        names = {"kubernetes.io/metadata.name": namespace}
        if not selects(peer["namespaceSelector"], names):
            return False
    elif namespace != "research":
        return False
    return selects(peer.get("podSelector", {}), labels)


def allowed(policy: Object, pod: Object, source: tuple[str, dict[str, str]]) -> set[int]:
    """The ports of a pod that a source may reach; all of them where a rule names none."""
    named = {p["name"]: p["containerPort"] for p in pod["containers"][0]["ports"]}
    found: set[int] = set()
    for rule in policy["spec"]["ingress"]:
        if any(is_from(peer, *source) for peer in rule["from"]):
            ports = [item["port"] for item in rule.get("ports", [])]
            found |= {named.get(port, port) for port in ports} if ports else PORTS
    return found


def test_the_policies_allow_the_flows_of_the_table_and_no_other() -> None:
    client = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}
    values = {"networkPolicy.clients": [client], "mlflow.metrics": True, "mlflow.gc.enabled": True}
    found = objects(values | BUNDLED | BUCKET | SERVED)
    ray_labels = found["RayCluster/llavamed"]["spec"]["headGroupSpec"]["template"]["metadata"]
    job = found["CronJob/llavamed-mlflow-gc"]["spec"]["jobTemplate"]["spec"]
    labels = {
        "Ray pods of the release": ray_labels,
        "MLflow": found["Deployment/llavamed-mlflow"]["spec"]["template"]["metadata"],
        "its garbage collection": job["template"]["metadata"],
    }
    sources = PODS | {name: ("research", given["labels"]) for name, given in labels.items()}
    targets = {
        "Ray pods": (found["NetworkPolicy/llavamed-ray"], ray_pods(found)[0]),
        "MLflow": (
            found["NetworkPolicy/llavamed-mlflow"],
            found["Deployment/llavamed-mlflow"]["spec"]["template"]["spec"],
        ),
        "the service": (
            found["NetworkPolicy/llavamed-serve"],
            pod_specs(found["RayService/llavamed-serve"])[0],
        ),
        "the bundled PostgreSQL": (
            found["NetworkPolicy/llavamed-postgres"],
            found["StatefulSet/llavamed-postgres"]["spec"]["template"]["spec"],
        ),
    }
    table: dict[tuple[str, str], set[int]] = {}
    for names, target, ports in rows("Who may reach what"):
        numbers = PORTS if ports == "all" else {int(port) for port in re.findall(r"\d+", ports)}
        table |= {(source, target): numbers for source in names.split(" and ")}
    for source in labels:  # they are pods of the namespace, too
        for target in ("Ray pods", "MLflow", "the service"):
            table.setdefault((source, target), table["pods of the namespace", target])
    for name, source in sources.items():
        for target, (policy, pod) in targets.items():
            reached = allowed(policy, pod, source)
            assert reached == table.get((name, target), set()), (name, target)


def test_identity_placement_and_priority_reach_the_pods() -> None:
    role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/llavamed"}
    found = objects(
        {
            "serviceAccount.annotations": role,
            "ray.priorityClass": "training",
            "mlflow.priorityClass": "services",
            "mlflow.image": "registry.example.org/mlflow:3.17.2",
            "runAsUser": 0,
        }
    )
    assert found["ServiceAccount/llavamed"]["metadata"]["annotations"] == role
    assert {pod["priorityClassName"] for pod in ray_pods(found)} == {"training"}
    (mlflow,) = pod_specs(found["Deployment/llavamed-mlflow"])
    assert mlflow["priorityClassName"] == "services"
    images = {item["image"] for item in [*mlflow["initContainers"], *mlflow["containers"]]}
    assert images == {"registry.example.org/mlflow:3.17.2"}
    for pod in [*ray_pods(found), mlflow]:
        assert not {"runAsUser", "fsGroup"} & pod["securityContext"].keys()


def test_an_account_of_your_own_takes_the_place_of_the_charts() -> None:
    values = SERVED | POSTGRES | BUCKET | {"mlflow.gc.enabled": True, "image.prePull": True}
    found = objects(values | {"serviceAccount.name": "team"})
    assert not any(name.startswith("ServiceAccount/") for name in found)
    pods = [pod for item in found.values() for pod in pod_specs(item)]
    assert {pod["serviceAccountName"] for pod in pods} == {"team"}


def test_claims_volumes_and_variables_reach_every_ray_pod() -> None:
    found = objects(
        {
            "ray.claims": [{"claim": "datasets", "mountPath": "/data", "readOnly": True}],
            "ray.extraVolumes": [{"name": "scratch", "emptyDir": {}}],
            "ray.extraVolumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
            "ray.extraEnv": [{"name": "NCCL_DEBUG", "value": "INFO"}],
            "extraObjects": [
                {
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": "{{ .Release.Name }}-extra"},
                }
            ],
        }
    )
    assert "ConfigMap/llavamed-extra" in found
    for pod in ray_pods(found):
        container = pod["containers"][0]
        mounts = {item["mountPath"]: item for item in container["volumeMounts"]}
        volumes = {item["name"]: item for item in pod["volumes"]}
        claim = volumes[mounts["/data"]["name"]]["persistentVolumeClaim"]
        assert claim == {"claimName": "datasets", "readOnly": True}
        assert mounts["/data"]["readOnly"] is True
        assert volumes[mounts["/scratch"]["name"]] == {"name": "scratch", "emptyDir": {}}
        assert {"name": "NCCL_DEBUG", "value": "INFO"} in container["env"]


def test_the_image_is_pulled_where_training_will_run() -> None:
    found = objects(
        {"image.prePull": True, "ray.gpuGroups": [{"name": "h100", "nodeSelector": {"a": "b"}}]}
    )
    _, _, a100, h100 = ray_pods(found)
    for pod, name in ((a100, "a100"), (h100, "h100")):
        (pull,) = pod_specs(found[f"DaemonSet/llavamed-pull-{name}"])
        assert pull["nodeSelector"] == pod["nodeSelector"]
        assert pull["tolerations"] == pod["tolerations"]
        assert pull["containers"][0]["image"] == pod["containers"][0]["image"]
        assert "nvidia.com/gpu" not in pull["containers"][0]["resources"]["limits"]


def test_external_secrets_are_made_under_the_names_that_pods_read() -> None:
    found = objects(
        POSTGRES
        | {
            "storage.existingSecret": "keys",
            "externalSecrets.storeName": "vault",
            "externalSecrets.storageKey": "team/s3",
            "externalSecrets.databaseKey": "team/database",
        }
    )
    made = {
        name.partition("/")[2]: item["spec"]["dataFrom"]
        for name, item in found.items()
        if item["kind"] == "ExternalSecret"
    }
    defaults = {
        "conversionStrategy": "Default",
        "decodingStrategy": "None",
        "metadataPolicy": "None",
    }
    assert made == {
        "keys": [{"extract": {"key": "team/s3"} | defaults}],
        "database": [{"extract": {"key": "team/database"} | defaults}],
    }


def metric_names(text: str) -> set[str]:
    return set(re.findall(r"\bray_(?!io_)[a-z_]+", text))


def test_dashboards_and_alerts_ask_for_metrics_that_exist() -> None:
    known = (Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards").glob(
        "*.py"
    )
    of_ray = metric_names("".join(file.read_text(encoding="utf-8") for file in known))
    ends = {"gauge": [""], "counter": [""], "histogram": ["_sum", "_count"]}
    told = [metric for metric in METRICS if metric.prometheus]
    ours = {metric.prometheus + end for metric in told for end in ends[metric.kind]}
    values = {"monitoring.dashboards": True, "monitoring.alerts.enabled": True}
    found = objects(values | {"monitoring.labels": {"release": "prometheus"}})
    dashboards = [
        item for item in found.values() if "grafana_dashboard" in item["metadata"]["labels"]
    ]
    assert len(dashboards) == 3
    (group,) = found["PrometheusRule/llavamed"]["spec"]["groups"]
    queries = [rule["expr"] for rule in group["rules"]]
    for item in dashboards:
        (text,) = item["data"].values()
        panels = json.loads(text)["panels"]
        queries += [target["expr"] for panel in panels for target in panel["targets"]]
    for query in queries:
        promql_parser.parse(query.replace("$__rate_interval", "5m"))  # Grafana's variable
    asked = metric_names(" ".join(queries))
    assert len(asked) > 15
    assert asked <= of_ray | {f"ray_llavamed_{name}" for name in ours}
    for item in [*dashboards, found["PrometheusRule/llavamed"]]:
        assert item["metadata"]["labels"]["release"] == "prometheus"


def test_the_monitors_ask_ports_that_the_pods_have() -> None:
    values = {"monitoring.podMonitors": True, "mlflow.metrics": True}
    found = objects(values | {"mlflow.auth.existingSecret": "users"})
    head, *_ = ray_pods(found)
    (mlflow,) = pod_specs(found["Deployment/llavamed-mlflow"])
    for monitor, pod in (("llavamed-ray", head), ("llavamed-mlflow", mlflow)):
        endpoints = found[f"PodMonitor/{monitor}"]["spec"]["podMetricsEndpoints"]
        names = {port["name"] for port in pod["containers"][0]["ports"]}
        assert {endpoint["port"] for endpoint in endpoints} <= names
    assert endpoints[0]["basicAuth"]["password"] == {"name": "users", "key": "password"}


def test_garbage_is_collected_only_where_no_claim_is_needed() -> None:
    on = {"mlflow.gc.enabled": True}
    job = objects(on | POSTGRES | BUCKET)["CronJob/llavamed-mlflow-gc"]["spec"]
    assert job["concurrencyPolicy"] == "Forbid"
