"""Install, upgrade, roll back and uninstall on a real API server, with helm 3 and 4."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.control_plane.conftest import Namespace, make_namespace
from tests.support.chart_release import BUNDLED, CHART, SCALED, SERVED
from tests.support.chart_values import ALL, BESIDE, OTHER, check_refusal, given
from tests.support.control_plane import Api, Helm, collection
from tests.support.fake_cluster import make_pods
from tests.support.kubernetes_rules import load_objects

pytestmark = pytest.mark.xdist_group("another control plane")  # half of the work

KEPT = {
    "PersistentVolumeClaim/llavamed-mlflow",
    "PersistentVolumeClaim/llavamed-postgres",
    "Secret/llavamed-postgres",
}
TESTED = {f"Pod/llavamed-test-{name}" for name in ("mlflow", "curriculum", "serve")}
WITH_ALL_OBJECTS: dict[str, Any] = (
    BUNDLED
    | SERVED
    | {
        "image.prePull": True,
        "mlflow.metrics": True,
        "monitoring.podMonitors": True,
        "monitoring.dashboards": True,
        "monitoring.alerts.enabled": True,
    }
)
"""What makes an object of every kind that the chart has, but for garbage collection's."""


FIXED = {
    "mlflow.persistence.size", "mlflow.persistence.storageClass", "mlflow.database.bundled.size"
}  # fmt: skip
"""The claims': Kubernetes lets them grow only where their storage class does, and nothing else."""


def options(values: dict[str, Any]) -> list[str]:
    """Options of helm that set these values."""
    return [f"--set-json={name}={json.dumps(value)}" for name, value in values.items()]


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


def test_the_longest_name_of_a_release_is_short_enough_for_what_is_made_of_it(
    namespace: Namespace,
) -> None:
    """Kubernetes makes longer names and labels of ours, and says only in events what it cannot."""
    collected = {"mlflow.gc.enabled": True, "mlflow.artifacts.destination": "s3://bucket/mlflow"}
    chosen = options(BUNDLED | collected | {"image.prePull": True})
    for length in (42, 43):
        ran = namespace.helm.run(
            "install", "a" * length, str(CHART), f"-n={namespace.name}", *chosen
        )
        assert (ran.returncode == 0) == (length == 42), ran.stderr
    path = f"/api/v1/namespaces/{namespace.name}/pods/{'a' * 42}-postgres-0"
    namespace.api.eventually(path, lambda found: found is not None)


@pytest.mark.parametrize("values", [{}, ALL, WITH_ALL_OBJECTS], ids=["default", "all", "objects"])
def test_every_object_is_accepted_without_a_warning(
    values: dict[str, Any], namespace: Namespace
) -> None:
    """Neither an unknown field nor a pod that the restricted standard would refuse."""
    given = [*options(values), "--namespace", namespace.name, "--kube-version=1.36.0"]
    rendered = namespace.helm("template", "llavamed", str(CHART), *given)
    accounts_first = sorted(
        load_objects(rendered), key=lambda item: item["kind"] != "ServiceAccount"
    )
    for item in accounts_first:
        path = collection(item, namespace.name)
        answer = namespace.api.ask("POST", path, item)
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
    assert "this upgrade changes the Ray pods: no running pod gets" in notes
    recreate = ("--reuse-values", "--set", "image.tag=v3,ray.upgradeStrategy=Recreate")
    ahead = namespace.upgrade(*recreate, "--dry-run=server")
    assert images(namespace) == {"llavamed:2"}
    for notes in (ahead, namespace.upgrade(*recreate)):
        assert "this upgrade changes the Ray pods: KubeRay now replaces all of them" in notes
    assert namespace.cluster()["spec"]["upgradeStrategy"] == {"type": "Recreate"}


def state(namespace: Namespace) -> dict[str, Any]:
    """What the objects of a release ask for, and not which volumes their claims have got."""
    return {
        name: {"data": item.get("data"), "spec": item.get("spec", {}) | {"volumeName": None}}
        for name, item in namespace.objects().items()
    }


