"""The log of a job's driver, from Ray's dashboard through the API server.

The log is fetched repeatedly and only its new part is returned, so a broken connection or a
restarted pod or head loses nothing. No decision depends on the log.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llavamed.cluster.kinds import RAY_CLUSTER, RAY_JOB
from llavamed.cluster.pods import token_secret
from llavamed.cluster.status import ENDED, JobState, read_job
from llavamed.errors import ClusterError, UnreachableError

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


def ask_dashboard(cluster: "Cluster", job: JobState, method: str, path: str) -> dict[str, str]:
    """Send a request to the dashboard of a job's cluster.

    Raises:
        ClusterError: The job has no cluster, or its head does not answer.
    """
    if not job.cluster:
        raise ClusterError(
            f"RayJob={job.name}: has no cluster, it is {job.state}; see `llavamed cluster status "
            f"{job.name}`"
        )
    secret = token_secret(cluster.get(RAY_CLUSTER, job.cluster))
    headers = {}
    if secret is not None:
        # The API server takes the header Authorization for its own.
        headers["X-Ray-Authorization"] = f"Bearer {cluster.secret(secret, TOKEN_KEY)}"
    service = f"{job.cluster}-head-svc"
    answer: dict[str, str] = cluster.ask_service(method, service, DASHBOARD_PORT, path, headers)
    return answer


def follow(
    cluster: "Cluster",
    name: str,
    *,
    follows: bool,
    seconds: float,
    on_problem: Callable[[str], None],
) -> Iterator[str]:
    """Yield the log of a job as it grows, until the job has ended.

    Args:
        cluster: The cluster of the job.
        name: Name of the job.
        follows: Whether to go on until the job has ended; otherwise yield the current log.
        seconds: Seconds between two requests.
        on_problem: Called once for each problem that makes the log unavailable.

    Raises:
        ClusterError: There is no such job, or its log was unavailable for too long.
    """
    text, before = LogText(), ""
    seen = time.monotonic()
    while True:
        look = _look(cluster, name, text)
        yield look.new
        if look.problem and look.problem != before:
            on_problem(look.problem)
        before = look.problem
        if look.is_over or not follows:
            return
        if not look.problem or look.is_waiting:
            seen = time.monotonic()
        if time.monotonic() - seen > PATIENCE_SECONDS:
            raise ClusterError(
                f"RayJob={name}: its log was unavailable for {PATIENCE_SECONDS:.0f} s: {before}; "
                f"see `llavamed cluster status {name}`"
            )
        time.sleep(seconds)


@dataclass(frozen=True)
class _Look:
    """The result of one request for a log."""

    new: str = ""
    problem: str = ""
    is_over: bool = False
    is_waiting: bool = False


def _look(cluster: "Cluster", name: str, text: LogText) -> _Look:
    try:
        job = read_job(cluster.get(RAY_JOB, name))
    except UnreachableError as error:
        return _Look(problem=str(error))
    is_over = job.state in ENDED
    if not job.job_id or job.state in ("pending", "suspended"):
        problem = f"RayJob={name}: is {job.state}, so it has no log yet"
        return _Look(problem=problem, is_over=is_over, is_waiting=True)
    try:
        log = ask_dashboard(cluster, job, "GET", f"/api/jobs/{job.job_id}/logs")["logs"]
    except ClusterError as error:
        return _Look(problem=str(error), is_over=is_over)
    return _Look(text.new_lines(log), is_over=is_over)
