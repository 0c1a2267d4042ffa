"""Every value, as a person can give it to the real helm: it works, or the schema says why not."""

import re
from pathlib import Path

import pytest
import yaml

from tests.support.chart_release import CHART, nested
from tests.support.chart_values import BESIDE, OTHER, check_refusal, escaped, given
from tests.support.control_plane import Helm
from tests.support.kubernetes_rules import core_violations, is_core, load_objects

SECTIONS = sorted({name.rsplit(".", depth)[0] for name in OTHER for depth in (1, 2, 3)} - {*OTHER})
KUBE = ("--kube-version", "1.36.0")  # a helm built from source assumes an old one
GO = re.compile(r"<nil>|%!|nil pointer|incompatible types|error calling|map\[|executing ")


def template(helm: Helm, *options: str) -> tuple[int, str]:
    """What `helm template` says: the manifests, or why not."""
    ran = helm.run("template", "llavamed", str(CHART), "--namespace=research", *KUBE, *options)
    said = ran.stdout if ran.returncode == 0 else ran.stderr
    said = re.sub(r"^.*(symbolic link|cannot overwrite table).*\n", "", said, flags=re.MULTILINE)
    assert not GO.search(said), said
    return ran.returncode, said


@pytest.mark.parametrize("way", ["set", "file"])
def test_every_value_is_taken(way: str, helm: Helm, tmp_path: Path) -> None:
    for name in OTHER:
        beside = [f"--set={key}={value}" for key, value in BESIDE.get(name, {}).items()]
        code, said = template(helm, *beside, *given(way, name, tmp_path, OTHER[name]))
        assert code == 0, said
        core = [item for item in load_objects(said) if is_core(item)]
        assert [violation for item in core for violation in core_violations(item)] == []


def test_a_text_is_taken_for_a_text_and_no_number(helm: Helm, tmp_path: Path) -> None:
    cpus = {name for name in OTHER if name.endswith(".cpu")}  # a number or text, as in Kubernetes
    texts = cpus | {name for name, value in OTHER.items() if isinstance(value, str)}
    code, said = template(helm, *(f"--set-string={name}=7" for name in OTHER.keys() - texts))
    assert code != 0
    for name in OTHER.keys() - texts:
        check_refusal(said, name)
    for name in texts:
        value = escaped(str(OTHER[name]))
        beside = [f"--set={key}={item}" for key, item in BESIDE.get(name, {}).items()]
        assert template(helm, *beside, f"--set-string={name}={value}")[0] == 0, name


@pytest.mark.parametrize("in_a_file", [False, True], ids=["set", "file"])
def test_null_is_refused_by_its_key(in_a_file: bool, helm: Helm, tmp_path: Path) -> None:
    """Helm takes away what is null, and the schema says that all of it is needed."""
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(nested(dict.fromkeys(OTHER))), encoding="utf-8")
    nulls = [f"--set={name}=null" for name in OTHER]
    code, said = template(helm, *(["--values", str(file)] if in_a_file else nulls))
    assert code != 0
    for name in OTHER:
        check_refusal(said, name)
    for name in SECTIONS:
        code, said = template(helm, f"--set={name}=null")
        assert code != 0, name
        check_refusal(said, name)


@pytest.mark.parametrize("is_wanted", [True, False])
def test_the_chart_may_be_a_part_of_another(is_wanted: bool, helm: Helm, tmp_path: Path) -> None:
    """Helm hands a part the key of its condition, and what is global."""
    part = {"name": "llavamed", "version": "0.1.0", "condition": "llavamed.enabled"}
    chart = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": [part]}
    values = {"global": {"cloud": "any"}, "llavamed": {"enabled": is_wanted}}
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "llavamed").symlink_to(CHART)
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(chart), encoding="utf-8")
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    made = load_objects(helm("template", "team", str(tmp_path), *KUBE))
    assert ("RayCluster" in {item["kind"] for item in made}) == is_wanted
