"""KubeRay's own rules: what its operator refuses is named, and what we make breaks none."""

from typing import Any

import pytest

from llavamed.cluster.rules import broken_rules
from tests.support.ray_objects import manifest, service


def deleting(*policies: tuple[str, int]) -> dict[str, Any]:
    rules = [
        {"policy": policy, "condition": {"jobStatus": "FAILED", "ttlSeconds": seconds}}
        for policy, seconds in policies
    ]
    return {"deletionStrategy": {"deletionRules": rules}}


def broken_job(**changes: Any) -> list[str]:
    job = manifest("rayjob")
    job["spec"].update(changes)
    return broken_rules(job)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suspend": True}, "suspend=true: needs shutdownAfterJobFinishes"),
        ({"ttlSecondsAfterFinished": 5}, "ttlSecondsAfterFinished: needs shutdownAfterJobFin"),
        ({"shutdownAfterJobFinishes": True}, "deletionStrategy: excludes shutdownAfterJobFinis"),
        ({"submissionMode": "InteractiveMode"}, "InteractiveMode: excludes backoffLimit"),
        ({"clusterSelector": {"a": "b"}}, "must have one of rayClusterSpec and clusterSelector"),
        (deleting(("DeleteSelf", 5), ("DeleteSelf", 9)), "a rule twice, DeleteSelf at FAILED"),
        (
            deleting(("DeleteCluster", 5), ("DeleteWorkers", 9)),
            "at FAILED, DeleteWorkers comes 9 s after the end and DeleteCluster 5 s; delete work",
        ),
        (
            {"clusterSelector": {"a": "b"}},
            "DeleteCluster excludes clusterSelector; remove the rule",
        ),
    ],
)
def test_a_job_that_the_operator_refuses(changes: dict[str, Any], message: str) -> None:
    assert any(message in rule for rule in broken_job(**changes)), broken_job(**changes)


INCREMENTAL = {"upgradeStrategy": {"type": "NewClusterWithIncrementalUpgrade"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"upgradeStrategy": {"type": "Recreate"}},
            "Recreate: is not known; use one of NewCluster",
        ),
        ({"rayClusterDeletionDelaySeconds": -1}, "DeletionDelaySeconds=-1: is negative; use 0 or"),
        (INCREMENTAL, "NewClusterWithIncrementalUpgrade: needs enableInTreeAutoscaling; set it"),
        (INCREMENTAL, "needs clusterUpgradeOptions.gatewayClassName; set it, or use NewCluster"),
        (
            {"rayClusterConfig": {"headGroupSpec": {"headService": {"metadata": {"name": "a"}}}}},
            "headService.metadata.name: KubeRay names the service itself; remove it",
        ),
        (
            {
                "rayClusterConfig": {
                    "rayVersion": "2.60.0",
                    "authOptions": {"enableK8sTokenAuth": 1},
                }
            },
            "authOptions.enableK8sTokenAuth: is for RayClusters from Ray 2.55 only; remove it",
        ),
        (
            {"rayClusterConfig": {"workerGroupSpecs": [{"groupName": "a"}]}},
            "group a: needs minReplicas and maxReplicas; set both",
        ),
    ],
)
def test_a_service_that_the_operator_refuses(changes: dict[str, Any], message: str) -> None:
    found = broken_rules(service(**changes))
    assert any(message in rule for rule in found), found


def test_our_own_manifests_break_no_rule() -> None:
    assert broken_rules(service()) == []
    assert broken_rules(manifest("rayjob")) == broken_rules(manifest("raycluster")) == []
    long = manifest("raycluster")
    long["metadata"]["name"] = "a" * 54
    assert broken_rules(long) == [
        f"metadata.name={'a' * 54}: has 54 characters; use lower case letters, digits and '-', "
        "beginning with a letter, 53 at most"
    ]