def test_rollback_restores_every_object(namespace: Namespace) -> None:
    namespace.install(*options(BUNDLED))
    before = state(namespace)
    changed = {name: OTHER[name] for name in ALL.keys() - FIXED - {"extraObjects"}} | SCALED
    namespace.upgrade("--reset-values", *options(changed))
    assert state(namespace)["RayCluster/llavamed"] != before["RayCluster/llavamed"]
    namespace.helm("rollback", "llavamed", "1", "--namespace", namespace.name)
    assert state(namespace) == before


def test_uninstall_leaves_what_it_says_and_the_next_install_takes_it(namespace: Namespace) -> None:
    notes = namespace.install(*options(WITH_ALL_OBJECTS))
    before = namespace.objects()
    (command,) = re.findall(r"kubectl -n \S+ delete (.*/llavamed-mlflow.*)", notes)
    names = {name.lower(): name for name in before}
    assert {names[word] for word in command.split()} == KEPT
    namespace.helm("test", "llavamed", "--namespace", namespace.name, "--timeout=60s")
    namespace.helm("uninstall", "llavamed", "--namespace", namespace.name)
    path = f"/api/v1/namespaces/{namespace.name}/pods"
    namespace.api.eventually(path, lambda found: len(found["items"]) == len(TESTED))
    assert namespace.objects().keys() == KEPT | TESTED
    namespace.install(*options(WITH_ALL_OBJECTS))
    after = namespace.objects()
    for name in KEPT:
        assert after[name]["metadata"]["uid"] == before[name]["metadata"]["uid"]
    assert after["Secret/llavamed-postgres"]["data"] == before["Secret/llavamed-postgres"]["data"]


def test_two_releases_share_a_namespace(namespace: Namespace) -> None:
    namespace.install(*options(WITH_ALL_OBJECTS))
    first = namespace.objects()
    namespace.install(*options(WITH_ALL_OBJECTS), release="other")
    second = namespace.objects("other")
    assert {name.replace("other", "llavamed") for name in second} == first.keys()
    for item in [*first.values(), *second.values()]:
        release = item["metadata"]["labels"]["app.kubernetes.io/instance"]
        # What selects pods selects those of its release.
        selectors = [item.get("spec", {}).get(key) for key in ("selector", "podSelector")]
        for selector in filter(None, selectors):
            assert release in selector.get("matchLabels", selector).values()
    namespace.helm("uninstall", "other", "--namespace", namespace.name)
    assert {name: item["metadata"]["uid"] for name, item in namespace.objects().items()} == {
        name: item["metadata"]["uid"] for name, item in first.items()
    }


def test_one_release_name_serves_two_namespaces(namespace: Namespace, helm: Helm, tmp_path) -> None:
    other = make_namespace(namespace.api, helm, tmp_path)
    namespace.install()
    other.install()
    assert namespace.objects().keys() == other.objects().keys()
    other.helm("uninstall", "llavamed", "--namespace", other.name)
    assert namespace.cluster() is not None
    assert other.cluster() is None


def test_every_section_can_be_changed_by_an_upgrade(namespace: Namespace) -> None:
    namespace.install()
    for section in sorted({name.partition(".")[0] for name in OTHER}):
        values = {name: OTHER[name] for name in OTHER if name.partition(".")[0] == section}
        for name in sorted(values):
            values = BESIDE.get(name, {}) | values
        # The bundled database excludes the one of the Secret, a server of one's own both, and an
        # account of one's own the annotations.
        excluded = FIXED | BUNDLED.keys() | OF_ONES_OWN.keys()
        namespace.upgrade("--reset-values", *options(without(values, excluded)))


