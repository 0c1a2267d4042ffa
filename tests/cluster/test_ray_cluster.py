"""Which Ray a command works on, as far as none needs to run for it."""

import socket

import pytest

from llavamed.config.run import RunConfig
from llavamed.errors import LlavaMedError
from llavamed.run.ray_cluster import ray_cluster


@pytest.mark.timeout(60)
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_is_not_there_is_told_at_once(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"{scheme}127.0.0.1:{port}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # other tests' Ray may live here
    message = (
        rf"^RAY_ADDRESS={address}: Ray does not answer: .*refused; start the cluster, or unset"
    )
    with pytest.raises(LlavaMedError, match=message), ray_cluster(tiny_config):
        pass
