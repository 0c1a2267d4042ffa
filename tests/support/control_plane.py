"""A Kubernetes control plane on loopback: etcd, API server, controllers, scheduler and kwok.

Nothing runs in its pods: kwok only says that they run. scripts/control_plane.sh builds the
programs.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.kubernetes_rules import Object

ADMIN = "admin-token"
NOBODY = "nobody-token"
TOKENS = {
    ADMIN: ("admin", '"system:masters"'),
    "controllers-token": ("system:kube-controller-manager", ""),
    "scheduler-token": ("system:kube-scheduler", ""),
    NOBODY: ("nobody", ""),
}
STAGES = Path(__file__).with_name("kwok_stages.yaml")


def program(name: str) -> Path:
    """A program of the control plane; the test skips where none was built."""
    folder = os.environ.get("LLAVAMED_CONTROL_PLANE")
    found = Path(folder) / name if folder else None
    if name == "etcd":
        system = shutil.which("etcd")
        found = Path(system) if system and folder else None
    if found is None or not found.is_file():
        reason = f"{name}: not found; `make test-cluster` builds it where Go and etcd are installed"
        if os.environ.get("LLAVAMED_REQUIRE_CONTROL_PLANE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@dataclass(frozen=True)
class Helm:
    """One version of helm, and the cluster that it talks to."""

    path: Path
    kubeconfig: Path | None = None

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end; the caller looks at the exit status."""
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig or os.devnull)}
        # It lives for a moment: collecting its garbage takes a third of its time.
        environment["GOGC"] = "off"
        return subprocess.run(
            [str(self.path), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def __call__(self, *arguments: str) -> str:
        """Run it to its end; give what it printed, and fail the test where it failed."""
        ran = self.run(*arguments)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout


@dataclass(frozen=True)
class Api:
    """The API server, asked as its administrator or, with `user`, in the name of another."""

    url: str
    certificate: Path
    user: str | None = None
    away: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    """Kills the server; it comes back, with all it held, behind the block."""

    def ask(self, method: str, path: str, body: Any = None, **options: Any) -> requests.Response:
        """Send one request; unknown fields of the body are errors, and warnings are printed."""
        headers = {"Authorization": f"Bearer {ADMIN}"}
        if self.user is not None:
            headers["Impersonate-User"] = self.user
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        strict = {} if method == "GET" else {"fieldValidation": "Strict"}
        return requests.request(
            method,
            f"{self.url}{path}",
            params=strict | options,
            data=None if body is None else json.dumps(body),
            headers=headers | {"Content-Type": kind},
            verify=str(self.certificate),
            timeout=30,
        )

    def kinds(self) -> Iterator[tuple[str, str, str]]:
        """The kinds of objects that namespaces hold: where they are, their name and its plural."""
        groups = self.get("/apis")["groups"]
        roots = [f"/apis/{group['preferredVersion']['groupVersion']}" for group in groups]
        for root in ["/api/v1", *roots]:
            for resource in self.get(root)["resources"]:
                if resource["namespaced"] and "list" in resource["verbs"]:
                    yield root, resource["kind"], resource["name"]

    def get(self, path: str) -> Any:
        """An object or a list of them; None where there is none."""
        answer = self.ask("GET", path)
        if answer.status_code == 404:
            return None
        assert answer.status_code == 200, answer.text
        return answer.json()

    def create(self, manifest: Object, namespace: str = "default", **options: str) -> Object:
        """Create an object."""
        answer = self.ask("POST", collection(manifest, namespace), manifest, **options)
        assert answer.status_code == 201, answer.text
        created: Object = answer.json()
        return created

    def eventually(self, path: str, holds: Any, seconds: float = 60) -> Any:
        """The object, once `holds(object)` does."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.get(path)
            if holds(found):
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.1)


PLURALS = {"NetworkPolicy": "networkpolicies", "StorageClass": "storageclasses"}
CLUSTER_WIDE = {
    "Namespace", "Node", "PersistentVolume", "CustomResourceDefinition", "PriorityClass",
}  # fmt: skip


def collection(manifest: Object, namespace: str) -> str:
    """Where objects of this kind are."""
    version, kind = manifest["apiVersion"], manifest["kind"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    plural = PLURALS.get(kind, f"{kind.lower()}{'es' if kind.endswith('s') else 's'}")
    return f"{root}/{plural}" if kind in CLUSTER_WIDE else f"{root}/namespaces/{namespace}/{plural}"


def free_ports(count: int) -> list[int]:
    """Ports that no process listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]


@contextlib.contextmanager
def running(folder: Path, *command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process, its output in `folder`, that is ended by its id."""
    name = Path(command[0]).name
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def control_plane(folder: Path) -> Iterator[Api]:
    """Start the control plane, with its data in `folder`; end it behind the block."""
    programs = {
        name: program(name)
        for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")
    }
    etcd, peer, port, *health = free_ports(5)
    api = Api(f"https://127.0.0.1:{port}", folder / "certificates" / "apiserver.crt")
    key = _write_key(folder)
    tokens = folder / "tokens.csv"
    tokens.write_text("".join(f"{t},{user},{user},{g}\n" for t, (user, g) in TOKENS.items()))
    with contextlib.ExitStack() as stack:
        # What helm learns of the server goes with it, and not into the user's home.
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("KUBECACHEDIR", str(folder / "cache"))

        def start(name: str, *options: str) -> subprocess.Popen[bytes]:
            return stack.enter_context(running(folder, programs[name], *options))

        start(
            "etcd",
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{etcd}",
            f"--advertise-client-urls=http://127.0.0.1:{etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
        )
        options = (
            f"--etcd-servers=http://127.0.0.1:{etcd}",
            f"--secure-port={port}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={folder / 'certificates'}",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/24",
            # Debian's etcd cannot report the progress of a watch, which listing by a watch needs.
            "--feature-gates=WatchList=false",
        )
        servers = [start("kube-apiserver", *options)]
        _wait_until_ready(api, servers[-1], folder)

        @contextlib.contextmanager
        def away() -> Iterator[None]:
            servers[-1].kill()
            servers[-1].wait()
            yield
            servers.append(start("kube-apiserver", *options))
            _wait_until_ready(api, servers[-1], folder)

        start(
            "kube-controller-manager",
            f"--kubeconfig={write_kubeconfig(api, folder, 'controllers-token')}",
            f"--service-account-private-key-file={key}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={health[0]}",
            # kwok's nodes send no heartbeats.
            "--controllers=*,-node-lifecycle-controller",
        )
        start(
            "kube-scheduler",
            f"--kubeconfig={write_kubeconfig(api, folder, 'scheduler-token')}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={health[1]}",
        )
        start(
            "kwok",
            f"--kubeconfig={write_kubeconfig(api, folder, ADMIN)}",
            f"--config={STAGES}",
            "--manage-all-nodes=false",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
        )
        path = "/api/v1/namespaces/default/serviceaccounts/default"
        api.eventually(path, lambda found: found is not None)
        yield replace(api, away=away)


def write_kubeconfig(api: Api, folder: Path, token: str) -> Path:
    """A file that leads to the API server as the user of `token`."""
    file = folder / f"{token}.kubeconfig"
    cluster = {"server": api.url, "certificate-authority": str(api.certificate)}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def _write_key(folder: Path) -> Path:
    """The key that signs the tokens of service accounts."""
    file = folder / "service-accounts.key"
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.PrivateFormat.TraditionalOpenSSL
    pem = serialization.Encoding.PEM
    file.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    return file


def _wait_until_ready(api: Api, server: subprocess.Popen[bytes], folder: Path) -> None:
    log = folder / "kube-apiserver.log"
    for _ in range(600):
        assert server.poll() is None, log.read_text(encoding="utf-8")[-3000:]
        with contextlib.suppress(requests.RequestException, OSError):
            if api.ask("GET", "/readyz").status_code == 200:
                return
        time.sleep(0.2)
    raise AssertionError(log.read_text(encoding="utf-8")[-3000:])
