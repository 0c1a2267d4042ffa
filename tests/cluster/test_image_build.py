"""The image, built for real, runs the commands of the pods as its own user.

`make test-image` builds it, with buildah and without a daemon, and names it in LLAVAMED_IMAGE.
"""

import os
import subprocess
from collections.abc import Iterator

import pytest
import yaml

from llavamed import __version__
from tests.support.chart_release import CHART, ROOT, hook_pods

pytestmark = pytest.mark.timeout(900)
BUILDAH = os.environ | {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}


def buildah(*words: str) -> str:
    ran = subprocess.run(
        ["buildah", *words], env=BUILDAH, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout.strip()


@pytest.fixture(scope="module")
def container() -> Iterator[str]:
    image = os.environ.get("LLAVAMED_IMAGE")
    if not image:
        pytest.skip("LLAVAMED_IMAGE: names no image; `make test-image` builds one with buildah")
    made = buildah("from", image)
    yield made
    buildah("rm", made)


def test_it_runs_as_a_user_who_may_not_change_it(container: str) -> None:
    said = buildah("run", container, "--", "sh", "-c", "id -u; test -w /app || echo fixed; pwd")
    assert said.split() == ["1000", "fixed", "/app"]


def test_its_versions_are_those_of_the_chart_and_of_constraints(container: str) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert values["ray"]["version"] in buildah("run", container, "--", "ray", "--version")
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    (mlflow,) = (pin.partition("==")[2] for pin in pins if pin.startswith("mlflow=="))
    assert mlflow in buildah("run", container, "--", "mlflow", "--version")
    assert __version__ in buildah("run", container, "--", "llavamed", "--version")
    assert "No broken requirements" in buildah(
        "run", container, "--", "python", "-m", "pip", "check"
    )


def test_it_has_what_kuberay_and_triton_call(container: str) -> None:
    words = ("bash", "g++", "wget", "ray", "llavamed", "mlflow")
    for word in words:
        assert buildah("run", container, "--", "which", word)
    assert "Usage" in buildah("run", container, "--", "llavamed", "--help")


def test_it_runs_the_curriculum_of_helm_test(container: str) -> None:
    pod = hook_pods({})["llavamed-test-curriculum"]["containers"][0]
    arguments = [
        word.replace("/etc/llavamed/configs", "/app/ray_jobs/configs") for word in pod["args"]
    ]
    environment = ["env", "HOME=/tmp", "RAY_ADDRESS=local"]
    said = buildah("run", container, "--", *environment, *pod["command"], *arguments)
    assert "vqa" in said
