"""The client of Kubernetes against a server that answers as the API server does, or does not."""

import json
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from llavamed.cluster import client
from llavamed.cluster.client import Cluster
from llavamed.cluster.kinds import RAY_JOB, RAY_SERVICE, Kind
from llavamed.cluster.logs import follow
from llavamed.errors import ClusterError, NotFoundError, UnreachableError
from tests.support.http_server import serving


@contextmanager
def server(
    answers: dict[str, Any], certificate: Path | None = None, token: str | None = None
) -> Iterator[tuple[str, Any]]:
    """Serve answers by their path, to a token; gives the address, and the paths asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = answers.get(self.path)
            name = self.path.rpartition("/")[2]
            missing = {"kind": "Status", "code": 404, "details": {"name": name}}
            text = body if isinstance(body, str) else json.dumps(body or missing)
            is_known = token is None or self.headers["Authorization"] == f"Bearer {token}"
            self.send_response(401 if not is_known else 404 if body is None else 200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

    tls = None
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
    with serving(Handler, tls=tls) as url:
        yield url, asked


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lead the client to an address."""

    def write(address: str) -> None:
        file = tmp_path / "kubeconfig"
        content = {
            "clusters": [{"name": "a", "cluster": {"server": address}}],
            "users": [{"name": "a", "user": {"token": "x"}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "current-context": "a",
        }
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        monkeypatch.setenv("KUBECONFIG", str(file))

    return write


def place(kind: Kind, name: str = "") -> str:
    return kind.path("research", name)


def listed(*names: str) -> dict[str, Any]:
    return {"items": [{"metadata": {"name": name}} for name in names]}


def test_a_service_is_found_without_a_list_of_all_jobs(kubeconfig: Callable[[str], None]) -> None:
    found = {"kind": "RayService", "metadata": {"name": "chat"}}
    with server({place(RAY_SERVICE, "chat"): found}) as (address, asked):
        kubeconfig(address)
        assert Cluster("research").get_any((RAY_JOB, RAY_SERVICE), "chat") == found
    assert asked == [place(RAY_JOB, "chat"), place(RAY_SERVICE, "chat")]


def test_what_is_there_is_named_of_both_kinds(kubeconfig: Callable[[str], None]) -> None:
    answers = {place(RAY_JOB): listed("one", "two"), place(RAY_SERVICE): listed("chat")}
    with server(answers) as (address, _):
        kubeconfig(address)
        with pytest.raises(NotFoundError, match=r"RayJob=chap: is not in .* are: chat, one, two;"):
            Cluster("research").get_any((RAY_JOB, RAY_SERVICE), "chap")
        del answers[place(RAY_SERVICE)]
        with pytest.raises(NotFoundError, match=r"there are: one, two;"):
            Cluster("research").get_any((RAY_JOB, RAY_SERVICE), "chap")


def test_a_page_in_the_place_of_kubernetes_is_no_stack_trace(
    kubeconfig: Callable[[str], None],
) -> None:
    with server({place(RAY_JOB): "<html>please sign in</html>"}) as (address, _):
        kubeconfig(address)
        with pytest.raises(ClusterError, match="what answers is not Kubernetes: <html>please"):
            Cluster("research").find_all(RAY_JOB)


def test_a_token_that_was_renewed_is_read_again(
    kubeconfig: Callable[[str], None], tmp_path: Path
) -> None:
    """EKS lets a token live for a day, and a training may be followed for longer."""
    found = {"kind": "RayJob", "metadata": {"name": "run"}}
    with server({place(RAY_JOB, "run"): found}, token="second") as (address, asked):
        kubeconfig(address)
        file = tmp_path / "kubeconfig"
        content = yaml.safe_load(file.read_text())
        content["users"][0]["user"] = {"tokenFile": str(tmp_path / "token")}
        file.write_text(yaml.safe_dump(content))
        (tmp_path / "token").write_text("first")
        cluster = Cluster("research")
        with pytest.raises(ClusterError, match="sign in"):
            cluster.get(RAY_JOB, "run")
        assert len(asked) == 2
        (tmp_path / "token").write_text("second")
        assert cluster.get(RAY_JOB, "run") == found


def test_a_service_that_does_not_answer_is_told_from_an_api_server_that_does_not(
    kubeconfig: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API server waits for a service that a NetworkPolicy hides longer than its client."""
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", (0.5, 0.2))
    monkeypatch.setattr(client, "ATTEMPTS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        kubeconfig(f"http://127.0.0.1:{silent.getsockname()[1]}")
        cluster = Cluster("research")
        with pytest.raises(UnreachableError, match=r"gets no answer of the service .* timed out"):
            cluster.ask_service("GET", "demo-head-svc", 8265, "/api/jobs/", {})
        with pytest.raises(UnreachableError, match=r"the API server does not answer .* timed out"):
            cluster.get(RAY_JOB, "demo")


def test_the_log_of_a_job_is_gone_with_its_head(kubeconfig: Callable[[str], None]) -> None:
    status = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    status |= {"jobId": "x", "rayClusterName": "run-abc"}
    metadata = {"name": "run", "creationTimestamp": "2026-11-26T12:00:00Z"}
    job: dict[str, Any] = {"kind": "RayJob", "metadata": metadata, "status": status}
    told: list[str] = []
    with server({place(RAY_JOB, "run"): job}) as (address, _):
        kubeconfig(address)
        cluster = Cluster("research")
        texts = follow(cluster, "run", follows=True, seconds=0.1, on_problem=told.append)
        assert list(texts) == [""]
        texts = follow(cluster, "run", follows=False, seconds=0.1, on_problem=told.append)
        with pytest.raises(ClusterError, match="its log is gone with the head of run-abc"):
            list(texts)
        job["status"] = {"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded"}
        texts = follow(cluster, "run", follows=True, seconds=0.1, on_problem=told.append)
        assert list(texts) == [""]
    assert told == [
        "RayJob=run: has succeeded, and its log is gone with the head of run-abc; see `llavamed "
        "cluster status run --namespace research` for what it reached",
        "RayJob=run: has failed without a driver, so it has no log; see `llavamed cluster status "
        "run --namespace research`",
    ]


def test_a_certificate_that_is_not_trusted_is_not_waited_for(
    kubeconfig: Callable[[str], None], tmp_path: Path
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "somebody")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem = serialization.Encoding.PEM
    (tmp_path / "own.pem").write_bytes(key.private_bytes(pem, *form) + made.public_bytes(pem))
    with server({}, tmp_path / "own.pem") as (address, asked):
        kubeconfig(address)
        with pytest.raises(ClusterError, match="its certificate is not trusted") as caught:
            Cluster("research").find_all(RAY_JOB)
    assert not isinstance(caught.value, UnreachableError)
    assert asked == []
