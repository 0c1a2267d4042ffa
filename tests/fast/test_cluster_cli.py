"""What `llavamed cluster` refuses before it asks any cluster."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml
from kubernetes.config import incluster_config

from llavamed.cluster import client
from llavamed.cluster.client import Cluster
from tests.conftest import CONFIGS

K8S = Path(__file__).parents[2] / "k8s"
Tool = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tool(llavamed: Tool, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Run the tool where there is no kubeconfig; gives exit code, output and errors."""
    monkeypatch.setenv("KUBECONFIG", "/nonexistent/kubeconfig")
    return partial(llavamed, "cluster")


def dry_run(tool: Tool, template: Path, *words: str) -> tuple[int, str, str]:
    config = ("--config", str(CONFIGS / "demo.yaml"))
    return tool("submit", *config, "--dry-run", "--template", str(template), *words)


def test_the_manifest_is_all_that_is_printed(tool: Tool) -> None:
    code, out, err = dry_run(tool, K8S / "rayjob.yaml", "storage=s3://bucket/runs")
    assert code == 0
    assert yaml.safe_load(out)["metadata"]["name"] == "demo"
    assert err == ""


def test_a_folder_as_storage_is_warned_of(tool: Tool) -> None:
    code, _, err = dry_run(tool, K8S / "rayjob.yaml", "storage=/mnt/runs")
    assert code == 0
    assert "storage=/mnt/runs: is a folder of the cluster, so `cluster status` cannot read" in err


def test_data_on_this_machine_is_warned_of(tool: Tool) -> None:
    read = "{source: llava_json, path: data/a.csv, image_folder: s3://bucket/images}"
    words = ("storage=s3://bucket/runs", f"data.datasets.captions.read={read}")
    code, _, err = dry_run(tool, K8S / "rayjob.yaml", *words)
    assert code == 0
    assert "data.datasets.captions.read.path=data/a.csv: is looked for in the pods" in err
    assert "image_folder" not in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("kind: ConfigMap\n", "holds 0 RayJobs and RayClusters and must hold one; give k8s/rayjob"),
        ("kind: RayJob\n---\nkind: RayCluster\n", "holds 2 RayJobs and RayClusters"),
        ("kind: RayJob\nspec: {}\n", "is neither a RayCluster nor a RayJob with a rayClusterSpec"),
    ],
)
def test_a_template_that_is_none_is_refused(
    tool: Tool, tmp_path: Path, text: str | None, message: str
) -> None:
    file = tmp_path / "template.yaml"
    if text is not None:
        file.write_text(text)
    code, out, err = dry_run(tool, file)
    assert (code, out) == (2, "")
    assert message in err


def test_a_config_that_breaks_a_rule_is_refused_first(tool: Tool) -> None:
    code, _, err = dry_run(tool, K8S / "rayjob.yaml", "scaling.num_workers=0")
    assert code == 2
    assert "scaling.num_workers=0" in err


@pytest.mark.parametrize("words", [("list",), ("status", "demo"), ("doctor",), ("logs", "demo")])
def test_without_a_kubeconfig_it_says_so(tool: Tool, words: tuple[str, ...]) -> None:
    code, _, err = tool(*words)
    assert code == 2
    assert "context=current: the kubeconfig cannot be used" in err
    assert "set KUBECONFIG, or name a context with --context" in err


KUBECONFIG = """
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, user: {token: x}}]
contexts:
  - {name: one, context: {cluster: c, user: u, namespace: research}}
  - {name: two, context: {cluster: c, user: u}}
"""


@pytest.mark.parametrize(
    "text", ["", "{ a: [", "only words", "- a\n- b\n", "contexts: 5\n", KUBECONFIG, "\0"]
)
def test_a_kubeconfig_of_another_form_is_no_stack_trace(
    text: str, tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config"
    file.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(file))
    code, _, err = tool("list")
    assert code == 2
    assert "context=current: the kubeconfig cannot be used" in err
    assert len(err.splitlines()) == 1


def test_the_namespace_is_that_of_the_context_also_where_none_is_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config"
    file.write_text(KUBECONFIG)
    for place in (str(file), f"{tmp_path}/none:{file}"):
        monkeypatch.setenv("KUBECONFIG", place)
        assert Cluster(context="one").namespace == "research"
        assert Cluster(context="two").namespace == "default"
        assert Cluster("other", "one").namespace == "other"
    file.write_text(f"{KUBECONFIG}\ncurrent-context: one\n")
    assert Cluster().namespace == "research"


def test_in_a_pod_the_namespace_is_the_pods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {"token": "x", "ca.crt": "x", "namespace": "research\n"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(client, "_POD_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    monkeypatch.setenv("KUBECONFIG", "")  # as good as none, as it is to kubectl
    assert Cluster().namespace == "research"
    assert Cluster("other").namespace == "other"
