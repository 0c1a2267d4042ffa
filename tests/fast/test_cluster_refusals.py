"""What Kubernetes refuses is explained in one sentence, with what to do about it."""

import json
from typing import Any

import pytest

from llavamed.cluster.explain import Call, explain
from llavamed.cluster.kinds import RAY_JOB, SERVICE_PROXY, Kind

CALL = Call("create", RAY_JOB, "research", name="demo")


def answer(**body: Any) -> str:
    return json.dumps(body)


FORBIDDEN = (
    'rayjobs.ray.io is forbidden: User "{}" cannot create resource "rayjobs" in API group "ray.io"'
)


def test_a_missing_rule_is_named_with_the_commands_that_grant_it() -> None:
    said = explain(403, answer(message=FORBIDDEN.format("alice")), CALL)
    assert said.startswith("RayJob=demo: alice may not create rayjobs.ray.io; an administrator")
    assert (
        "`kubectl create role llavamed-create-rayjobs --verb create --resource rayjobs.ray.io "
        "--namespace research`"
    ) in said
    assert "--role llavamed-create-rayjobs --user alice --namespace research`" in said
    robot = FORBIDDEN.format("system:serviceaccount:research:robot")
    assert "--serviceaccount research:robot" in explain(403, answer(message=robot), CALL)
    nodes = Call("list", Kind("Node", "", "v1", "nodes", is_namespaced=False), None, name="")
    cluster_wide = explain(403, answer(message='User "a" cannot list resource "nodes"'), nodes)
    assert "kubectl create clusterrole llavamed-list-nodes" in cluster_wide
    quota = explain(403, answer(message="exceeded quota: gpus, requested: 8, used: 8"), CALL)
    assert "is refused: exceeded quota: gpus" in quota


def test_what_a_service_answers_is_not_taken_for_the_api_servers_word() -> None:
    call = Call("get", SERVICE_PROXY, "research", name="demo-head-svc")
    said = explain(404, "Job demo-x does not exist", call)
    assert "the service itself answers 404: Job demo-x does not exist; its pod may" in said
    refused = answer(kind="Status", message='User "a" cannot get resource "services/proxy"')
    assert "--verb get --resource services/proxy --namespace research" in explain(
        403, refused, call
    )


@pytest.mark.parametrize(
    "said",
    [
        "error trying to reach service: dial tcp 10.0.0.1:8265: i/o timeout",
        'no endpoints available for service "demo-head-svc"',
    ],
)
def test_a_service_that_the_api_server_cannot_reach_is_not_the_api_servers_fault(said: str) -> None:
    call = Call("get", SERVICE_PROXY, "research", name="demo-head-svc")
    found = explain(503, answer(kind="Status", message=said), call)
    assert f"the API server gets no answer of the service ({said}): its pod may be sta" in found
    assert "a NetworkPolicy keeps the API server out" in found
    assert "`kubectl port-forward service/demo-head-svc --namespace research`" in found


@pytest.mark.parametrize(
    ("code", "body", "existing", "message"),
    [
        (401, {}, None, "the API server refuses the credentials of the kubeconfig; sign in again"),
        (404, {}, None, "does not know the kind; install KubeRay with `helm install kuberay-oper"),
        (
            404,
            {"details": {"name": "demo"}},
            ["a", "b"],
            "not in namespace research; there are: a,",
        ),
        (404, {"details": {"name": "demo"}}, [], "there is none; check --namespace"),
        (
            409,
            {"reason": "AlreadyExists"},
            None,
            "delete it with `llavamed cluster delete demo`, or",
        ),
        (
            409,
            {"reason": "Conflict"},
            None,
            "was changed by another client at the same time; run the",
        ),
        (
            422,
            {"details": {"causes": [{"field": "spec.entrypoint", "message": "too long"}]}},
            None,
            "has fields that Kubernetes refuses: spec.entrypoint: too long; correct them",
        ),
        (400, {"message": 'unknown field "spec.x"'}, None, 'refuses: unknown field "spec.x"; corr'),
        (503, {"message": "starting"}, None, "the API server answers 503: starting; try again"),
    ],
)
def test_every_refusal_says_what_to_do(
    code: int, body: dict[str, Any], existing: list[str] | None, message: str
) -> None:
    said = explain(code, answer(**body), CALL, existing)
    assert said.startswith("RayJob=demo: ")
    assert message in said


def test_what_answers_in_the_place_of_kubernetes_is_not_taken_for_it() -> None:
    page = "<html>\n" + "please sign in " * 99
    for status in (400, 403, 404):
        said = explain(status, page, CALL)
        assert said.startswith("RayJob=demo: what answers is not Kubernetes: <html> please sign")
        assert len(said) < 400
        assert "check the server of the kubeconfig" in said
    # Kubernetes itself says this in plain text of a group that nobody has installed.
    assert "install KubeRay" in explain(404, "404 page not found\n", CALL)


def test_nobody_is_never_granted_rights() -> None:
    said = explain(403, answer(kind="Status", message=FORBIDDEN.format("system:anonymous")), CALL)
    assert "nobody is signed in: the kubeconfig has no credentials" in said
    assert "kubectl create" not in said


def test_advice_leads_to_the_place_that_was_named() -> None:
    call = Call("create", RAY_JOB, "research", name="demo", options=" --namespace research")
    said = explain(409, answer(reason="AlreadyExists"), call)
    assert "`llavamed cluster delete demo --namespace research`" in said


def test_a_name_is_taken_until_its_object_has_gone() -> None:
    said = 'object is being deleted: rayjobs.ray.io "demo" already exists'
    found = explain(409, answer(reason="AlreadyExists", message=said), CALL)
    assert "is still being deleted in namespace research, until its pods have ended" in found
    assert "cluster delete" not in found
