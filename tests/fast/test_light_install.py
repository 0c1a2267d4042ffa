"""Without the extra `train` there is neither torch nor Ray: what works then, and what says why not.

The packages are installed here, so a subprocess refuses to import them.
"""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from llavamed.cli import main as main_module
from tests.conftest import CONFIGS

MODULES = {"pillow": "PIL", "ray": "ray"}
"""Names under which packages are imported, where they differ from those of the packages."""


def train_only() -> list[str]:
    """Modules of the packages that only the extra `train` installs."""
    requirements = [Requirement(text) for text in metadata.requires("llavamed") or ()]
    names = {
        requirement.name
        for requirement in requirements
        if requirement.marker is not None and requirement.marker.evaluate({"extra": "train"})
    }
    assert {"torch", "ray", "transformers", "deepspeed", "mlflow"} <= names
    return sorted(MODULES.get(name, name) for name in names)


def run(*words: str, blocked: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line where some modules are not installed."""
    names = train_only() if blocked is None else blocked
    code = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from llavamed.cli.main import main
main({list(words)!r})
"""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["cluster", "--help"],
        ["cluster", "submit", "--help"],
        ["cluster", "doctor", "--help"],
        ["train", "--help"],
        ["config", "--config", str(CONFIGS / "llava-med-v1.5.yaml")],
        ["config", "--schema"],
    ],
    ids=" ".join,
)
def test_what_a_laptop_needs_loads_nothing_of_training(words: list[str]) -> None:
    ran = run(*words)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout


def test_the_versions_say_what_is_absent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(main_module.metadata, "version", absent)
    with pytest.raises(SystemExit):
        main_module.main(["--version"])
    assert "torch is not installed" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "plan", "prepare"])
def test_a_command_that_needs_an_extra_names_it(command: str) -> None:
    ran = run(command, "--config", str(CONFIGS / "demo.yaml"))
    assert ran.returncode == 2
    message = ": is not installed, and this command needs it; run `pip install 'llavamed[train]'`"
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_cluster_tools_name_their_own_extra() -> None:
    ran = run("cluster", "list", blocked=["kubernetes"])
    assert ran.returncode == 2
    assert "package=kubernetes: is not installed" in ran.stderr
    assert "pip install 'llavamed[cluster]'" in ran.stderr


def test_a_job_is_made_without_a_cluster_and_without_training(tmp_path: Path) -> None:
    template = Path(__file__).parents[2] / "k8s" / "rayjob.yaml"
    words = ["cluster", "submit", "--config", str(CONFIGS / "llava-med-v1.5.yaml")]
    places = ["storage=s3://bucket/runs", "--dry-run", "--template", str(template)]
    ran = run(*words, *places)
    assert ran.returncode == 0, ran.stderr
    assert yaml.safe_load(ran.stdout)["kind"] == "RayJob"
