"""The image fits the pods, and the steps of the Dockerfile work.

The steps are executed in a virtual environment of the same Python, where the dependencies are
those of this environment. What apt-get installs is the one step that is left out. `make test-image`
builds the image for real: test_image_build.py.
"""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from sqlalchemy import make_url

from llavamed import __version__
from tests.support.chart_release import ROOT
from tests.support.dockerfile import copied, instructions, kept


def test_the_image_is_pinned_and_not_root() -> None:
    words = instructions()
    assert [line for line in words if line[0] == "FROM"] == [["FROM", "python:3.11-slim-trixie"]]
    assert words[-1] == ["USER", "1000:1000"]
    installs = [" ".join(line) for line in words if "pip" in line]
    assert all("--constraint constraints.txt" in i or "--no-deps" in i for i in installs)
    assert not re.search(r"https?://", (ROOT / "Dockerfile").read_text(encoding="utf-8"))


def test_a_user_of_any_number_may_write_into_the_home_of_the_image() -> None:
    """Without one in the image it is that of the user, or `/` for a number that has no name."""
    (variables,) = [words for word, *words in instructions() if word == "ENV"]
    assert "HOME=/tmp" in variables


def test_the_image_is_made_of_files_that_the_build_sees() -> None:
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, f"{pattern}*") for pattern in kept()), source


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = PROJECT["optional-dependencies"]
ELSEWHERE = {"benchmark", "cluster", "dev", "faces", "ocr"}
"""Extras of a development machine or a laptop, and what looks for text and faces in pictures."""


def extras() -> list[str]:
    """The extras that the image installs."""
    install = next(" ".join(words) for words in instructions() if "--constraint" in words)
    (names,) = re.findall(r'"\.\[([\w,]+)\]"', install)
    return names.split(",")


def requirements() -> list[str]:
    """The packages that the image installs, with the versions that we ask for."""
    return [*PROJECT["dependencies"], *(name for extra in extras() for name in OPTIONAL[extra])]


def test_the_image_runs_every_command_of_a_cluster() -> None:
    assert set(extras()) == OPTIONAL.keys() - ELSEWHERE


def test_the_image_can_serve_mlflow_on_postgres_and_buckets() -> None:
    names = {re.split(r"[\[<>=~! ]", requirement)[0] for requirement in requirements()}
    driver = make_url("postgresql://host/database").get_driver_name()  # what a plain URI asks for
    assert {"ray", "mlflow", driver, "boto3", "gcsfs"} <= names


def test_every_package_of_the_image_has_one_version() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    for requirement in requirements():
        name = re.split(r"[\[<>=~! ]", requirement)[0].lower().replace("_", "-")
        assert re.search(rf"^{re.escape(name)}(\[.*\])?==", pins, re.MULTILINE), name


LEFT_OUT = shutil.ignore_patterns("__pycache__")


class Image:
    """What the steps have made so far: a folder for /app, and an environment for the system's."""

    def __init__(self, folder: Path) -> None:
        self.app, self.venv = folder / "app", folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", self.venv], check=True)
        # The dependencies, in the versions of constraints.txt that this environment has.
        (site,) = self.venv.glob("lib/python*/site-packages")
        (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        self.environment = {"PATH": f"{self.venv / 'bin'}:/usr/bin:/bin", "HOME": str(folder)}
        self.environment |= {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "SSL_"))}

    def execute(self, name: str, words: list[str]) -> None:
        """Execute an instruction; those that only describe the image do nothing."""
        match name:
            case "WORKDIR":
                assert words == ["/app"]
                self.app.mkdir()
            case "ENV":
                self.environment |= dict(word.split("=", 1) for word in words)
            case "COPY":
                *sources, target = words
                for source in sources:
                    self.copy(ROOT / source, self.app / target)
            case "RUN" if words[0] != "apt-get":
                self.run("sh", "-euc", " ".join(words))

    def copy(self, source: Path, target: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, target, ignore=LEFT_OUT, dirs_exist_ok=True)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)

    def run(self, *command: str) -> str:
        ran = subprocess.run(
            command, cwd=self.app, env=self.environment, check=False, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    made = Image(tmp_path_factory.mktemp("image"))
    for name, *words in instructions():
        made.execute(name, words)
    return made


def test_the_image_holds_every_file_of_the_package(image: Image) -> None:
    """Templates, pages and price tables too: a wheel leaves out what nobody declares."""
    (installed,) = image.venv.glob("lib/python*/site-packages/llavamed")
    listed = subprocess.run(
        ["git", "ls-files", "llavamed"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    names = [name for name in listed.stdout.split() if (ROOT / name).is_file()]
    assert len(names) > 50
    assert [name for name in names if not (installed.parent / name).is_file()] == []


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["llavamed", "--version"], lambda text: __version__ in text),
        (["python", "ray_jobs/train.py", "--help"], lambda text: "--config" in text),
        (["mlflow", "--version"], lambda text: mlflow.__version__ in text),
    ],
    ids=["llavamed", "train", "mlflow"],
)
def test_the_commands_of_the_pods_run(
    command: list[str], told: Callable[[str], bool], image: Image
) -> None:
    if command[0] == "mlflow":  # a script of the dependencies, which are of another environment
        command = ["python", "-m", *command]
    assert told(image.run(*command))
