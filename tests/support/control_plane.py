"""The `helm` programs that scripts/control_plane.sh builds, run as a person runs them."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


def program(name: str) -> Path:
    """A program of the control plane; the test skips where none was built."""
    folder = os.environ.get("LLAVAMED_CONTROL_PLANE")
    if not folder:
        reason = "LLAVAMED_CONTROL_PLANE names no folder of programs: run `make test-cluster`"
        if os.environ.get("LLAVAMED_REQUIRE_CONTROL_PLANE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    path = Path(folder) / name
    assert path.is_file(), f"{path}: no such program; run scripts/control_plane.sh"
    return path


@dataclass(frozen=True)
class Helm:
    """One version of helm, and the cluster that it talks to."""

    path: Path
    kubeconfig: Path | None = None

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end; the caller looks at the exit status."""
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig or os.devnull)}
        return subprocess.run(
            [str(self.path), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
