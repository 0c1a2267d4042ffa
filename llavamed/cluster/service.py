"""The state of a model service, according to its RayService."""

from dataclasses import dataclass

import yaml

from llavamed.cluster.kinds import Named, Object, is_being_deleted, labels_of, name_of
from llavamed.errors import ClusterError

_FAILED = {"DEPLOY_FAILED", "UNHEALTHY"}
"""States of a Ray Serve application that need attention."""


@dataclass(frozen=True)
class ServiceState(Named):
    """A service of a model at one moment."""

    model: str
    """Its export or registered model; empty if the service is not one of ours."""
    is_ready: bool
    """Whether it accepts requests."""
    cluster: str
    """Name of the RayCluster that answers or, while there is none, that comes up; else empty."""
    next_cluster: str
    """Name of the RayCluster that comes up beside it, or empty."""
    applications: tuple[str, ...]
    """The applications on both and their deployments, a sentence each."""
    failures: tuple[str, ...]
    """The sentences among them that need attention."""
    is_being_deleted: bool = False
    """Whether it is being deleted."""

    @property
    def state(self) -> str:
        """Whether it accepts requests, in words."""
        if self.is_being_deleted:
            return "is being deleted"
        return "accepts requests" if self.is_ready else "does not accept requests yet"


def read_service(service: Object, options: str = "") -> ServiceState:
    """Return the state of a RayService; `options` lead another command to it."""
    status = service.get("status") or {}
    parts = [status.get(f"{when}ServiceStatus") or {} for when in ("active", "pending")]
    active, pending = (str(part.get("rayClusterName") or "") for part in parts)
    conditions = status.get("conditions") or []
    applications, failures = [], []
    for part in parts:
        for name, application in (part.get("applicationStatuses") or {}).items():
            text = f"application {name} is {_state(application)}"
            applications.append(text)
            if application.get("status") in _FAILED:
                failures.append(text)
            for deployment, found in (application.get("serveDeploymentStatuses") or {}).items():
                applications.append(f"deployment {deployment} is {_state(found)}")
    return ServiceState(
        name=name_of(service),
        model=_model(service),
        is_ready=any(each["type"] == "Ready" and each["status"] == "True" for each in conditions),
        cluster=active or pending,
        next_cluster=pending if active else "",
        applications=tuple(applications),
        failures=tuple(failures),
        is_being_deleted=is_being_deleted(service),
        options=options,
    )


def _state(thing: Object) -> str:
    said = " ".join(str(thing.get("message") or "").split())
    state = str(thing.get("status") or "unknown")
    return f"{state}: {said or 'no reason given'}" if said or state in _FAILED else state


def _model(service: Object) -> str:
    try:
        config = yaml.safe_load(service["spec"].get("serveConfigV2") or "") or {}
        found = [each.get("args", {}).get("export") for each in config.get("applications", [])]
    except (AttributeError, TypeError, yaml.YAMLError):  # it is not ours
        return ""
    return str(next(filter(None, found), ""))


def describe_service(service: ServiceState) -> list[tuple[str, str]]:
    """Return what is known of a service as pairs of a label and a text."""
    lines = [("service", f"{service.name}  {service.state}")]
    if service.model:
        lines.append(("model", service.model))
    if service.cluster:
        lines.append(("cluster", service.cluster))
    if service.next_cluster:
        lines.append(("next", f"{service.next_cluster} comes up beside it and then takes over"))
    lines += [("serve", text) for text in service.applications]
    if service.failures:
        lines.append(("hint", f"see `llavamed cluster logs {service.target}` and `doctor`"))
    return lines


def check_deletable(service: Object) -> None:
    """Check that nobody would miss a service.

    Raises:
        ClusterError: It accepts requests, or a release of Helm has it and would make it again.
    """
    name, labels = name_of(service), labels_of(service)
    if labels.get("app.kubernetes.io/managed-by") == "Helm":
        release = labels.get("app.kubernetes.io/instance", "RELEASE")
        raise ClusterError(
            f"RayService={name}: belongs to a release of Helm, whose next upgrade makes it again; "
            f"take it away with `helm upgrade {release} ./helm --reset-then-reuse-values --set "
            f"serve.enabled=false --namespace {service['metadata']['namespace']}`, or add --force"
        )
    if read_service(service).is_ready:
        raise ClusterError(f"RayService={name}: accepts requests; add --force to end it")
