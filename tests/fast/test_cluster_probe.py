"""What a probe finds from within a pod, run here as a process, and what is made of its report."""

import json
import platform
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml

from llavamed import __version__
from llavamed.cluster.pods import groups_of
from llavamed.cluster.probe import MAX_BYTES, main, report
from llavamed.cluster.probes import _judge_pod, judge, make_probe
from tests.support.http_server import serving
from tests.support.kubernetes_rules import core_violations, restriction_violations

CLUSTER = yaml.safe_load((Path(__file__).parents[2] / "k8s" / "raycluster.yaml").read_text())
HEALTHY = {
    "python": platform.python_version(),
    "llavamed": __version__,
    "ray": "2.60.0",
    "shared_memory": 2**34,
    "storage": "",
    "mlflow": "",
}


@pytest.fixture
def server() -> Iterator[str]:
    """An MLflow that answers /health and refuses all else, as it refuses an unknown Host."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 403)
            self.end_headers()
            self.wfile.write(b"Invalid Host header")

    with serving(Handler) as url:
        yield url


def test_a_pod_reports_what_it_can_do(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    message = tmp_path / "message"
    main([str(tmp_path / "storage")], message)
    facts = json.loads(message.read_text())
    assert (facts["storage"], facts["mlflow"]) == ("", "")
    assert facts["python"] == platform.python_version()
    assert facts["shared_memory"] > 0
    assert list((tmp_path / "storage").iterdir()) == [], "what it wrote is deleted"


def test_a_pod_reports_what_it_cannot_do(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{server}/other")
    facts = report(str(tmp_path / "file" / "storage"))
    assert "file/storage" in facts["storage"]
    assert facts["mlflow"].endswith("/other/health answers 403: Invalid Host header")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert "refused" in report(None)["mlflow"]
    assert "storage" not in report(None)
    assert len(json.dumps(facts)) < MAX_BYTES


@pytest.mark.parametrize("position", [0, 1, 2], ids=["head", "cpu", "a100"])
def test_a_probe_is_a_pod_of_its_group_that_any_namespace_admits(position: int) -> None:
    group = groups_of(CLUSTER)[position]
    pod = make_probe(CLUSTER, group, "s3://bucket/probe")
    assert core_violations(pod) == []
    assert restriction_violations(pod["spec"]) == []
    (container,) = pod["spec"]["containers"]
    own = group.spec["containers"][0]
    assert (container["image"], container["env"]) == (own["image"], own["env"])
    assert container["args"] == ["s3://bucket/probe"]
    assert "nvidia.com/gpu" not in str(container["resources"])
    limits = own["resources"]["limits"]
    assert container["resources"]["limits"] == {key: limits[key] for key in ("cpu", "memory")}
    for key in ("nodeSelector", "tolerations", "serviceAccountName", "volumes"):
        assert pod["spec"].get(key) == group.spec.get(key)


def test_a_healthy_report_is_no_problem() -> None:
    assert list(judge(HEALTHY)) == []


@pytest.mark.parametrize(
    ("facts", "level", "message"),
    [
        ({"storage": "s3://b: cannot write it"}, "failure", "storage: s3://b: cannot write it"),
        ({"mlflow": "403"}, "failure", "MLflow: 403; check its Deployment and the NetworkPolicies"),
        ({"shared_memory": 2**26}, "failure", "/dev/shm has 64 MiB, too little for Ray and NCCL"),
        ({"ray": None}, "failure", "the image has no Ray; build it from our Dockerfile"),
        ({"llavamed": "0.0.1"}, "warning", "the image has llavamed 0.0.1 and this program is"),
        ({"python": "3.9.1"}, "warning", "the image has Python 3.9 and this machine 3."),
    ],
)
def test_a_report_is_judged(facts: dict[str, Any], level: str, message: str) -> None:
    (problem,) = judge(HEALTHY | facts)
    assert problem.level == level
    assert problem.text.startswith(message)


TAINTED = "0/1 nodes are available: 1 node(s) had untolerated taint(s)."
UNSCHEDULED = {"type": "PodScheduled", "status": "False", "message": TAINTED}


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ({"phase": "Pending", "conditions": [UNSCHEDULED]},
         "pod p did not end within 9 s: p: 1 nodes have a taint that it does not tolerate"),
        ({"phase": "Running"}, "pod p did not end within 9 s: it is Running; mend that, or wait"),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on memory"},
         "the probe ended with code unknown and no report (Evicted: low on memory); the image"),
        ({"phase": "Failed", "containerStatuses": [
            {"state": {"terminated": {"exitCode": 127, "message": "no python"}}}]},
         "the probe ended with code 127 and no report (no python); the image may lack llavamed"),
    ],
)  # fmt: skip
def test_a_probe_without_a_report_is_explained(status: dict[str, Any], message: str) -> None:
    pod = {"metadata": {"name": "p"}, "status": status}
    (problem,) = _judge_pod(pod, [], 9)
    assert problem.level == "failure"
    assert problem.text.startswith(message)
