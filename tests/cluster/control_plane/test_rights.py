"""The table of rights in the guide: each command works with those rules, and with none less."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.control_plane.conftest import Namespace, make_namespace
from tests.conftest import CONFIGS
from tests.support.chart_release import ROOT
from tests.support.control_plane import NOBODY, Api, Helm, program, write_kubeconfig
from tests.support.ray_dashboard import ray_dashboard

pytestmark = [pytest.mark.xdist_group("control plane"), pytest.mark.timeout(240)]

RULES = "rbac.authorization.k8s.io"
RUNNING = {
    "jobDeploymentStatus": "Running",
    "jobStatus": "RUNNING",
    "jobId": "demo-x",
    "rayClusterName": "demo-abc",
}
# In this order: the last one deletes the job.
COMMANDS = {
    "submit": ("submit", "--config", str(CONFIGS / "demo.yaml"), "storage=s3://nowhere/runs"),
    "list": ("list",),
    "status": ("status", "demo"),
    "logs": ("logs", "demo"),
    "stop": ("stop", "demo"),
    "delete": ("delete", "demo", "--force"),
}


def rights() -> dict[str, set[tuple[str, str]]]:
    """Verbs and resources of each command, from the table."""
    text = (ROOT / "docs" / "guides" / "cluster.md").read_text(encoding="utf-8")
    found: dict[str, set[tuple[str, str]]] = {}
    for name, needs in re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE):
        rules: set[tuple[str, str]] = set()
        for verbs, resources in re.findall(
            r"((?:\w+ and )?\w+) ((?:`[\w./]+`(?:, | and )?)+)", needs
        ):
            for verb in verbs.split(" and "):
                if verb in ("get", "list", "create", "delete"):
                    rules |= {(verb, each) for each in re.findall(r"`([\w./]+)`", resources)}
        found[name] = rules
    return found


def grant(place: Namespace, rules: set[tuple[str, str]]) -> None:
    """Let the user without rights do this and nothing else."""
    path = f"/apis/{RULES}/v1/namespaces/{place.name}/roles/tested"
    listed = [
        {
            "apiGroups": ["ray.io" if "ray.io" in resource else ""],
            "resources": [resource.removesuffix(".ray.io")],
            "verbs": [verb],
        }
        for verb, resource in sorted(rules)
    ]
    answer = place.api.ask("PATCH", path, {"rules": listed})
    assert answer.status_code == 200, answer.text


@pytest.fixture
def place(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """A release, and a user with an empty role."""
    made = make_namespace(api, Helm(program("helm4")), tmp_path)
    made.install()
    meta: dict[str, Any] = {"apiVersion": f"{RULES}/v1", "metadata": {"name": "tested"}}
    api.create(meta | {"kind": "Role", "rules": []}, made.name)
    to = {"kind": "Role", "name": "tested", "apiGroup": RULES}
    user = {"kind": "User", "name": "nobody", "apiGroup": RULES}
    api.create(meta | {"kind": "RoleBinding", "subjects": [user], "roleRef": to}, made.name)
    monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(api, tmp_path, NOBODY)))
    yield made
    api.ask("DELETE", f"/api/v1/namespaces/{made.name}")


@pytest.fixture
def run(place: Namespace, llavamed: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Run a command; gives what it says of missing rights, or nothing where it worked."""

    def run(*words: str) -> str:
        code, _, err = llavamed("--quiet", "cluster", *words, "--namespace", place.name)
        said = re.search(r"nobody may not (\w+ [\w./]+)", err)
        assert bool(code) <= bool(said), err
        return said[1] if said else ""

    return run


def test_each_rule_of_the_table_is_needed_and_all_are_enough(
    place: Namespace, run: Callable[..., str]
) -> None:
    table = rights()
    path = f"/apis/ray.io/v1/namespaces/{place.name}/rayjobs/demo/status"
    with ray_dashboard(place.api, place.name, "demo-abc"):
        for name, words in COMMANDS.items():
            for left_out in sorted(table[name]):
                if name == "submit" and left_out[0] == "get":
                    continue  # only where the answer to the first attempt is lost
                grant(place, table[name] - {left_out})
                assert until(run, words, " ".join(left_out)) == " ".join(left_out), name
            grant(place, table[name])
            assert until(run, words, "") == "", name
            if name == "submit":
                answer = place.api.ask("PATCH", path, {"status": RUNNING})
                assert answer.status_code == 200, answer.text


def until(run: Callable[..., str], words: tuple[str, ...], wanted: str) -> str:
    """Run a command again for a while: the authorizer learns of a role a moment later."""
    for _ in range(30):
        if (said := run(*words)) == wanted:
            break
        time.sleep(0.1)
    return said
