"""What `doctor` leaves out, because it is not about the pods of a run."""

import pytest

from llavamed.cluster.kinds import EVENT, QUOTA, RAY_CLUSTER, RAY_JOB, SERVICE_ACCOUNT, Object
from llavamed.cluster.pods import pods_that_fit
from tests.support.healthy_namespace import a100, healthy, named, problems
from tests.support.ray_objects import manifest

NONE_LEFT = {"requests.nvidia.com/gpu": "0"}
PRIORITY = {"scopeName": "PriorityClass", "operator": "In", "values": ["spot"]}


@pytest.mark.parametrize(
    ("spec", "counts"),
    [
        ({}, True),
        ({"scopes": ["NotTerminating", "NotBestEffort"]}, True),
        ({"scopes": ["BestEffort"]}, False),
        ({"scopes": ["Terminating"]}, False),
        ({"scopes": ["PriorityClass"]}, False),
        ({"scopes": ["VolumeAttributesClass"]}, False),
        ({"scopeSelector": {"matchExpressions": [PRIORITY]}}, False),
        ({"scopeSelector": {"matchExpressions": [PRIORITY | {"operator": "NotIn"}]}}, True),
        ({"scopeSelector": {"matchExpressions": [PRIORITY | {"operator": "DoesNotExist"}]}}, True),
    ],
)
def test_a_quota_counts_the_pods_in_its_scopes(spec: Object, counts: bool) -> None:
    found = healthy()
    found.objects[QUOTA].append(named("team", spec={"hard": NONE_LEFT} | spec))
    assert bool(problems(found)) == counts
    a100(found)["template"]["spec"]["priorityClassName"] = "spot"
    if PRIORITY in (spec.get("scopeSelector") or {}).get("matchExpressions", []):
        assert "ResourceQuota team leaves" in problems(found)[0].text


@pytest.mark.parametrize(
    ("kind", "name", "matters"),
    [
        ("RayCluster", "llavamed", True),
        ("RayCluster", "deleted", False),
        ("ReplicaSet", "llavamed-mlflow-5d8f", True),
        ("ReplicaSet", "website-5d8f", False),
        ("HorizontalPodAutoscaler", "website", False),
    ],
)
def test_events_of_others_and_of_what_is_gone_are_no_failures(
    kind: str, name: str, matters: bool
) -> None:
    found = healthy()
    about = {"kind": kind, "name": name}
    said = {"reason": "FailedCreate", "message": "exceeded quota: gpus", "type": "Warning"}
    found.objects[EVENT].append(said | {"involvedObject": about})
    assert bool(problems(found)) == matters
    found.all(RAY_CLUSTER)[0]["status"] = {"state": "ready"}
    assert bool(problems(found)) == (matters and kind != "RayCluster")


def test_a_job_that_is_over_needs_nothing_any_more() -> None:
    found = healthy()
    job = manifest("rayjob")
    job["metadata"]["name"] = "old"
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        group["template"]["spec"]["serviceAccountName"] = "gone"
    found.objects[RAY_JOB] = [job]
    assert any("ServiceAccount gone" in each.text for each in problems(found))
    job["status"] = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    assert problems(found) == []


def test_a_node_that_has_just_come_has_no_room() -> None:
    assert pods_that_fit({"containers": [{"name": "x"}]}, [named("new", status={})]) == 10**6
    spec = {"containers": [{"name": "x", "resources": {"requests": {"cpu": "1"}}}]}
    assert pods_that_fit(spec, [named("new")]) == 0


@pytest.mark.parametrize(
    "name", ["AWS_SHARED_CREDENTIALS_FILE", "GOOGLE_APPLICATION_CREDENTIALS", "AWS_ACCESS_KEY_ID"]
)
def test_a_variable_that_leads_to_credentials_is_one_way_to_have_them(name: str) -> None:
    found = healthy()
    found.all(SERVICE_ACCOUNT)[0]["metadata"].pop("annotations")
    spec = found.all(RAY_CLUSTER)[0]["spec"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        group["template"]["spec"]["containers"][0]["env"].append({"name": name, "value": "x"})
    assert problems(found) == []