def without(values: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


OF_ONES_OWN = {name: OTHER[name] for name in ("mlflow.trackingUri", "serviceAccount.name")}
OF_A_JOB = {name: OTHER[name] for name in OTHER if name.startswith("job.")} | BUNDLED
TOGETHER = {
    "most": without(ALL, FIXED),
    "job": OF_A_JOB | {"ray.a100.capabilities": OTHER["ray.a100.capabilities"]},
    "of-ones-own": OF_ONES_OWN,
}
"""All values but the fixed ones, in sets that fit together."""


@pytest.mark.parametrize("values", TOGETHER.values(), ids=TOGETHER)
def test_every_value_can_be_given_to_an_upgrade_in_every_way(
    values: dict[str, Any], namespace: Namespace, tmp_path: Path
) -> None:
    """By `--set`, by `--set-string` where it is a text, and by a file: the objects are the same."""
    assert {name for part in TOGETHER.values() for name in part} == OTHER.keys() - FIXED
    namespace.install()
    releases = []
    for way in ("set", "set-string", "file"):
        words = [
            word
            for name, value in values.items()
            for word in given(
                "set" if way == "set-string" and not isinstance(value, str) else way,
                name,
                tmp_path,
                value,
            )
        ]
        namespace.upgrade("--reset-values", *words)
        made = namespace.helm("get", "manifest", "llavamed", "--namespace", namespace.name)
        releases.append(made)
    assert releases[0] == releases[1] == releases[2]


def test_an_upgrade_with_null_changes_nothing(namespace: Namespace) -> None:
    namespace.install()
    before = state(namespace)
    nulls = [f"--set={name}=null" for name in OTHER]
    for reuse in ("--reset-values", "--reuse-values", "--reset-then-reuse-values"):
        path = str(CHART)
        ran = namespace.helm.run(
            "upgrade", "llavamed", path, "--namespace", namespace.name, reuse, *nulls
        )
        assert ran.returncode != 0
        for name in OTHER:
            check_refusal(ran.stderr, name)
    assert state(namespace) == before
    status = namespace.helm("history", "llavamed", "--namespace", namespace.name, "--output=json")
    assert len(json.loads(status)) == 1


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


def test_an_upgrade_keeps_the_workers_of_the_autoscaler(namespace: Namespace) -> None:
    """It writes into the worker groups, which have one owner as a whole."""
    scaled = options(SCALED)
    namespace.install(*scaled)
    path = f"/apis/ray.io/v1/namespaces/{namespace.name}/rayclusters/llavamed"
    groups = namespace.cluster()["spec"]["workerGroupSpecs"]
    groups[0] |= {"replicas": 3, "scaleStrategy": {"workersToDelete": []}}
    wanted = {"spec": {"workerGroupSpecs": groups}}
    assert namespace.api.ask("PATCH", path, wanted).status_code == 200
    namespace.upgrade(*scaled, "--set=mlflow.cpu=2")
    assert namespace.cluster()["spec"]["workerGroupSpecs"] == groups
    is_refused = namespace.helm.path.name == "helm4"  # as the chart's README says
    forced = ["--force-conflicts"] if is_refused else []
    namespace.upgrade(*scaled, "--set=ray.cpu.maxReplicas=9", *forced)
    cpu, _ = namespace.cluster()["spec"]["workerGroupSpecs"]
    assert (cpu["maxReplicas"], cpu["replicas"]) == (9, 3)
    assert cpu["scaleStrategy"] == {"workersToDelete": []}


def test_an_upgrade_keeps_what_kueue_wrote_into_a_job(namespace: Namespace) -> None:
    queued = options({"job.enabled": True, "job.queue": "team"})
    namespace.install(*queued)
    path = f"/apis/ray.io/v1/namespaces/{namespace.name}/rayjobs/llavamed"
    groups = namespace.api.get(path)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    groups[1]["template"]["spec"]["nodeSelector"]["pool"] = "flavor"
    wanted = {"spec": {"suspend": False, "rayClusterSpec": {"workerGroupSpecs": groups}}}
    assert namespace.api.ask("PATCH", path, wanted).status_code == 200
    namespace.upgrade(*queued, "--set=mlflow.cpu=2")
    spec = namespace.api.get(path)["spec"]
    assert spec["rayClusterSpec"]["workerGroupSpecs"] == groups
    assert spec["suspend"] is False
