"""Install, upgrade, roll back and uninstall on a real API server, with helm 3 and 4."""

import json
from typing import Any

import pytest
import yaml

from tests.cluster.control_plane.conftest import Namespace, make_namespace
from tests.support.chart_release import CHART, SCALED
from tests.support.chart_values import BESIDE, OTHER
from tests.support.control_plane import Api, Helm, collection
from tests.support.fake_cluster import make_pods
from tests.support.kubernetes_rules import load_objects

pytestmark = pytest.mark.xdist_group("control plane")

KINDS = (
    "v1/configmaps", "v1/services", "v1/serviceaccounts", "v1/persistentvolumeclaims", "v1/pods",
    "apps/v1/deployments", "networking.k8s.io/v1/networkpolicies", "ray.io/v1/rayclusters",
)  # fmt: skip


def names(namespace: Namespace, release: str = "llavamed") -> set[str]:
    """All that there is of a release, as `kind/name`."""
    found = set()
    for kind in KINDS:
        for item in namespace.get(kind):
            labels = item["metadata"].get("labels", {})
            if labels.get("app.kubernetes.io/instance") == release:
                found.add(f"{kind.rpartition('/')[2]}/{item['metadata']['name']}")
    return found


def replicas(namespace: Namespace) -> list[int]:
    return [group["replicas"] for group in namespace.cluster()["spec"]["workerGroupSpecs"]]


