"""Every value, as a person can give it to the real helm: it works, or the schema says why not."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.support.chart_release import CHART, nested
from tests.support.chart_values import BESIDE, OTHER
from tests.support.control_plane import Helm
from tests.support.kubernetes_rules import core_violations, load_objects

SECTIONS = sorted({name.rsplit(".", depth)[0] for name in OTHER for depth in (1, 2, 3)} - {*OTHER})
KUBE = ("--kube-version", "1.36.0")  # a helm built from source assumes an old one
GO = re.compile(r"<nil>|%!|nil pointer|incompatible types|error calling|map\[|executing ")


def escaped(text: str) -> str:
    """A value as `--set` takes it."""
    return re.sub(r"([,{}])", r"\\\1", text)


def given(way: str, name: str, folder: Path) -> list[str]:
    """The options of helm that give a value."""
    value = OTHER.get(name, {})
    match way:
        case "null":
            return ["--set", f"{name}=null"]
        case "null in a file" | "file":
            tree = nested({name: value if way == "file" else None})
            file = folder / "values.yaml"
            file.write_text(yaml.safe_dump(tree), encoding="utf-8")
            return ["--values", str(file)]
        case "set" if isinstance(value, dict | list):
            return ["--set-json", f"{name}={json.dumps(value)}"]
        case "set":
            text = json.dumps(value) if isinstance(value, bool) else str(value)
            return ["--set", f"{name}={escaped(text)}"]
        case _:
            return ["--set-string", f"{name}={escaped(str(value))}"]


def template(helm: Helm, name: str, options: list[str]) -> tuple[int, str]:
    """What `helm template` says: the manifests, or why not."""
    beside = [f"--set={key}={value}" for key, value in BESIDE.get(name, {}).items()]
    ran = helm.run(
        "template", "llavamed", str(CHART), "--namespace=research", *KUBE, *beside, *options
    )
    warnings = re.compile(
        r"^(walk|coalesce)\.go:.*\n|.*(symbolic link|cannot overwrite table).*\n", re.M
    )
    return ran.returncode, ran.stdout if ran.returncode == 0 else warnings.sub("", ran.stderr)


def check(code: int, said: str, name: str) -> None:
    """Manifests that Kubernetes takes, or a refusal by the schema that names the key."""
    assert not GO.search(said), said
    if code == 0:
        core = [item for item in load_objects(said) if item["apiVersion"] != "ray.io/v1"]
        assert [violation for item in core for violation in core_violations(item)] == []
        return
    *parents, leaf = name.split(".")
    place = "/" + "/".join(parents) if parents else ""
    assert "values don't meet the specifications of the schema" in said
    assert f"'{place}/{leaf}" in said or f"at '{place}': missing property '{leaf}'" in said, said


@pytest.mark.parametrize("way", ["set", "set-string", "file", "null", "null in a file"])
def test_every_value_works_or_is_refused_by_its_key(way: str, helm: Helm, tmp_path: Path) -> None:
    refused = []
    for name in OTHER:
        code, said = template(helm, name, given(way, name, tmp_path))
        check(code, said, name)
        if code != 0:
            refused.append(name)
    cpus = {
        name for name in OTHER if name.endswith(".cpu")
    }  # a number or text, as Kubernetes has it
    texts = cpus | {name for name, value in OTHER.items() if isinstance(value, str)}
    match way:
        case "set" | "file":
            assert refused == []
        case "set-string":
            assert set(refused) == OTHER.keys() - texts
        case _:
            assert set(refused) == OTHER.keys()


def test_no_section_can_be_taken_away(helm: Helm) -> None:
    for name in SECTIONS:
        code, said = template(helm, name, ["--set", f"{name}=null"])
        assert code != 0, name
        check(code, said, name)
