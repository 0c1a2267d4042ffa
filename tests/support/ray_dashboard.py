"""The part of a Ray dashboard that the tools ask, behind a service of the API server."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs

from tests.support.control_plane import Api
from tests.support.http_server import serving

TOKEN = "a-token-of-ray"


class Dashboard:
    """What the driver has logged so far, and whether the job was told to stop."""

    def __init__(self) -> None:
        self.log = ""
        self.replicas: dict[str, str] = {}
        """The log of each replica of a service."""
        self.stopped: list[str] = []


@contextmanager
def ray_dashboard(
    api: Api, namespace: str, cluster: str, service: str | None = None
) -> Iterator[Dashboard]:
    """Serve the dashboard of a Ray cluster that has no pods, as its head would.

    With `service`, its service has that name, and KubeRay's status says so.
    """
    dashboard = Dashboard()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, body: dict[str, object] | str) -> None:
            known = self.headers.get("X-Ray-Authorization") == f"Bearer {TOKEN}"
            given = body if known else {"error": "no token"}
            data = (given if isinstance(given, str) else json.dumps(given)).encode()
            self.send_response(200 if known else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if path == "/api/serve/applications/":
                replicas = [
                    {"replica_id": name, "node_id": "n", "log_file_path": f"/serve/{name}.log"}
                    for name in dashboard.replicas
                ]
                deployments = {"Model": {"replicas": [*replicas, {"replica_id": "starting"}]}}
                self._answer({"applications": {"llavamed": {"deployments": deployments}}})
            elif path == "/api/v0/logs/file":
                asked = parse_qs(query)
                assert (asked["node_id"], asked["lines"]) == (["n"], ["-1"])
                name = asked["filename"][0].removeprefix("serve/").removesuffix(".log")
                self._answer(dashboard.replicas[name])
            else:
                self._answer({"logs": dashboard.log})

        def do_POST(self) -> None:
            dashboard.stopped.append(self.path)
            self._answer({"stopped": True})

    address = _own_address()
    with serving(Handler, address=address) as url:
        _make_head(api, namespace, cluster, address, int(url.rpartition(":")[2]), service)
        yield dashboard


def _make_head(
    api: Api, namespace: str, cluster: str, address: str, port: int, service: str | None
) -> None:
    """Make the objects of a Ray cluster whose head answers at an address."""
    name = service or f"{cluster}-head-svc"
    ports = [{"name": "dashboard", "port": 8265, "targetPort": port}]
    meta = {"apiVersion": "v1", "metadata": {"name": name}}
    api.create(meta | {"kind": "Service", "spec": {"ports": ports}}, namespace)
    pod = _head_pod(api, namespace, cluster, address)
    subset = {
        "addresses": [{"ip": address, "targetRef": pod}],
        "ports": [{"name": "dashboard", "port": port}],
    }
    answer = api.ask(
        "POST", f"/api/v1/namespaces/{namespace}/endpoints",
        meta | {"kind": "Endpoints", "subsets": [subset]},
    )  # fmt: skip
    assert answer.status_code == 201, answer.text
    spec = {"rayVersion": "2.60.0", "authOptions": {"mode": "token", "secretName": "ray-token"}}
    head = {"containers": [{"name": "ray-head", "image": "ray"}]}
    spec |= {"headGroupSpec": {"template": {"spec": head}}}
    made = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": cluster}}
    api.create(made | {"spec": spec}, namespace)
    if service is not None:
        path = f"/apis/ray.io/v1/namespaces/{namespace}/rayclusters/{cluster}/status"
        answer = api.ask("PATCH", path, {"status": {"head": {"serviceName": service}}})
        assert answer.status_code == 200, answer.text
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ray-token"}}
    api.create(secret | {"stringData": {"auth_token": TOKEN}}, namespace)


def _head_pod(api: Api, namespace: str, cluster: str, address: str) -> dict[str, str]:
    """Make a pod of the address, and return a reference: the API server proxies to pods only."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{cluster}-head"},
        "spec": {
            "schedulingGates": [{"name": "test/held"}],  # or a node would give it an address
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{"name": "ray-head", "image": "ray", "securityContext": security}],
        },
    }
    api.create(pod, namespace)
    path = f"/api/v1/namespaces/{namespace}/pods/{cluster}-head/status"
    status = {"status": {"podIP": address, "podIPs": [{"ip": address}]}}
    answer = api.ask("PATCH", path, status)
    assert answer.status_code == 200, answer.text
    return {"kind": "Pod", "namespace": namespace, "name": f"{cluster}-head"}


def _own_address() -> str:
    """An address of this machine that is not loopback, which the API server proxies to none of."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        address: str = probe.getsockname()[0]
        return address