def images(namespace: Namespace) -> set[str]:
    spec = namespace.cluster()["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return {group["template"]["spec"]["containers"][0]["image"] for group in groups}


def test_install_brings_up_mlflow_and_the_rays_pods_run(namespace: Namespace) -> None:
    notes = namespace.install("--wait", "--timeout=60s")
    assert "install the KubeRay operator" not in notes
    deployment = namespace.get("apps/v1/deployments", "llavamed-mlflow")
    assert deployment["status"]["availableReplicas"] == 1
    claim = namespace.get("v1/persistentvolumeclaims", "llavamed-mlflow")
    assert claim["status"]["phase"] == "Bound"
    namespace.helm("test", "llavamed", "--namespace", namespace.name, "--timeout=60s")
    nodes = make_pods(namespace.api, namespace.cluster())
    assert nodes == {"headgroup": "cpu", "cpu": "cpu", "a100": "gpu-operator"}


def test_every_object_is_accepted_without_a_warning(namespace: Namespace) -> None:
    """Neither an unknown field nor a pod that the restricted standard would refuse."""
    rendered = namespace.helm(
        "template", "llavamed", str(CHART), "--namespace", namespace.name, "--kube-version=1.36.0"
    )
    accounts_first = sorted(
        load_objects(rendered), key=lambda item: item["kind"] != "ServiceAccount"
    )
    for item in accounts_first:
        answer = namespace.api.ask("POST", collection(item, namespace.name), item)
        assert answer.status_code == 201, answer.text
        assert "Warning" not in answer.headers, answer.headers["Warning"]


def test_upgrade_changes_counts_at_once_and_says_what_it_does_not_change(
    namespace: Namespace,
) -> None:
    namespace.install()
    notes = namespace.upgrade("--set", "ray.a100.replicas=2", "--set", "ray.cpu.replicas=3")
    assert replicas(namespace) == [3, 2]
    assert "this upgrade changes the Ray pods" not in notes
    notes = namespace.upgrade("--reuse-values", "--set-string", "image.tag=2")
    assert images(namespace) == {"llavamed:2"}
    assert replicas(namespace) == [3, 2]
    assert "this upgrade changes the Ray pods: none that runs now" in notes
    notes = namespace.upgrade(
        "--reuse-values", "--set", "image.tag=v3,ray.upgradeStrategy=Recreate"
    )
    assert "this upgrade changes the Ray pods: KubeRay now replaces all of them" in notes
    assert namespace.cluster()["spec"]["upgradeStrategy"] == {"type": "Recreate"}


def test_rollback_restores_the_settings(namespace: Namespace) -> None:
    namespace.install()
    before = namespace.cluster()["spec"]
    namespace.upgrade("--set", "ray.a100.replicas=2,ray.autoscaling.enabled=true,mlflow.cpu=2")
    assert namespace.cluster()["spec"] != before
    namespace.helm("rollback", "llavamed", "1", "--namespace", namespace.name)
    assert namespace.cluster()["spec"] == before


def test_uninstall_leaves_the_claim_only_and_the_next_install_takes_it(
    namespace: Namespace,
) -> None:
    notes = namespace.install()
    assert "`helm uninstall` leaves the claim llavamed-mlflow" in notes
    claim = namespace.get("v1/persistentvolumeclaims", "llavamed-mlflow")["metadata"]["uid"]
    namespace.helm("uninstall", "llavamed", "--namespace", namespace.name)
    path = f"/api/v1/namespaces/{namespace.name}/pods"
    namespace.api.eventually(path, lambda found: found["items"] == [])
    assert names(namespace) == {"persistentvolumeclaims/llavamed-mlflow"}
    namespace.install()
    kept = namespace.get("v1/persistentvolumeclaims", "llavamed-mlflow")["metadata"]["uid"]
    assert kept == claim


def test_two_releases_share_a_namespace(namespace: Namespace) -> None:
    namespace.install()
    first = names(namespace)
    namespace.install(release="other")
    assert names(namespace) == first
    assert len(names(namespace, "other")) == len(first)
    for policy in namespace.get("networking.k8s.io/v1/networkpolicies"):
        release = policy["metadata"]["labels"]["app.kubernetes.io/instance"]
        assert release in policy["spec"]["podSelector"]["matchLabels"].values()
    service = namespace.get("v1/services", "llavamed-mlflow")["spec"]["selector"]
    assert service["app.kubernetes.io/instance"] == "llavamed"
    namespace.helm("uninstall", "other", "--namespace", namespace.name)
    assert names(namespace) == first


def test_one_release_name_serves_two_namespaces(namespace: Namespace, helm: Helm, tmp_path) -> None:
    other = make_namespace(namespace.api, helm, tmp_path)
    namespace.install()
    other.install()
    other.helm("uninstall", "llavamed", "--namespace", other.name)
    assert namespace.cluster() is not None
    assert other.cluster() is None


FIXED = {"mlflow.persistence.size", "mlflow.persistence.storageClass"}
"""The claim's: Kubernetes lets it grow only where its storage class does, and nothing else."""


def test_every_section_can_be_changed_by_an_upgrade(namespace: Namespace) -> None:
    namespace.install()
    sections: dict[str, dict[str, Any]] = {}
    for name in sorted(OTHER.keys() - FIXED):
        section = sections.setdefault(name.rpartition(".")[0], {})
        section |= {key: given for key, given in BESIDE.get(name, {}).items() if key not in section}
        section[name] = OTHER[name]
    sections["ray.a100"] |= SCALED  # its other bounds exclude its other number of replicas
    for values in sections.values():
        options = [f"--set-json={key}={json.dumps(value)}" for key, value in values.items()]
        namespace.upgrade("--reset-values", *options)


def test_the_service_account_may_do_nothing(namespace: Namespace) -> None:
    """The chart grants no right: KubeRay itself makes the autoscaler's role."""
    namespace.install("--set", "ray.autoscaling.enabled=true")
    account = f"system:serviceaccount:{namespace.name}:llavamed"
    robot = Api(namespace.api.url, namespace.api.certificate, user=account)
    root = f"namespaces/{namespace.name}"
    for path in (
        f"/api/v1/{root}/pods",
        f"/api/v1/{root}/secrets",
        f"/apis/ray.io/v1/{root}/rayclusters",
        "/api/v1/nodes",
    ):
        assert robot.ask("GET", path).status_code == 403
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {}}
    assert robot.ask("POST", f"/api/v1/{root}/pods", pod).status_code == 403
    manifest = namespace.helm("get", "manifest", "llavamed", "--namespace", namespace.name)
    kinds = {item["kind"] for item in yaml.safe_load_all(manifest) if item}
    assert not kinds & {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
