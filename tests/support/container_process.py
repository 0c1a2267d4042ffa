"""A container of a manifest as a process of this machine: its command and environment."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from tests.support.chart_release import mlflow_pod
from tests.support.control_plane import free_ports
from tests.support.kubernetes_rules import Object

ROOT = Path(__file__).parents[2]


class ContainerProcess:
    """One container of a pod, with its mounts below `folder` and its Secrets from `secrets`."""

    def __init__(
        self,
        container: Object,
        folder: Path,
        secrets: dict[str, dict[str, str]] | None = None,
        given: dict[str, str] | None = None,
        user: int | None = None,
    ) -> None:
        self.container, self.secrets, self.user = container, secrets or {}, user
        self.places = {
            mount["mountPath"]: str(folder / mount["name"]) for mount in container["volumeMounts"]
        } | {"/app": str(ROOT), "/etc/llavamed/configs": str(ROOT / "ray_jobs" / "configs")}
        for path in self.places.values():
            Path(path).mkdir(parents=True, exist_ok=True)
        if user is not None:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, user, user)
        self.environment = self._environment() | (given or {})

    def _environment(self) -> dict[str, str]:
        named = {entry["name"]: entry for entry in self.container.get("env", [])}
        for source in self.container.get("envFrom", []):
            keys = self.secrets[source["secretRef"]["name"]]
            named |= {key: {"value": value} for key, value in keys.items()}
        return {name: self._value(entry) for name, entry in named.items()}

    def _value(self, entry: Object) -> str:
        source = entry.get("valueFrom", {})
        if "fieldRef" in source:
            return "10.1.2.3"
        if "secretKeyRef" in source:
            reference = source["secretKeyRef"]
            return self.secrets[reference["name"]][reference["key"]]
        return self._placed(entry["value"])

    def _placed(self, text: str) -> str:
        """Paths below a mount, as they are on this machine."""
        mounts = "|".join(re.escape(mount) for mount in self.places)
        return re.sub(rf"(?<![\w.])({mounts})(?=/|$)", lambda found: self.places[found[1]], text)

    def words(self, **changed: str) -> list[str]:
        """The command line, with `$(NAME)` expanded and options such as the port changed."""
        words = [*self.container.get("command", []), *self.container.get("args", [])]
        expanded = [
            re.sub(r"\$\((\w+)\)", lambda found: self.environment[found[1]], self._placed(word))
            for word in words
        ]
        options = {f"--{name}": value for name, value in changed.items()}
        return [
            f"{name}={options[name]}" if (name := word.partition("=")[0]) in options else word
            for word in expanded
        ]

    def start(self, **changed: str) -> subprocess.Popen[str]:
        """Start it with an environment that has nothing else but where programs are."""
        return subprocess.Popen(
            self.words(**changed),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **self._settings(),
        )

    def ask(self, action: Object) -> bool:
        """Whether a probe or a hook succeeds: its command, run beside the container."""
        command = action["exec"]["command"]
        ran = subprocess.run(command, check=False, capture_output=True, **self._settings())
        return ran.returncode == 0

    def wait_until_started(self, process: subprocess.Popen[str]) -> None:
        """Wait until the startup probe passes."""
        probe = self.container["startupProbe"]
        for _ in range(probe["failureThreshold"] * probe["periodSeconds"]):
            assert process.poll() is None, process.communicate()[0]
            if self.ask(probe):
                return
            time.sleep(1)
        raise AssertionError(f"{process.args}: does not pass the startup probe")

    def _settings(self) -> dict[str, Any]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        places = {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": "/nonexistent"}
        account = {} if self.user is None else {"user": self.user, "group": self.user, "cwd": "/"}
        return {"env": places | self.environment, **account}

    def run(self, **changed: str) -> str:
        """Run it to its end; give what it printed, and fail the test where it failed."""
        process = self.start(**changed)
        output, _ = process.communicate(timeout=500)
        assert process.returncode == 0, output
        return output

    @contextlib.contextmanager
    def serving(self, port: int) -> Iterator[str]:
        """Serve on another port until the block ends, from when the startup probe passes."""
        probe = self.container["startupProbe"]
        attempts = probe["failureThreshold"] * probe["periodSeconds"]
        process = self.start(port=str(port), host="127.0.0.1")
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(attempts):
                assert process.poll() is None, process.communicate()[0]
                with contextlib.suppress(requests.ConnectionError):
                    if requests.get(url + probe["httpGet"]["path"], timeout=10).ok:
                        break
                time.sleep(1)
            else:
                raise AssertionError(f"{url}: does not answer the startup probe")
            yield url
        finally:
            os.killpg(process.pid, 15)
            process.communicate(timeout=60)


@contextlib.contextmanager
def mlflow_server(
    values: dict[str, Any], folder: Path, secrets: dict[str, Any], given: dict[str, str]
) -> Iterator[str]:
    """The pod of MLflow: its migration, then its server."""
    pod = mlflow_pod(values)
    ContainerProcess(pod["initContainers"][0], folder, secrets, given).run()
    (port,) = free_ports(1)
    with ContainerProcess(pod["containers"][0], folder, secrets, given).serving(port) as url:
        yield url
