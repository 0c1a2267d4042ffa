"""The log of a job's driver or a service's replicas, from Ray's dashboard, through the API server.

The log is fetched repeatedly and only its new part is returned, so a broken connection or a
restarted pod or head loses nothing. No decision depends on the log.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from llavamed.cluster.kinds import RAY_CLUSTER, RAY_JOB, RAY_SERVICE, Named, Object, name_of
from llavamed.cluster.pods import token_secret
from llavamed.cluster.service import read_service
from llavamed.cluster.status import ENDED, JobState, read_job
from llavamed.errors import ClusterError, NotFoundError, UnreachableError

if TYPE_CHECKING:
    from llavamed.cluster.client import Cluster

DASHBOARD_PORT = 8265
TOKEN_KEY = "auth_token"
PATIENCE_SECONDS = 600.0
"""Seconds for which an API server or a head may be unreachable."""


class LogText:
    """The text of a log so far, which returns the new part of each later text."""

    def __init__(self) -> None:
        self._text = ""

    def new_lines(self, text: str) -> str:
        """Return the part of `text` after the previous text, or all of it if it is another log."""
        goes_on = text.startswith(self._text)
        new = text[len(self._text) :] if goes_on else text
        self._text = text
        return new


def ask_job(cluster: "Cluster", job: JobState, method: str, path: str) -> Any:
    """Send a request to the dashboard of a job's cluster, and return the JSON it answers.

    Raises:
        ClusterError: The job has no cluster, or its head does not answer.
    """
    if not job.cluster:
        raise ClusterError(
            f"RayJob={job.name}: has no cluster, it is {job.state}; see `llavamed cluster status "
            f"{job.target}`"
        )
    return _dashboard(cluster, job.cluster)(method, path=path)


def _dashboard(cluster: "Cluster", name: str) -> Callable[..., Any]:
    """Return what sends a request to the dashboard of a RayCluster, as `Cluster.ask_service`.

    Raises:
        ClusterError: The RayCluster or its token cannot be read.
    """
    found = cluster.get(RAY_CLUSTER, name)
    secret = token_secret(found)
    headers = {}
    if secret is not None:
        # The API server takes the header Authorization for its own.
        headers["X-Ray-Authorization"] = f"Bearer {cluster.secret(secret, TOKEN_KEY)}"
    # KubeRay names it after the cluster, unless `headService` of the cluster does.
    head = (found.get("status") or {}).get("head") or {}
    service = head.get("serviceName") or f"{name}-head-svc"
    return partial(cluster.ask_service, service=service, port=DASHBOARD_PORT, headers=headers)


def follow(
    cluster: "Cluster",
    name: str,
    *,
    follows: bool,
    seconds: float,
    on_problem: Callable[[str], None],
) -> Iterator[str]:
    """Yield the log of a job as it grows, until the job has ended, or without end of a service.

    Args:
        follows: Whether to go on until the job has ended; otherwise yield the current log.
        seconds: Seconds between two requests.
        on_problem: Called once for each problem that makes the log unavailable.

    Raises:
        ClusterError: There is neither, or the log was unavailable for too long.
    """
    texts: dict[str, LogText] = defaultdict(LogText)
    before, target = "", Named(name=name, options=cluster.options).target
    seen = time.monotonic()
    while True:
        look = _look(cluster, name, texts)
        yield look.new
        if look.problem and not follows:
            raise ClusterError(look.problem)
        if look.problem and look.problem != before:
            on_problem(look.problem)
        before = look.problem
        if look.is_over or not follows:
            return
        if not look.problem or look.is_waiting:
            seen = time.monotonic()
        if time.monotonic() - seen > PATIENCE_SECONDS:
            raise ClusterError(
                f"{name}: its log was unavailable for {PATIENCE_SECONDS:.0f} s: {before}; see "
                f"`llavamed cluster status {target}`"
            )
        time.sleep(seconds)


@dataclass(frozen=True)
class _Look:
    """The result of one request for a log."""

    new: str = ""
    problem: str = ""
    is_over: bool = False
    is_waiting: bool = False


def _look(cluster: "Cluster", name: str, texts: dict[str, LogText]) -> _Look:
    try:
        found = cluster.get_any((RAY_JOB, RAY_SERVICE), name)
    except UnreachableError as error:
        return _Look(problem=str(error))
    if found["kind"] == RAY_SERVICE.name:
        return _look_at_service(cluster, found, texts)
    job = read_job(found, cluster.options)
    is_over = job.state in ENDED
    if not job.job_id or job.state in ("pending", "suspended"):
        why = f"has {job.state} without a driver, so" if is_over else f"is {job.state}, so"
        when = f"; see `llavamed cluster status {job.target}`" if is_over else " yet"
        return _Look(
            problem=f"RayJob={name}: {why} it has no log{when}", is_waiting=True, is_over=is_over
        )
    try:
        log = ask_job(cluster, job, "GET", f"/api/jobs/{job.job_id}/logs")["logs"]
    except NotFoundError as error:
        gone = (
            f"RayJob={name}: has {job.state}, and its log is gone with the head of {job.cluster}; "
            f"see `llavamed cluster status {job.target}` for what it reached"
        )
        return _Look(problem=gone if is_over else str(error), is_over=is_over)
    except ClusterError as error:
        return _Look(problem=str(error), is_over=is_over)
    return _Look(texts[""].new_lines(log), is_over=is_over)


def _look_at_service(cluster: "Cluster", service: Object, texts: dict[str, LogText]) -> _Look:
    """Look at the logs of all replicas, which Serve keeps in a file each."""
    state, new = read_service(service), ""
    if not state.cluster:
        problem = f"RayService={name_of(service)}: has no cluster yet, so it has no log"
        return _Look(problem=problem, is_waiting=True)
    try:
        ask = _dashboard(cluster, state.cluster)
        known = ask("GET", path="/api/serve/applications/")
        for replica, where in sorted(_replica_logs(known).items()):
            path = f"/api/v0/logs/file?{urlencode(where)}"
            text = ask("GET", path=path, read=str)
            lines = texts[replica].new_lines(text or "").splitlines()
            new += "".join(f"{replica}: {line}\n" for line in lines)
    except ClusterError as error:
        return _Look(new, problem=str(error))
    if not texts:
        return _Look(problem=f"RayService={state.name}: has no replica yet", is_waiting=True)
    return _Look(new)


def _replica_logs(known: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return where the log of each replica is, by the replica's name, from what Serve tells."""
    replicas = [
        replica
        for application in known.get("applications", {}).values()
        for deployment in application.get("deployments", {}).values()
        for replica in deployment.get("replicas", [])
    ]
    return {
        replica["replica_id"]: {
            "node_id": replica["node_id"],
            "filename": replica["log_file_path"].lstrip("/"),
            "lines": -1,
        }
        for replica in replicas
        if replica.get("log_file_path") and replica.get("node_id")
    }
