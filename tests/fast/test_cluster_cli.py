"""What `llavamed cluster` refuses before it asks any cluster."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from llavamed.cli.main import main
from tests.conftest import CONFIGS

K8S = Path(__file__).parents[2] / "k8s"
Tool = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Run the tool where there is no kubeconfig; gives exit code, output and errors."""
    monkeypatch.setenv("KUBECONFIG", "/nonexistent/kubeconfig")

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["cluster", *words])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


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
