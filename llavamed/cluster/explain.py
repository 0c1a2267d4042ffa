"""Explain in one sentence what Kubernetes refuses, and what to do about it."""

import json
import re
import shlex
from dataclasses import dataclass
from typing import Any

from llavamed.cluster.kinds import RAY_CLUSTER, RAY_JOB, RAY_SERVICE, SERVICE_PROXY, Kind, Named

_KUBERAY = (
    "helm {} kuberay-operator kuberay-operator --repo https://ray-project.github.io/kuberay-helm/ "
    "--version 1.7.0 --namespace {}"
)
INSTALL_KUBERAY = f"{_KUBERAY.format('install', 'ray-system')} --create-namespace"
_USER = re.compile(r'User "([^"]+)"')
_ANONYMOUS = 'User "system:anonymous"'
_LONGEST = 200
_NO_WAY = re.compile(r"trying to reach service|dial tcp|no endpoints available")
_CANNOT = re.compile(r"cannot \w+ resource")


def upgrade_kuberay(namespace: str) -> str:
    """Return the command that upgrades the operator of a namespace."""
    return _KUBERAY.format("upgrade", namespace)


def install_chart(namespace: str) -> str:
    """Return the command that installs the chart into a namespace."""
    return f"helm install llavamed ./helm --namespace {namespace}"


@dataclass(frozen=True)
class Call(Named):
    """A request to the API server; its name is empty if it is about many objects or none."""

    verb: str
    """The verb as roles name it: get, list, create, patch, delete."""
    kind: Kind
    namespace: str | None
    others: tuple[Kind, ...] = ()
    """Kinds whose objects a message names if there is none of this name."""

    def __str__(self) -> str:
        return f"{self.kind.name}={self.name or '*'}"


def explain(status: int, body: str, call: Call, existing: list[str] | None = None) -> str:
    """Return what a refusal means and what to do.

    Args:
        status: HTTP status of the answer.
        body: The answer, a `Status` of Kubernetes or plain text.
        existing: For 404, the names of the existing objects of the kind, or None if unknown.
    """
    answer = _parse(body)
    said = str(answer.get("message") or body or "no reason given").strip()
    if call.kind is SERVICE_PROXY and answer.get("kind") != "Status":
        return (
            f"{call}: the service itself answers {status}: {said}; its pod may have "
            "been replaced, so try again"
        )
    # Kubernetes itself says this of a group that it does not know, and has JSON for the rest.
    is_text = body.strip() and not body.lstrip().startswith("{")
    if is_text and status in (400, 403, 404) and said != "404 page not found":
        return not_kubernetes(call, body)
    if call.kind is SERVICE_PROXY and status >= 500 and _NO_WAY.search(said):
        return no_answer(call, said)
    where = f"namespace {call.namespace}" if call.namespace else "the cluster"
    match status:
        case 401:
            return (
                f"{call}: the API server refuses the credentials of the kubeconfig; sign in again, "
                "or choose another with --context"
            )
        case 403 if _ANONYMOUS in said:
            return (
                f"{call}: nobody is signed in: the kubeconfig has no credentials, or its command "
                "for signing in fails; run `kubectl auth whoami` to see why, or choose another "
                "with --context"
            )
        case 403 if _CANNOT.search(said):
            return f"{call}: {_missing_rule(said, call)}"
        case 403:
            return (
                f"{call}: is refused: {said}; change what it names, or ask who administers {where}"
            )
        case 404 if not answer.get("details", {}).get("name"):
            return f"{call}: {_missing_kind(call.kind)}"
        case 404:
            if existing is None:
                there = "other objects of the kind cannot be listed"
            else:
                there = f"there are: {', '.join(sorted(existing))}" if existing else "there is none"
            return f"{call}: is not in {where}; {there}; check --namespace and the name"
        case 409 if "object is being deleted" in said:
            return (
                f"{call}: is still being deleted in {where}, until its pods have ended; run the "
                "command again in a minute or two, or choose another --name"
            )
        case 409 if answer.get("reason") == "AlreadyExists":
            return (
                f"{call}: exists already in {where}; delete it with `llavamed cluster delete "
                f"{call.target}`, or choose another --name"
            )
        case 409:
            return f"{call}: was changed by another client at the same time; run the command again"
        case 400 | 422:
            return f"{call}: {_wrong_fields(answer, said)}"
    return f"{call}: the API server answers {status}: {said}; try again, or ask who administers it"


def no_answer(call: Call, said: str) -> str:
    """Return what to do about a service of which the API server gets no answer."""
    place = f" --namespace {shlex.quote(call.namespace)}" if call.namespace else ""
    return (
        f"{call}: the API server gets no answer of the service ({said}): its pod may be starting, "
        "or a NetworkPolicy keeps the API server out: then add its address to "
        f"networkPolicy.clients of the chart, or use `kubectl port-forward service/{call.name}"
        f"{place}`"
    )


def not_kubernetes(call: Call, body: str) -> str:
    """Return what to do about an answer of something else, such as the page of a proxy."""
    said = " ".join(body.split())[:_LONGEST]
    return (
        f"{call}: what answers is not Kubernetes: {said}; check the server of the kubeconfig, and "
        "any proxy before it"
    )


def _parse(body: str) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _missing_rule(said: str, call: Call) -> str:
    """Name the missing rule, and the commands with which an administrator grants it."""
    found = _USER.search(said)
    user = found[1] if found else "USER"
    role, kind = f"llavamed-{call.verb}-{call.kind.plural.replace('/', '-')}", "role"
    place = f" --namespace {shlex.quote(call.namespace)}" if call.namespace else ""
    if not call.namespace:
        kind = "clusterrole"
    subject = f"--user {shlex.quote(user)}"
    if user.startswith("system:serviceaccount:"):
        subject = f"--serviceaccount {user.removeprefix('system:serviceaccount:')}"
    # kubectl knows the group of a subresource by that of its resource.
    resource = call.kind.resource
    return (
        f"{user} may not {call.verb} {resource}; an administrator grants it with `kubectl create "
        f"{kind} {role} --verb {call.verb} --resource {resource}{place}` and `kubectl create "
        f"{kind}binding {role} --{kind} {role} {subject}{place}`"
    )


def _missing_kind(kind: Kind) -> str:
    if kind in (RAY_JOB, RAY_CLUSTER, RAY_SERVICE):
        return f"the cluster does not know the kind; install KubeRay with `{INSTALL_KUBERAY}`"
    return (
        f"the cluster does not know the kind {kind.resource}; install the operator that defines it"
    )


def _wrong_fields(answer: dict[str, Any], said: str) -> str:
    causes = (answer.get("details") or {}).get("causes") or []
    fields = "; ".join(
        f"{cause['field']}: {cause.get('message', '')}" for cause in causes if cause.get("field")
    )
    return f"has fields that Kubernetes refuses: {fields or said}; correct them"
