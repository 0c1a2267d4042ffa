"""Explain why pods do not run: the causes behind their states and events, and what to do."""

import re
from collections.abc import Iterator

from llavamed.cluster.kinds import Object, name_of

_PULL = {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"}
_PREEMPTED = {"Preempted", "Preempting", "SpotInterruption", "NodeShutdown", "Evicted"}


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
    for reason in sorted(_PREEMPTED & ({status.get("reason", "")} | said.keys())):
        text = said.get(reason) or status.get("message", "")
        yield (
            f"was taken away ({reason}: {text.strip()}); the run goes on from its last checkpoint "
            "when a node is free; raise the pod's priority class, or leave spot nodes"
        )
    for each in (status.get("initContainerStatuses") or []) + (
        status.get("containerStatuses") or []
    ):
        yield from _container_cause(each)
    if phase != "Pending":
        return
    if (pod.get("spec") or {}).get("schedulingGates"):
        yield "waits for its queue to admit it; see `kubectl get workloads`"
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield from unschedulable(condition.get("message") or "")
    for reason in ("FailedMount", "FailedAttachVolume"):
        if reason in said:
            yield f"cannot mount a volume: {said[reason]}; create what it names"
    if "NotTriggerScaleUp" in said:
        yield "no node pool can grow for it; raise a pool's limit, or request what a pool has"


def _container_cause(status: Object) -> Iterator[str]:
    waiting = (status.get("state") or {}).get("waiting") or {}
    ended = (status.get("lastState") or {}).get("terminated") or {}
    ended = (status.get("state") or {}).get("terminated") or ended
    reason, text = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _PULL:
        yield (
            f"image {status.get('image')} cannot be pulled ({reason}: {text}); check "
            "image.repository, image.tag and image.pullSecrets"
        )
    elif reason in ("CreateContainerConfigError", "CreateContainerError"):
        yield f"container {status['name']} cannot be created: {text}; create what it names"
    elif ended.get("reason") == "OOMKilled":
        yield (
            f"container {status['name']} was killed for its memory; raise the memory of its group "
            "(/dev/shm counts against it)"
        )
    elif reason == "CrashLoopBackOff":
        code = ended.get("exitCode", "unknown")
        yield f"container {status['name']} ends again and again with exit code {code}; read its log"


def unschedulable(message: str) -> Iterator[str]:
    """Yield the causes in a message of the scheduler, which summarizes what each node lacks."""
    insufficient = re.findall(r"(\d+) Insufficient ([\w./-]+)", message)
    for number, resource in insufficient:
        yield f"{number} nodes lack free {resource}; add nodes, or wait for other work"
    if found := re.search(r"(\d+) node\(s\) didn't match Pod's node affinity/selector", message):
        yield f"{found[1]} nodes have other labels than its nodeSelector; correct the selector"
    for number, taint in re.findall(
        r"(\d+) node\(s\) had untolerated taint\(?s?\)? ?{([^}]*)}", message
    ):
        yield f"{number} nodes have the taint {taint.strip().rstrip(':')}; add a toleration"
    if "unbound immediate PersistentVolumeClaims" in message:
        yield "its volume claim is not bound; check the storage class and the claim's events"
    if found := re.search(r'persistentvolumeclaim "([^"]+)" not found', message):
        yield f"its volume claim {found[1]} does not exist; create it"
    if found := re.search(r"(\d+) node\(s\) were unschedulable", message):
        yield f"{found[1]} nodes are cordoned; uncordon them or add others"


def _owner_causes(events: list[Object]) -> Iterator[str]:
    """Yield why pods could not be created, according to the events of their owner."""
    seen: dict[str, None] = {}
    for event in events:
        text, owner = str(event.get("message", "")), event["involvedObject"]
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
