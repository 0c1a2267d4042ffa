"""Fixtures every test may use."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from tenacity import wait_none

from llavamed.config.load import load_config, override_config
from llavamed.config.run import RunConfig

if TYPE_CHECKING:
    from tests.support.chat_endpoint import ChatEndpoint
    from tests.support.faulty_s3 import FaultyS3

CONFIGS = Path(__file__).parents[1] / "ray_jobs" / "configs"

# Another process may hold the processors, and CI must give the same answer for the same commit.
settings.register_profile("llavamed", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("llavamed")


def pytest_collection_finish() -> None:
    """Spare what is imported by now from garbage collection.

    A full collection of a process with all tests loaded takes 0.8 s, and each stage ends with one.
    """
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _try_again_at_once() -> Iterator[None]:
    """What fails in this process and may pass is tried again without a wait."""
    with pytest.MonkeyPatch.context() as patch:
        for client in ("storage.retry", "llm.client"):
            patch.setattr(f"llavamed.{client}.WAIT", wait_none())
        yield


@pytest.fixture
def llavamed(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command `llavamed` in this process; gives exit code, output and errors."""
    from llavamed.cli.main import main

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(words)
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def endpoint() -> "Iterator[ChatEndpoint]":
    """An endpoint of a language model on this machine, which says what a test lets it say."""
    from tests.support.chat_endpoint import chat_endpoint

    with chat_endpoint() as there:
        yield there


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder with real data and reference outputs; where absent, its tests skip and say so."""
    folder = Path(os.environ.get("LLAVAMED_REFERENCE_DATA", "../shared")).resolve()
    if not folder.is_dir():
        if os.environ.get("LLAVAMED_REQUIRE_REFERENCE_DATA") == "1":
            pytest.fail(f"LLAVAMED_REFERENCE_DATA={folder}: no such folder, and it is required")
        pytest.skip(f"no reference data at {folder}; set LLAVAMED_REFERENCE_DATA")
    return folder


@pytest.fixture(scope="session")
def s3_uri() -> Iterator[str]:
    """A bucket of an S3 server on this machine, with the environment that leads there."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("llavamed-test")
        yield "s3://llavamed-test"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def module_proxy(s3_uri: str) -> Iterator["FaultyS3"]:
    """The way to S3 of a module's tests."""
    from tests.support.faulty_s3 import proxy_to_s3

    with proxy_to_s3() as proxy:
        yield proxy


@pytest.fixture
def faulty(module_proxy: "FaultyS3") -> "FaultyS3":
    """The way to S3 of a module's tests, whole until a test tells it to fail."""
    module_proxy.heal()
    return module_proxy


@pytest.fixture(scope="session")
def session_config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The demo with parts as small as they can be; its storage is a folder of this session."""
    tiny = "hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2"
    vision = f"{{model_type: clip_vision_model, {tiny}, image_size: 16, patch_size: 8}}"
    text = f"{{model_type: llama, {tiny}, num_key_value_heads: 2, vocab_size: 320}}"
    return load_config(
        CONFIGS / "demo.yaml",
        [
            f"storage={tmp_path_factory.mktemp('storage')}",
            f"model.vision_tower.config={vision}",
            "model.vision_feature_layer=-2",
            "model.template=vicuna_v1",
            "data.max_length=512",
            *(f"stages.{stage}.max_tokens=1024" for stage in ("align", "instruct", "vqa")),
            f"model.language_model.config={text}",
        ],
    )


@pytest.fixture(scope="module")
def tiny_config(session_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The config of the session with a storage of the module, whose runs no other module meets."""
    return override_config(session_config, [f"storage={tmp_path_factory.mktemp('storage')}"])


@pytest.fixture(scope="session")
def processor_folder(session_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved processor of `session_config`, its tokenizer trained on a few sentences."""
    from llavamed.processor.build import build_processor

    texts = [
        "USER: <image>\nWhere is the lesion? ASSISTANT: In the left lower lobe.</s>",
        "A chat between a curious human and an artificial intelligence assistant.",
    ]
    folder = tmp_path_factory.mktemp("processor")
    build_processor(session_config.model, iter(texts)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_export(session_config: RunConfig) -> Path:
    """A complete export of `session_config`, trained for six steps."""
    from tests.support.training_setup import LEARNING, make_job, run_stage, small_config

    config = small_config(session_config, "name=tiny-export", "seed=7", *LEARNING)
    job = make_job(config)
    run_stage(job)
    return Path(job.export)
