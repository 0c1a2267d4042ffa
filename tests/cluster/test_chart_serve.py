"""The service of the chart: what Ray Serve runs, who may reach it, and how the model is changed."""

from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from llavamed.cluster.rules import broken_rules
from llavamed.serve.cluster import Replicas, app
from tests.support.chart_release import CHART, SERVED, environment, hook_pods, objects, release
from tests.support.chat_endpoint import chat_endpoint
from tests.support.container_process import ContainerProcess
from tests.support.kubernetes_rules import Object, custom_violations, pod_specs

ON_CPUS: dict[str, Any] = SERVED | {"serve.gpus": 0, "serve.replicas": 3}


def service(values: dict[str, Any]) -> Object:
    found: Object = objects(values)["RayService/llavamed-serve"]
    return found


@pytest.mark.parametrize("values", [SERVED, ON_CPUS], ids=["gpu", "cpu"])
def test_kuberay_accepts_the_service(values: dict[str, Any], reference_data: Path) -> None:
    made = service(values)
    assert custom_violations(made, reference_data / "data" / "kuberay-crds") == []
    cluster = {"kind": "RayCluster", "metadata": made["metadata"]}
    assert broken_rules(cluster | {"spec": made["spec"]["rayClusterConfig"]}) == []


def test_a_replica_has_more_memory_than_shared_memory() -> None:
    with pytest.raises(helm_python.HelmError, match=r"serve\.memory=2Gi: 2Gi of it are /dev/shm, "):
        objects(SERVED | {"serve.memory": "2Gi"})
    assert service(SERVED | {"serve.memory": "2049Mi"})


def test_ray_serve_runs_our_application_with_its_settings() -> None:
    config = ServeDeploySchema.model_validate(
        yaml.safe_load(service(ON_CPUS)["spec"]["serveConfigV2"])
    )
    assert (config.http_options.host, config.http_options.port) == ("0.0.0.0", 8000)
    (application,) = config.applications
    assert application.import_path == f"{app.__module__}:{app.__name__}"
    replicas = Replicas.model_validate(application.args)
    assert replicas.export == SERVED["serve.export"]
    assert (replicas.min_replicas, replicas.max_replicas, replicas.num_gpus) == (3, 3, 0)


def test_every_replica_has_a_pod_with_its_gpus_and_the_token() -> None:
    for values, gpus in ((SERVED, "1"), (ON_CPUS, None)):
        spec = service(values)["spec"]["rayClusterConfig"]
        (group,) = spec["workerGroupSpecs"]
        assert group["replicas"] == values.get("serve.replicas", 1)
        head, worker = pod_specs({"kind": "RayCluster", "spec": spec})
        assert worker["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") == gpus
        assert ("nvidia.com/gpu.product" in worker.get("nodeSelector", {})) == (gpus is not None)
        for pod in (head, worker):
            (token,) = [
                item
                for item in pod["containers"][0]["env"]
                if item["name"] == Replicas().serving.token_env
            ]
            assert token["valueFrom"]["secretKeyRef"] == {"name": "token", "key": "token"}
            port = {"name": "serve", "containerPort": 8000, "protocol": "TCP"}
            assert port in pod["containers"][0]["ports"]


def test_another_model_comes_up_on_a_cluster_beside_the_old_one() -> None:
    """KubeRay makes a new cluster where the pods change, and changes the old one where not."""
    first, second = service(SERVED), service(SERVED | {"serve.export": "s3://bucket/better"})
    assert first["spec"]["upgradeStrategy"] == {"type": "NewCluster"}
    assert first["spec"]["rayClusterConfig"] != second["spec"]["rayClusterConfig"]


def test_an_alias_is_resolved_again_on_another_cluster_at_another_revision() -> None:
    champion = SERVED | {"serve.export": "models:/rad@champion"}
    first, second = service(champion), service(champion | {"serve.revision": 1764127000})
    head = second["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
    assert head["metadata"]["annotations"]["llavamed/revision"] == "1764127000"
    config = yaml.safe_load(first["spec"]["serveConfigV2"])
    assert config["applications"][0]["args"]["export"] == "models:/rad@champion"
    assert first["spec"]["serveConfigV2"] == second["spec"]["serveConfigV2"]
    assert first["spec"]["rayClusterConfig"] != second["spec"]["rayClusterConfig"]
    for pod in pod_specs(
        {"kind": "RayCluster", "spec": first["spec"]["rayClusterConfig"]}
    ):  # the head asks the registry
        assert environment(pod)["MLFLOW_TRACKING_URI"] == "http://llavamed-mlflow:5000"


def test_the_service_keeps_apart_from_the_standing_cluster() -> None:
    found = objects(SERVED)
    budget = found["PodDisruptionBudget/llavamed-head"]["spec"]["selector"]["matchLabels"]
    policy = found["NetworkPolicy/llavamed-serve"]["spec"]
    spec = found["RayService/llavamed-serve"]["spec"]["rayClusterConfig"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        labels = group["template"]["metadata"]["labels"]
        assert not budget.items() <= labels.items()
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    (rule,) = policy["ingress"]
    labels = {"app.kubernetes.io/component": "kuberay-operator"}
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": labels}}
    assert rule == {"ports": [{"port": "serve"}], "from": [{"podSelector": {}}, operator]}


def test_the_notes_say_how_to_open_the_page() -> None:
    notes = release(SERVED)["notes"]
    assert "port-forward service/llavamed-serve-serve-svc 8000" in notes
    assert "http://localhost:8000" in notes


def test_helm_test_asks_one_question(tmp_path: Path) -> None:
    pod = hook_pods(SERVED)["llavamed-test-serve"]
    assert environment(pod)["LLAVAMED_SERVE_URL"] == "http://llavamed-serve-serve-svc:8000"
    with chat_endpoint() as endpoint:
        given = {"LLAVAMED_SERVE_URL": endpoint.url.removesuffix("/v1")}
        ContainerProcess(
            pod["containers"][0], tmp_path, {"token": {"token": "secret,another\n"}}, given
        ).run()
        assert endpoint.headers[0]["authorization"] == "Bearer secret"
    assert "llavamed-test-serve" not in hook_pods({})


def test_the_chart_has_no_model_without_an_export() -> None:
    assert not [name for name in objects() if "serve" in name.lower()]
    assert (CHART / "scripts" / "test_serve.py").is_file()
