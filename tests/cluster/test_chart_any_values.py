"""Whatever value a key is given, the chart renders what Kubernetes takes or names the key."""

import re
from typing import Any

import helm_python
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llavamed.cluster.rules import broken_rules
from tests.support.chart_release import objects
from tests.support.chart_values import OTHER
from tests.support.kubernetes_rules import (
    core_violations,
    is_core,
    pod_specs,
    restriction_violations,
)

KEYS = sorted({".".join(name.split(".")[:depth]) for name in OTHER for depth in (1, 2, 3, 4)})
WORDS = st.sampled_from(
    ["", "x", "a b", "1", "null", "true", "{{ .Values }}", "a:b", "- a", "'", '"', "\n", "s3://b",
     "https://r.io/x", "r.io/x:1", "10Gi", "0", "-1", "1e3", "*", "a/b", "é", "#"]
)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 10**10)
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["name", "value", "key", "x", "a b"]), inner, max_size=2)
    ),
    max_leaves=4,
)
OURS = re.compile(r"(ray|job|serve|mlflow|externalSecrets)\b[\w.]*[:=]|runConfig=|release name")


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=2))
def test_any_value_is_rendered_or_refused_by_its_key(values: dict[str, Any]) -> None:
    inner = {key for key in values for other in values if other.startswith(f"{key}.")}
    chosen = {key: value for key, value in values.items() if key not in inner}
    try:
        found = objects(chosen)
    except helm_python.HelmError as error:
        text = str(error)
        named = any(f"/{key.replace('.', '/')}" in text for key in chosen)
        missing = any(f"'{key.rpartition('.')[2]}'" in text for key in chosen)
        assert ("schema" in text and (named or missing)) or OURS.search(text), text
        assert not re.search(r"nil pointer|incompatible types|error calling|YAML parse", text), text
        return
    for name, item in found.items():
        assert "<nil>" not in str(item), name
        if is_core(item):
            assert core_violations(item) == [], name
        elif item["apiVersion"] == "ray.io/v1":
            assert broken_rules(item) == []
        assert [restriction_violations(pod) for pod in pod_specs(item)] == [[]] * len(
            pod_specs(item)
        )


def test_names_that_yaml_reads_as_other_things_stay_names() -> None:
    """`true`, `null` or `1e3` are names that Kubernetes takes."""
    for word in ("true", "null", "0", "1e3"):
        found = objects(
            {
                "image.pullSecrets": [word],
                "storage.existingSecret": word,
                "mlflow.database.existingSecret.name": word,
                "mlflow.auth.existingSecret": word,
                "mlflow.persistence.storageClass": word,
                "ray.priorityClass": word,
                "mlflow.priorityClass": word,
                "ray.claims": [{"claim": word, "mountPath": "/data"}],
                "externalSecrets.storeName": word,
                "externalSecrets.storageKey": word,
                "job.queue": word,
                "job.enabled": True,
                "image.prePull": True,
            }
        )
        for item in found.values():
            if is_core(item):
                assert core_violations(item) == [], word
        assert found["RayJob/llavamed"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == word
        assert found[f"ExternalSecret/{word}"]["spec"]["secretStoreRef"]["name"] == word


@pytest.mark.parametrize("name", ["true", "null", "on", "y", "no"])
def test_releases_may_have_names_that_yaml_reads_as_other_things(name: str) -> None:
    found = objects(name=name)
    assert f"RayCluster/{name}" in found
    for item in found.values():
        assert not is_core(item) or core_violations(item) == []
    (group, *_) = objects({"ray.gpuGroups": [{"name": name}]})["RayCluster/llavamed"]["spec"][
        "workerGroupSpecs"
    ][2:]
    assert group["groupName"] == name
