"""Weights are taken from where they are, and code that comes with them is never run."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    LlavaForConditionalGeneration,
)

from llavamed.config.load import override_config
from llavamed.config.run import RunConfig
from llavamed.errors import CheckpointError, ConfigError, StorageError
from llavamed.model.export import write_export
from llavamed.model.llava import build_model, load_model
from llavamed.processor.build import build_processor, tokenizer_hash
from llavamed.processor.pretrained import load_pretrained
from llavamed.processor.tokenizer import load_tokenizer
from llavamed.run.curriculum import plan_curriculum
from llavamed.run.model_checks import check_weights
from llavamed.storage.location import locate
from tests.support.training_setup import (
    assert_same_weights,
    make_job,
    processor_of,
    run_stage,
    small_config,
)

CODE = "raise SystemExit('code of a model was run')"


def published(config: RunConfig, uri: str) -> LlavaForConditionalGeneration:
    """Write a whole LLaVA, as another project would publish it: without our manifest."""
    processor = processor_of(config)
    model = build_model(config.model, processor, seed=3, precision="fp32")
    write_export(locate(uri), model, model.state_dict(), processor)
    return model


def test_a_whole_model_in_object_storage_is_built_and_trained(
    tiny_config: RunConfig, s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    small = small_config(tiny_config)
    model = published(small, f"{s3_uri}/llava")
    whole = override_config(small, [f"model={{weights: {s3_uri}/llava}}"])
    processor = build_processor(whole.model, iter([]))
    assert tokenizer_hash(processor) == tokenizer_hash(processor_of(small))
    built = build_model(whole.model, processor, seed=0, precision="fp32")
    assert_same_weights(built.state_dict(), model.state_dict())
    start = f"stages.align.initial_weights={s3_uri}/llava"
    config = override_config(small, ["name=from-s3", "stages.align.max_steps=1", start])
    check_weights(config, plan_curriculum(config))
    assert run_stage(make_job(config)).logits_difference == 0.0


def test_initial_weights_that_are_not_there_are_named(tiny_config: RunConfig, s3_uri: str) -> None:
    start = f"stages.align.initial_weights={s3_uri}/no-llava"
    config = override_config(small_config(tiny_config), [start])
    with pytest.raises(StorageError, match=r"/no-llava: no such folder; check the path"):
        check_weights(config, plan_curriculum(config))


def needs_code(folder: Path, name: str, classes: dict[str, str]) -> None:
    """Make a folder of a kind that transformers does not know, with code that defines it."""
    content = json.loads((folder / name).read_text())
    for key in ("model_type", "tokenizer_class", "processor_class", "image_processor_type"):
        content.pop(key, None)
    content |= {"model_type": "our-own", "auto_map": classes}
    (folder / name).write_text(json.dumps(content))
    (folder / "own.py").write_text(CODE)


@pytest.fixture
def folder(tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def refuse(*_: Any) -> str:
        raise AssertionError("somebody was asked")

    monkeypatch.setattr("builtins.input", refuse)
    published(small_config(tiny_config), str(tmp_path))
    needs_code(tmp_path, "config.json", {"AutoConfig": "own.Config", "AutoModel": "own.Model"})
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("qwen3", r"tokenizer=/.*: knows no word, as if its files were not there; save"),
        ("gemma3_text", r"tokenizer=/.*: knows no word, as if its files were not there; save"),
        ("llama", r"model\.tokenizer=/.*: has no tokenizer that can be loaded; save the tokenizer"),
    ],
)
def test_a_folder_without_a_tokenizer_has_none(kind: str, problem: str, tmp_path: Path) -> None:
    """For some kinds transformers makes a tokenizer without any word, and no text would be seen."""
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"^{problem}"):
        load_tokenizer(str(tmp_path), "model.tokenizer")


def test_the_tokenizer_of_weights_without_one_may_be_named(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    """Weights without a tokenizer do not say which words they know."""
    processor = processor_of(small_config(tiny_config))
    processor.tokenizer.save_pretrained(tmp_path / "words")
    shape = AutoConfig.for_model("qwen3", vocab_size=len(processor.tokenizer), num_hidden_layers=1)
    shape.save_pretrained(tmp_path / "weights")
    config = override_config(
        small_config(tiny_config),
        [
            f"model.language_model={{weights: {tmp_path}/weights}}",
            f"model.tokenizer={tmp_path}/words",
        ],
    )
    made = build_processor(config.model, iter([]))
    assert tokenizer_hash(made) == tokenizer_hash(processor)


def test_weights_without_an_image_processor_say_which_file_is_missing(tmp_path: Path) -> None:
    AutoConfig.for_model("siglip_vision_model").save_pretrained(tmp_path)
    problem = r"^a\.weights=/.*: has no preprocessor_config\.json, which says how .*; save the proc"
    with pytest.raises(ConfigError, match=problem):
        load_pretrained(AutoImageProcessor, str(tmp_path), "a.weights")


MESSAGE = r"needs code that comes with it \(auto_map in its config\), and such code is never run"


def test_code_of_a_config_is_never_run_and_nobody_is_asked(folder: Path) -> None:
    with pytest.raises(ConfigError, match=rf"model.weights=/.*: {MESSAGE}; name a model whose"):
        load_pretrained(AutoConfig, str(folder), "model.weights")
    with pytest.raises(CheckpointError, match=rf"weights=/.*: {MESSAGE}"):
        load_model(folder, "fp32", "sdpa")


def test_code_of_a_tokenizer_or_processor_is_never_run(folder: Path) -> None:
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text()) | {
        "tokenizer_class": "OurOwn",
        "auto_map": {"AutoTokenizer": ["own.Tokenizer", None]},
    }
    settings.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=rf"model.tokenizer=/.*: {MESSAGE}"):
        load_tokenizer(str(folder), "model.tokenizer")
    needs_code(folder, "processor_config.json", {"AutoProcessor": "own.Processor"})
    with pytest.raises(ConfigError, match=rf"model.weights=/.*: {MESSAGE}"):
        load_pretrained(AutoProcessor, str(folder), "model.weights")


def test_a_hub_that_does_not_answer_is_waited_for_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    template = "http://127.0.0.1:1/{repo_id}/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(ConfigError, match=r"model\.weights=some/llava: cannot be loaded: "):
        load_pretrained(AutoConfig, "some/llava", "model.weights")
    heads = [record.message for record in caplog.records if "HEAD" in record.message]
    asked = {message.rsplit("/", 1)[-1] for message in heads}
    assert asked == {"adapter_config.json"}
