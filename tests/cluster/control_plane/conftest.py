"""A control plane for the session, with fake nodes, and the real helm."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.chart_release import CHART
from tests.support.control_plane import ADMIN, Api, Helm, control_plane, program, write_kubeconfig
from tests.support.fake_cluster import fill
from tests.support.kubernetes_rules import Object

COUNTER = itertools.count()


@pytest.fixture(scope="session", params=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest) -> Helm:
    """Each major version that people have."""
    return Helm(program(request.param))


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory, reference_data: Path) -> Iterator[Api]:
    """An API server with KubeRay's kinds and nodes of each cloud."""
    with control_plane(tmp_path_factory.mktemp("control-plane")) as api:
        fill(api, reference_data / "data" / "kuberay-crds")
        yield api


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
    kubeconfig = write_kubeconfig(api, folder, ADMIN)
    return Namespace(name, api, Helm(helm.path, kubeconfig))
