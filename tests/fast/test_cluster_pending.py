"""Why pods wait or fail, from their states, their events and the scheduler's words."""

from typing import Any

import pytest

from llavamed.cluster.kinds import Object
from llavamed.cluster.pending import causes, unschedulable
from tests.support.healthy_namespace import named

MESSAGE = (
    "0/14 nodes are available: 1 Insufficient memory, 3 Insufficient nvidia.com/gpu, 2 node(s) had "
    "untolerated taint {nvidia.com/gpu: present}, 5 node(s) didn't match Pod's node affinity/"
    "selector, 1 node(s) were unschedulable. preemption: 0/14 nodes are available"
)


def test_the_schedulers_message_becomes_causes() -> None:
    assert list(unschedulable(MESSAGE)) == [
        "1 nodes lack free memory; add nodes, or wait for other work",
        "3 nodes lack free nvidia.com/gpu; add nodes, or wait for other work",
        "2 nodes have the taint nvidia.com/gpu: present; add a toleration",
        "5 nodes have other labels than its nodeSelector; correct the selector",
        "1 nodes are cordoned; uncordon them or add others",
    ]
    (cause,) = unschedulable('persistentvolumeclaim "weights" not found')
    assert cause == "its volume claim weights does not exist; create it"
    (cause,) = unschedulable("0/1: pod has unbound immediate PersistentVolumeClaims.")
    assert "its volume claim is not bound" in cause
    assert list(
        unschedulable(
            "0/9 nodes are available: 1 node(s) had untolerated taint(s), 2 node(s) had "
            "untolerated taint {node.kubernetes.io/unreachable: }, 3 node(s) had volume node "
            "affinity conflict, 3 Too many pods. preemption: 0/9 nodes are available: 1 Insuff"
        )
    ) == [
        "1 nodes have a taint that it does not tolerate; `kubectl describe nodes` shows it; add a "
        "toleration",
        "2 nodes have the taint node.kubernetes.io/unreachable; add a toleration",
        "3 nodes are not in the zone of its volume; add nodes there, or move the volume",
        "the scheduler says: 3 Too many pods; change the pod or the nodes accordingly",
    ]
    (cause,) = unschedulable("no nodes available to schedule pods")
    assert cause.startswith("the scheduler says: no nodes available to schedule pods; change")


def pod(phase: str = "Pending", **status: Any) -> Object:
    return named("p", status={"phase": phase} | status, spec={})


def event(reason: str, message: str, kind: str = "Pod", name: str = "p") -> Object:
    about = {"kind": kind, "name": name}
    return {"reason": reason, "message": message, "type": "Warning", "involvedObject": about}


def waiting(reason: str, message: str = "m") -> list[Object]:
    state = {"waiting": {"reason": reason, "message": message}}
    return [{"name": "ray", "image": "i", "state": state}]


ENDED = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
BROKEN = {"terminated": {"reason": "Error", "exitCode": 1}}


@pytest.mark.parametrize(
    ("pods", "events", "cause"),
    [
        ([pod(containerStatuses=waiting("ErrImagePull"))], [], "p: image i cannot be pulled (ErrI"),
        ([pod(initContainerStatuses=waiting("CreateContainerConfigError", "secret x"))], [],
         "p: container ray cannot be created: secret x; create what it names"),
        ([pod("Running", containerStatuses=[{"name": "ray", "state": {}, "lastState": ENDED}])], [],
         "p: container ray was killed for its memory; raise the memory of its group"),
        ([pod("Running", containerStatuses=[{"name": "mlflow", "state": {}, "lastState": ENDED}])],
         [], "p: container mlflow was killed for its memory; raise mlflow.memory"),
        ([pod("Running", containerStatuses=[{"name": "postgres", "state": ENDED}])],
         [], "p: container postgres was killed for its memory; the chart gives it 1 GiB: name"),
        ([pod(initContainerStatuses=[{"name": "wait-gcs-ready", "state": ENDED}])], [],
         "p: container wait-gcs-ready was killed for its memory; KubeRay gives it 256 MiB"),
        ([pod("Running", containerStatuses=waiting("CrashLoopBackOff"))], [],
         "p: container ray ends again and again with exit code unknown"),
        ([pod("Failed", reason="Evicted", message="low on memory")], [], "p: was taken away (Ev"),
        ([pod("Failed", reason="Evicted", message="Usage of EmptyDir volume \"ray-logs\" exceeds")],
         [], "p: was taken away (Evicted: Usage of EmptyDir volume \"ray-logs\" exceeds); the run "
         "goes on from its last checkpoint; raise disk of its group"),
        ([pod("Failed", reason="Evicted", message="EmptyDir volume shared-memory exceeds")], [],
         "p: was taken away (Evicted: EmptyDir volume shared-memory exceeds); the run goes on from "
         "its last checkpoint; raise sharedMemory of its group"),
        ([pod("Failed", reason="UnexpectedAdmissionError", message="no GPU is healthy")], [],
         "p: has failed (UnexpectedAdmissionError: no GPU is healthy); see `kubectl describe pod`"),
        ([pod("Failed", initContainerStatuses=[{"name": "fetch-weights", "state": BROKEN}])], [],
         "p: container fetch-weights has ended with exit code 1; read its log"),
        ([pod(containerStatuses=waiting("RunContainerError", "no driver"))], [],
         "p: container ray cannot start (RunContainerError: no driver); mend what it names"),
        ([pod()], [event("FailedCreatePodSandBox", "no address is left")],
         "p: gets no sandbox on its node: no address is left; ask who administers"),
        ([pod()], [event("FailedMount", "no volume")], "p: cannot mount a volume: no volume"),
        ([pod()], [event("NotTriggerScaleUp", "")], "p: no node pool can grow for it"),
        ([named("p", status={"phase": "Pending"}, spec={"schedulingGates": [{"name": "q"}]})], [],
         "p: waits for its queue to admit it"),
        ([], [event("FailedCreate", "pods x is forbidden: exceeded quota: g", "RayCluster", "c")],
         "RayCluster c: exceeded quota: g; raise the quota"),
        ([], [event("FailedCreate", 'x violates PodSecurity "restricted"', "RayCluster", "c")],
         'RayCluster c: violates PodSecurity "restricted"; use a namespace'),
    ],
)  # fmt: skip
def test_states_and_events_become_causes(
    pods: list[Object], events: list[Object], cause: str
) -> None:
    (found,) = causes(pods, events)
    assert found.startswith(cause)


def test_attempts_that_fail_for_one_cause_are_told_once() -> None:
    refusal = 'Error creating: pods "pull-{}" is forbidden: minimum memory is 32Mi'
    tries = [refusal.format(each) for each in ("x7d", "ab2")]
    tries.append(f"(combined from similar events): {tries[0]}")
    found = causes([], [event("FailedCreate", said, "DaemonSet", "pull") for said in tries])
    assert found == [
        "DaemonSet pull: FailedCreate: Error creating: pods is forbidden: minimum memory is 32Mi; "
        "do what it says"
    ]


def test_pods_with_one_cause_are_named_together_and_those_that_run_are_not() -> None:
    many = [pod(containerStatuses=waiting("ErrImagePull")) for _ in range(3)]
    (found,) = causes([*many, pod("Running")], [event("Scheduled", "fine")])
    assert found.startswith("p and 2 more: image i")
