"""A control plane for the session, with fake nodes, and the real helm."""

import itertools
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.chart_release import CHART
from tests.support.control_plane import ADMIN, Api, Helm, control_plane, program, write_kubeconfig
from tests.support.fake_cluster import add_kuberay, fill
from tests.support.kubernetes_rules import Object

COUNTER = itertools.count()


@pytest.fixture(scope="session", params=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest) -> Helm:
    """Each major version that people have."""
    return Helm(program(request.param))


@pytest.fixture(scope="session")
def bare_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API server that knows what Kubernetes itself knows."""
    with control_plane(tmp_path_factory.mktemp("control-plane")) as api:
        yield api


Answers = dict[str, list[subprocess.CompletedProcess[str]]]
"""What each helm answers to an install with a value, by the value."""
NEEDS_KUBERAY = ("job.enabled=false", "job.enabled=true")
NEEDS_GANG = ("job.queue=team", "job.labels.volcano\\.sh/queue-name=team")


@pytest.fixture(scope="session")
def without_operators(
    bare_api: Api, tmp_path_factory: pytest.TempPathFactory, reference_data: Path
) -> Answers:
    """The answers of a cluster without KubeRay, and then of one without Kueue and Volcano."""
    kubeconfig = write_kubeconfig(bare_api, tmp_path_factory.mktemp("bare"), ADMIN)
    helms = [Helm(program(name), kubeconfig) for name in ("helm3", "helm4")]

    def answers(values: tuple[str, ...]) -> Answers:
        chart = str(CHART)
        return {
            value: [helm.run("install", "llavamed", chart, f"--set={value}") for helm in helms]
            for value in values
        }

    before = answers(NEEDS_KUBERAY)
    add_kuberay(bare_api, reference_data / "data" / "kuberay-crds")
    return before | answers(NEEDS_GANG)


@pytest.fixture(scope="session")
def api(bare_api: Api, without_operators: Answers) -> Api:
    """An API server with KubeRay's kinds and nodes of each cloud."""
    del without_operators  # it has added KubeRay's kinds
    fill(bare_api)
    return bare_api


@dataclass(frozen=True)
class Namespace:
    """A namespace of its own for a test, which admits restricted pods only."""

    name: str
    api: Api
    helm: Helm

    def install(self, *options: str, release: str = "llavamed") -> str:
        """Install the chart; give the notes."""
        return self.helm("install", release, str(CHART), "--namespace", self.name, *options)

    def upgrade(self, *options: str, release: str = "llavamed") -> str:
        """Upgrade the release; give the notes."""
        return self.helm("upgrade", release, str(CHART), "--namespace", self.name, *options)

    def get(self, collection: str, name: str = "") -> Any:
        """An object, by the path of its kind and its name, or None; without name: all."""
        root, _, plural = collection.rpartition("/")
        root = f"/apis/{root}" if "/" in root else f"/api/{root}"
        found = self.api.get(f"{root}/namespaces/{self.name}/{plural}/{name}".rstrip("/"))
        return found if name else found["items"]

    def objects(self, release: str = "llavamed") -> dict[str, Object]:
        """All that there is of a release, of every kind that the server knows, as `Kind/name`.

        What controllers made of it goes with it, so it is left out.
        """
        found = {}
        for root, kind, plural in self.api.kinds():
            for item in self.api.get(f"{root}/namespaces/{self.name}/{plural}")["items"]:
                metadata = item["metadata"]
                labels = metadata.get("labels", {})
                is_made = "ownerReferences" in metadata or kind == "Endpoints"
                if labels.get("app.kubernetes.io/instance") == release and not is_made:
                    found[f"{kind}/{metadata['name']}"] = item
        return found

    def cluster(self, name: str = "llavamed") -> Object:
        """The RayCluster."""
        found: Object = self.get("ray.io/v1/rayclusters", name)
        return found


@pytest.fixture
def namespace(api: Api, helm: Helm, tmp_path: Path) -> Iterator[Namespace]:
    """A namespace with each version of helm."""
    made = make_namespace(api, helm, tmp_path)
    yield made
    api.ask("DELETE", f"/api/v1/namespaces/{made.name}")


def make_namespace(api: Api, helm: Helm, folder: Path) -> Namespace:
    """Make a namespace that enforces the restricted Pod Security Standard."""
    name = f"research-{next(COUNTER)}"
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    metadata = {"name": name, "labels": labels}
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    # Until the controller has made this account, the API server admits no pod.
    account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
    api.eventually(account, lambda found: found is not None)
    kubeconfig = write_kubeconfig(api, folder, ADMIN)
    return Namespace(name, api, Helm(helm.path, kubeconfig))
