"""Check whether model services answer, according to their KubeRay status."""

from collections.abc import Iterator

from llavamed.cluster.checks.problem import Problem, failure, title, warning
from llavamed.cluster.kinds import RAY_SERVICE, Object, name_of
from llavamed.cluster.snapshot import Snapshot

_FAILED = {"DEPLOY_FAILED", "UNHEALTHY"}
"""States of a Ray Serve application that need attention."""


def is_ready(service: Object) -> bool:
    """Return whether a RayService accepts requests."""
    conditions = (service.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def services(snapshot: Snapshot) -> Iterator[Problem]:
    """Examine the applications of each RayService, also during an upgrade."""
    for service in snapshot.all(RAY_SERVICE):
        status, where = service.get("status") or {}, title(service)
        failed = []
        for key in ("activeServiceStatus", "pendingServiceStatus"):
            found = (status.get(key) or {}).get("applicationStatuses") or {}
            for name, application in found.items():
                if application.get("status") in _FAILED:
                    said = " ".join(str(application.get("message") or "no reason given").split())
                    failed.append(f"application {name} is {application['status']}: {said}")
        for text in failed:
            yield failure(
                f"{where}: {text}; see the log of its head, and serve.export and serve.gpus"
            )
        if not failed and not is_ready(service):
            yield warning(
                f"{where}: does not accept requests yet; wait for it with `kubectl wait "
                f"rayservice/{name_of(service)} --for=condition=Ready --timeout=30m`"
            )
