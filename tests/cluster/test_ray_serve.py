"""Replicas on Ray Serve answer as one process does, and no request is lost when one goes."""

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from safetensors.torch import load_file, save_file

from llavamed.errors import ConfigError
from llavamed.model.generation import Generator, Prompt
from llavamed.processor.turns import Turn
from llavamed.serve.export import open_export
from llavamed.storage.location import locate
from llavamed.tracking.mlflow_client import TrackingClient

pytestmark = pytest.mark.ray
TOKEN = "a-token-of-all-replicas"


@pytest.fixture(scope="module")
def address(local_ray: str) -> Iterator[str]:
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture
def arguments(tiny_export: Path, tmp_path: Path) -> dict[str, Any]:
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    serving = {"token_file": str(tokens), "device": "cpu", "max_waiting": 30}
    serving["limits"] = {"requests_per_minute": 100_000}
    return {"export": str(tiny_export), "min_replicas": 2, "max_replicas": 2, "serving": serving}


def replica_processes() -> list[int]:
    """Process ids of the replicas that this process has started."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            titles[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])

    def is_ours(pid: int) -> bool:
        while pid not in (0, os.getpid()):
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [pid for pid, title in titles.items() if "ServeReplica" in title and is_ours(pid)]


class Askers:
    """Clients that ask one question after another, with the retries of the openai client."""

    def __init__(self, address: str, expected: tuple[str, ...]) -> None:
        self._client = openai.OpenAI(
            base_url=f"{address}/v1", api_key=TOKEN, max_retries=5, timeout=60
        )
        self.expected, self._end = expected, threading.Event()
        self.answers, self.lost = list[str](), list[str]()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(4)]

    def __enter__(self) -> "Askers":
        for thread in self._threads:
            thread.start()
        self.wait_for(8)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, number: int) -> None:
        """Wait until so many more questions are answered."""
        goal = len(self.answers) + number
        self._wait_until(lambda: len(self.answers) >= goal)

    def wait_until_all_are(self, answer: str) -> None:
        """Wait until the last eight answers are this one."""
        self._wait_until(lambda: self.answers[-8:] == [answer] * 8)

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        limit = time.monotonic() + 120
        while not condition() and not self.lost:
            assert time.monotonic() < limit
            time.sleep(0.05)

    def _ask(self, number: int) -> None:
        while not self._end.is_set():
            messages: Any = [{"role": "user", "content": "What is shown?"}]
            expected = self.expected
            try:
                answer = self._client.chat.completions.create(
                    model="llavamed", messages=messages, max_tokens=8
                )
                text = answer.choices[0].message.content
                assert text in expected
                self.answers.append(text)
            except Exception as error:
                self.lost.append(f"{number}: {type(error).__name__}: {error}")
                return


def answer_of(export: Path) -> str:
    generator: Generator = open_export(locate(str(export)), device="cpu")
    prompt = Prompt([Turn("user", "What is shown?")], [])
    return generator.answer([prompt], max_new_tokens=8)[0]


def another_model(export: Path, folder: Path) -> Path:
    """Copy an export with other words at the end of its model."""
    copy = Path(shutil.copytree(export, folder / "another"))
    weights = load_file(copy / "model.safetensors")
    head = next(name for name in weights if name.endswith("lm_head.weight"))
    weights[head] = weights[head].roll(3, 0).contiguous()
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return copy


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrackingClient:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = TrackingClient(uri)
    client.create_registered_model("chat")
    return client


def set_champion(registry: TrackingClient, export: Path) -> None:
    version = registry.create_model_version("chat", str(export)).version
    registry.set_registered_model_alias("chat", "champion", version)


def test_no_request_is_lost_at_another_champion_or_a_kill(
    address: str,
    arguments: dict[str, Any],
    tiny_export: Path,
    tmp_path: Path,
    registry: TrackingClient,
) -> None:
    from ray import serve

    from llavamed.serve.cluster import app

    better = another_model(tiny_export, tmp_path)
    old, new = answer_of(tiny_export), answer_of(better)
    assert old != new
    arguments["export"] = "models:/chat@champion"
    set_champion(registry, tiny_export)
    serve.run(app(arguments), name="chat")
    with Askers(address, (old,)) as askers:
        before = set(replica_processes())
        assert len(before) == 2
        set_champion(registry, better)
        askers.expected = (old, new)
        serve.run(app(arguments), name="chat")  # returns when the new replicas run
        askers.wait_until_all_are(new)
        askers.expected = (new,)
        after = set(replica_processes())
        assert after - before
        os.kill(min(after - before), signal.SIGKILL)
        askers.wait_for(40)
    assert askers.lost == []


def test_replicas_need_a_token_that_they_share(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llavamed.serve.cluster import Replicas, _Replica, app

    monkeypatch.delenv("LLAVAMED_SERVE_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="token_env=LLAVAMED_SERVE_TOKEN: is not set on the node"):
        _Replica(Replicas(export=arguments["export"]))
    with pytest.raises(ValueError, match=r"max_replicas=1: is less than min_replicas=2"):
        app({"export": arguments["export"], "min_replicas": 2})
