"""Explain why pods do not run: the causes behind their states and events, and what to do."""

import re
from collections.abc import Iterator

from llavamed.cluster.kinds import Object, name_of

_PULL = {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"}
_PREEMPTED = {
    *("Preempted", "Preempting", "SpotInterruption", "NodeShutdown", "Terminated", "Evicted")
}
_STARTING = {"", "ContainerCreating", "PodInitializing"}
"""Reasons of containers that wait and will start by themselves."""
_MEMORY = {
    "wait-gcs-ready": "KubeRay gives it 256 MiB, whatever its group has: leave it out with "
    "ENABLE_INIT_CONTAINER_INJECTION=false in the environment of KubeRay's operator",
    **dict.fromkeys(("mlflow", "migrate", "gc"), "raise mlflow.memory"),
    "postgres": "the chart gives it 1 GiB: name a database of your own in "
    "mlflow.database.existingSecret.name",
}
"""What to do for containers that have other memory than that of a group of Ray pods."""
_DISK = re.compile(r"ephemeral|EmptyDir")
_OF_ONE = re.compile(r'^\(combined from similar events\): |(?<=\bpods) "[^"]*"')
"""What differs between events of one cause: each attempt makes a pod of another name."""
_SCHEDULER = re.compile(r"0/\d+ nodes are available: (.*)", re.DOTALL)
_LACKS = (
    (r"(\d+) Insufficient ([\w./-]+)", "{} nodes lack free {}; add nodes, or wait for other work"),
    (
        r"(\d+) node\(s\) didn't match Pod's node affinity/selector",
        "{} nodes have other labels than its nodeSelector; correct the selector",
    ),
    (
        r"(\d+) node\(s\) had untolerated taint\(?s?\)? ?{([^}]*?):? ?}",
        "{} nodes have the taint {}; add a toleration",
    ),
    # Kubernetes 1.34.2 and later do not say which.
    (
        r"(\d+) node\(s\) had untolerated taint",
        "{} nodes have a taint that it does not tolerate; `kubectl describe nodes` shows it; add a "
        "toleration",
    ),
    (
        r"unbound immediate PersistentVolumeClaims",
        "its volume claim is not bound; check the storage class and the claim's events",
    ),
    (r'persistentvolumeclaim "([^"]+)" not found', "its volume claim {} does not exist; create it"),
    (r"(\d+) node\(s\) were unschedulable", "{} nodes are cordoned; uncordon them or add others"),
    (
        r"(\d+) node\(s\) had volume node affinity conflict",
        "{} nodes are not in the zone of its volume; add nodes there, or move the volume",
    ),
)
"""What the scheduler says of nodes, as patterns, and what it means."""


def causes(pods: list[Object], events: list[Object]) -> list[str]:
    """Return why pods wait or fail: one sentence per cause, with the pods that it affects.

    Args:
        pods: Any pods; running pods are skipped.
        events: Events of the same namespace.
    """
    found: dict[str, list[str]] = {}
    for pod in pods:
        for cause in dict.fromkeys(_causes_of(pod, _events_of(pod, events))):
            found.setdefault(cause, []).append(name_of(pod))
    lines = [f"{_some(names)}: {cause}" for cause, names in found.items()]
    return lines + list(_owner_causes(events))


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _events_of(pod: Object, events: list[Object]) -> list[Object]:
    return [
        event
        for event in events
        if event["involvedObject"].get("kind") == "Pod"
        and event["involvedObject"].get("name") == name_of(pod)
    ]


def _causes_of(pod: Object, events: list[Object]) -> Iterator[str]:
    status = pod.get("status") or {}
    phase = status.get("phase")
    said = {event.get("reason", ""): str(event.get("message", "")) for event in events}
    is_taken = False
    for reason in sorted(_PREEMPTED & ({status.get("reason", "")} | said.keys())):
        is_taken = True
        yield _taken(reason, (said.get(reason) or status.get("message", "")).strip())
    containers = [
        *(status.get("initContainerStatuses") or []),
        *(status.get("containerStatuses") or []),
    ]
    causes = [cause for each in containers for cause in _container_cause(each, phase)]
    yield from causes
    if phase == "Failed" and not (is_taken or causes):
        why = ": ".join(filter(None, (status.get("reason"), status.get("message"))))
        yield f"has failed ({why or 'no reason given'}); see `kubectl describe pod`"
    if phase == "Pending":
        yield from _waits(pod, said)


def _taken(reason: str, text: str) -> str:
    """Return why a pod was removed from its node, and what to do."""
    cause = f"was taken away ({reason}: {text}); the run goes on from its last checkpoint"
    if reason == "Evicted" and _DISK.search(text):
        key = "sharedMemory" if "shared-memory" in text else "disk"
        return f"{cause}; raise {key} of its group"
    return f"{cause} when a node is free; raise the pod's priority class, or leave spot nodes"


def _waits(pod: Object, said: dict[str, str]) -> Iterator[str]:
    """Yield why a pod is pending, except for its containers."""
    if (pod.get("spec") or {}).get("schedulingGates"):
        yield "waits for its queue to admit it; see `kubectl get workloads`"
    else:
        for condition in (pod.get("status") or {}).get("conditions") or []:
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                yield from unschedulable(condition.get("message") or "")
    for reason in ("FailedMount", "FailedAttachVolume"):
        if reason in said:
            yield f"cannot mount a volume: {said[reason]}; create what it names"
    if "FailedCreatePodSandBox" in said:
        yield (
            f"gets no sandbox on its node: {said['FailedCreatePodSandBox']}; ask who administers "
            "the nodes"
        )
    if "NotTriggerScaleUp" in said:
        yield "no node pool can grow for it; raise a pool's limit, or request what a pool has"


def _container_cause(status: Object, phase: str | None) -> Iterator[str]:
    waiting = (status.get("state") or {}).get("waiting") or {}
    last = (status.get("lastState") or {}).get("terminated") or {}
    now = (status.get("state") or {}).get("terminated") or {}
    ended = now or last
    name, reason, text = status["name"], waiting.get("reason") or "", waiting.get("message", "")
    code = ended.get("exitCode", "unknown")
    why = f" ({ended['reason']}: {ended['message'].strip()})" if ended.get("message") else ""
    if reason in _PULL:
        yield (
            f"image {status.get('image')} cannot be pulled ({reason}: {text}); check "
            "image.repository, image.tag and image.pullSecrets"
        )
    elif reason in ("CreateContainerConfigError", "CreateContainerError"):
        yield f"container {name} cannot be created: {text}; create what it names"
    elif ended.get("reason") == "OOMKilled":
        raised = "raise the memory of its group (/dev/shm counts against it)"
        yield f"container {name} was killed for its memory; {_MEMORY.get(name, raised)}"
    elif reason == "CrashLoopBackOff":
        yield f"container {name} ends again and again with exit code {code}{why}; read its log"
    elif reason not in _STARTING:
        yield f"container {name} cannot start ({reason}: {text}); mend what it names"
    elif phase == "Failed" and now.get("exitCode"):
        yield f"container {name} has ended with exit code {code}{why}; read its log"


def unschedulable(message: str) -> Iterator[str]:
    """Yield the causes in a message of the scheduler, which summarizes what each node lacks."""
    said = " ".join(message.partition("preemption:")[0].split()).rstrip(".")
    listed = _SCHEDULER.match(said)
    for part in (listed[1] if listed else said).split(", "):
        for pattern, cause in _LACKS:
            if found := re.search(pattern, part):
                yield cause.format(*found.groups())
                break
        else:
            if part:
                yield f"the scheduler says: {part}; change the pod or the nodes accordingly"


def _owner_causes(events: list[Object]) -> Iterator[str]:
    """Yield why pods could not be created, according to the events of their owner."""
    seen: dict[str, None] = {}
    for event in events:
        text, owner = _OF_ONE.sub("", str(event.get("message", ""))), event["involvedObject"]
        if event.get("type") != "Warning" or owner.get("kind") == "Pod":
            continue
        of = f"{owner.get('kind')} {owner.get('name')}"
        if "exceeded quota" in text:
            detail = text[text.index("exceeded quota") :]
            seen[f"{of}: {detail}; raise the quota, or ask for less"] = None
        elif "violates PodSecurity" in text:
            detail = text[text.index("violates PodSecurity") :]
            seen[f"{of}: {detail}; use a namespace with another standard"] = None
        elif "is forbidden" in text or event.get("reason", "").startswith("Failed"):
            seen[f"{of}: {event.get('reason')}: {text}; do what it says"] = None
    yield from seen
