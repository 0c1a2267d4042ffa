"""What `doctor` says where little or nothing is known, or where others run a part."""

from llavamed.cluster.kinds import DEPLOYMENT, NAMESPACE, RAY_CLUSTER, SERVICE
from tests.fast.test_cluster_doctor import healthy, named, problems


def test_a_namespace_that_is_not_there_or_empty_does_not_pass() -> None:
    snapshot = healthy()
    snapshot.objects[RAY_CLUSTER].clear()
    assert ["research has no RayCluster" in each.text for each in problems(snapshot)] == [True]
    snapshot.objects[NAMESPACE].clear()
    (missing,) = problems(snapshot)
    assert "make it with `kubectl create namespace research`" in missing.text


def test_why_objects_are_not_known_is_said_once() -> None:
    snapshot = healthy()
    del snapshot.objects[RAY_CLUSTER]
    snapshot.unreadable[RAY_CLUSTER] = "nobody may not list rayclusters.ray.io"
    found = [each.text for each in problems(snapshot) if "examined" in each.text]
    assert found[0] == "is not examined: nobody may not list rayclusters.ray.io"
    assert set(found[1:]) == {"is not examined, as rules is not"}


def test_a_server_of_your_own_may_have_other_pods_behind_it() -> None:
    snapshot = healthy()
    snapshot.objects[DEPLOYMENT].clear()
    snapshot.objects[SERVICE].append(named("llavamed-mlflow"))
    assert problems(snapshot) == []
