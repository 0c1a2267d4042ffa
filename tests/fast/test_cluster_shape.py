"""Manifests of any form: the tools examine them, or name the field; a stack trace is never seen."""

from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llavamed.cluster.doctor import examine
from llavamed.cluster.kinds import RAY_CLUSTER, RAY_JOB, RAY_SERVICE
from llavamed.cluster.rayjob import Submission, make_job
from llavamed.cluster.shape import ray_objects
from llavamed.cluster.snapshot import Snapshot, read_manifests
from llavamed.config.load import load_config
from llavamed.errors import ConfigError
from tests.conftest import CONFIGS
from tests.support.ray_objects import K8S, manifest, service

WHOLE = [manifest("raycluster"), manifest("rayjob"), service()]
JUNK = st.sampled_from(
    [None, "x", "", 5, -1, 0.5, True, [], {}, [None], ["x"], {"x": None}, {"x": "y"}]
)
CONFIG = load_config(CONFIGS / "demo.yaml", [])


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be put in the place of a part of an object."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [
        found
        for key, each in inner
        for found in [
            (*path, key),
            *(paths(each, (*path, key)) if isinstance(each, dict | list) else []),
        ]
    ]


@settings(max_examples=150)
@given(st.data())
def test_whatever_a_field_holds_it_is_examined_or_named(data: st.DataObject) -> None:
    document = deepcopy(data.draw(st.sampled_from(WHOLE)))
    *parents, last = data.draw(st.sampled_from(paths(document)))
    if not parents and last in ("kind", "apiVersion"):
        return
    place: Any = document
    for key in parents:
        place = place[key]
    place[last] = data.draw(JUNK)
    said = refusal(document)
    assert not said or ".".join(map(str, [*parents, last])) in said, said


def refusal(document: Any) -> str:
    """Examine an object, and make a job of it; gives why it is refused, or nothing."""
    try:
        found = ray_objects([document])
    except ValueError as error:
        return str(error)
    kinds = (RAY_CLUSTER, RAY_JOB, RAY_SERVICE)
    examine(Snapshot({kind: [x for x in found if x["kind"] == kind.name] for kind in kinds}))
    if document["kind"] != RAY_SERVICE.name:
        with suppress(ConfigError):
            make_job(Submission(CONFIG, "", ()), found[0])
    return ""


def test_a_cluster_without_a_spec_is_no_template() -> None:
    without = {key: value for key, value in manifest("raycluster").items() if key != "spec"}
    assert refusal(without) == ""
    with pytest.raises(
        ConfigError, match=r"^template=\S+: is a RayCluster without a spec; give k8s/"
    ):
        make_job(Submission(CONFIG, "", ()), without)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: RayCluster\n", "RayCluster: metadata: Field required"),
        ("kind: RayJob\nmetadata: {generateName: a}\n", "RayJob: metadata.name: Field required"),
        (
            "kind: RayCluster\nmetadata: {name: a}\nspec: {workerGroupSpecs: [{groupName: a, "
            "template: {}, replicas: '4'}]}\n",
            r"spec\.workerGroupSpecs\.0\.replicas: Input should be a valid integer",
        ),
        (
            "kind: RayCluster\nmetadata: {name: a}\nspec: {headGroupSpec: {template: {spec: "
            "{containers: [{name: a, resources: {limits: {memory: 8GB}}}]}}}}\n",
            r"limits\.memory: '8GB' is not a quantity",
        ),
        (
            "kind: RayJob\nmetadata: {name: a}\nspec: {deletionStrategy: {deletionRules: [{policy: "
            "DeleteCluster, condition: {jobStatus: FAILED, ttlSeconds: x}}]}}\n",
            r"deletionRules\.0\.condition\.ttlSeconds: Input should be a valid integer",
        ),
    ],
)
def test_a_field_of_another_form_is_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "manifests.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_manifests([file])


def test_what_kubectl_gets_is_a_list() -> None:
    assert ray_objects([{"kind": "List", "items": [*WHOLE, {"kind": "Pod"}]}, None, "x"]) == WHOLE
    text = (K8S / "raycluster.yaml").read_text(encoding="utf-8")
    assert ray_objects(list(yaml.safe_load_all(text))) == [WHOLE[0]]
