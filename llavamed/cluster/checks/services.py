"""Check whether model services answer, according to their KubeRay status."""

from collections.abc import Iterator

from llavamed.cluster.checks.problem import Problem, failure, title, warning
from llavamed.cluster.kinds import RAY_SERVICE
from llavamed.cluster.service import read_service
from llavamed.cluster.snapshot import Snapshot


def services(snapshot: Snapshot) -> Iterator[Problem]:
    """Examine the applications of each RayService, also during an upgrade."""
    for service in snapshot.all(RAY_SERVICE):
        state, where = read_service(service, snapshot.options), title(service)
        for text in state.failures:
            yield failure(
                f"{where}: {text}; see the log with `llavamed cluster logs {state.target}`, and "
                "serve.export and serve.gpus"
            )
        if not (state.failures or state.is_ready):
            yield warning(
                f"{where}: does not accept requests yet; wait for it with `llavamed cluster status "
                f"{state.target} --watch`"
            )
