import copy
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llavamed.config.load import dump_config, load_config, parse_config
from llavamed.config.model import TemplateName
from llavamed.processor.templates import TEMPLATES, TOKENIZER
from llavamed.storage.fingerprint import fingerprint

CONFIGS = Path(__file__).parents[2] / "ray_jobs" / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))
DEMO = CONFIGS / "demo.yaml"
V1 = CONFIGS / "llava-med-v1.yaml"
V15 = CONFIGS / "llava-med-v1.5.yaml"
TREE = yaml.safe_load(DEMO.read_text(encoding="utf-8"))
PAPER = pytest.mark.parametrize("file", [V1, V15], ids=lambda file: file.stem)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_shipped_config_comes_back_from_its_dump(file, tmp_path):
    config = load_config(file)
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(dump_config(config), encoding="utf-8")
    assert load_config(dumped) == config
    assert config.name == file.stem


@PAPER
def test_alignment_is_the_paper_s(file):
    config = load_config(file)
    align = config.stages[0]
    assert align.trainable == ("projector",)
    assert align.num_train_epochs == 1
    assert align.max_steps is None
    assert align.optimizer.lr == 2e-3
    assert align.global_batch_size == 128
    assert not align.packing
    assert config.data.datasets[align.data].declared.num_samples == 600_000


@PAPER
def test_instruction_tuning_is_the_paper_s(file):
    config = load_config(file)
    instruct = config.stages[1]
    assert instruct.trainable == ("projector", "language_model")
    assert instruct.num_train_epochs == 3
    assert instruct.optimizer.lr == 2e-5
    assert instruct.global_batch_size == 64
    assert config.data.datasets[instruct.data].declared.num_samples == 60_000
    assert instruct.initial_weights is None


@PAPER
def test_every_paper_stage_has_the_schedule_and_optimizer_of_the_recipe(file):
    config = load_config(file)
    for stage in config.stages:
        assert stage.schedule.name == "cosine"
        assert stage.schedule.warmup_ratio == 0.03
        assert stage.optimizer.weight_decay == 0
        assert "vision_tower" not in stage.trainable
    assert config.engine.precision == "bf16"
    assert config.data.max_length == 2048


@PAPER
def test_each_benchmark_starts_from_the_instructed_model(file):
    config = load_config(file)
    benchmarks = config.stages[2:]
    assert [stage.name for stage in benchmarks] == ["vqa-rad", "slake", "path-vqa"]
    for stage in benchmarks:
        assert stage.initial_weights == "instruct"
        assert stage.evaluation.data == f"{stage.data}-test"
        assert stage.evaluation.majority_from == stage.data


def test_version_1_is_llama_with_a_linear_projector_on_224_pixels():
    model = load_config(V1).model
    assert model.vision_tower.config["image_size"] == 224
    assert model.vision_tower.config["patch_size"] == 14
    assert model.projector == "linear"
    assert model.image_aspect_ratio == "square"
    assert model.vision_feature_layer == -2
    assert model.language_model.config["model_type"] == "llama"
    assert model.language_model.config["intermediate_size"] == 11008


def test_version_1_5_is_mistral_with_two_layers_on_336_padded_pixels():
    model = load_config(V15).model
    assert model.vision_tower.config["image_size"] == 336
    assert model.projector == "mlp2x_gelu"
    assert model.image_aspect_ratio == "pad"
    assert model.template == "mistral_instruct"
    assert model.language_model.weights == "mistralai/Mistral-7B-Instruct-v0.2"
    assert model.language_model.config["num_key_value_heads"] == 8


def test_overrides_find_stages_by_name_and_reach_into_mappings():
    config = load_config(
        DEMO,
        [
            "stages.instruct.optimizer.lr=1e-3",
            "stages.instruct.schedule.name=linear",
            "data.datasets.captions.read.num_images=7",
            "model.language_model.config.rms_norm_eps=1e-6",
            "engine.deepspeed.zero_optimization.reduce_bucket_size=5e8",
            "tracking.uri=null",
            "stages.vqa.trainable=[projector]",
            "scaling.resources_per_worker={CPU: 2}",
        ],
    )
    assert config.stages[1].optimizer.lr == 0.001
    assert config.stages[1].schedule.name == "linear"
    assert config.data.datasets["captions"].read.num_images == 7
    assert config.model.language_model.config["rms_norm_eps"] == 1e-6
    assert config.engine.deepspeed.model_dump() == {
        "zero_optimization": {"reduce_bucket_size": 5e8}
    }
    assert config.stages[2].trainable == ("projector",)
    assert config.scaling.resources_per_worker == {"CPU": 2.0}
    assert config.stages[0] == load_config(DEMO).stages[0]


def test_the_last_of_two_overrides_counts_and_values_may_hold_equal_signs():
    config = load_config(DEMO, ["seed=1", "seed=2", "storage=s3://bucket/a=b"])
    assert config.seed == 2
    assert config.storage == "s3://bucket/a=b"


@settings(max_examples=30)
@given(st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?", fullmatch=True))
def test_any_allowed_name_survives_the_dump(name):
    config = parse_config({**TREE, "name": name, "storage": name})
    dumped = yaml.safe_load(dump_config(config))
    assert parse_config(dumped) == config


@pytest.mark.parametrize("name", ["1e5", "007", "null", "on", "1_0", "0x1f", "1.5", "2026-01-01"])
def test_a_name_that_looks_like_another_value_stays_text(name, tmp_path):
    config = load_config(DEMO, [f"name='{name}'"])
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file).name == name


def test_a_config_cannot_be_changed_and_checking_leaves_its_input_alone():
    before = copy.deepcopy(TREE)
    config = parse_config(TREE)
    assert before == TREE
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1


def test_folders_come_from_the_storage():
    config = load_config(DEMO, ["storage=s3://bucket/runs/"])
    assert config.directory == "s3://bucket/runs/demo"
    assert config.datasets_directory == "s3://bucket/runs/datasets"
    other = load_config(DEMO, ["data.directory=/data"])
    assert other.datasets_directory == "/data"


def test_fingerprints_differ_where_values_do():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_the_templates_of_the_config_are_those_there_are():
    assert set(get_args(TemplateName)) == {*TEMPLATES, TOKENIZER}


def test_a_stage_overrides_single_fields_of_the_engine():
    config = load_config(
        DEMO, ["stages.instruct.engine.zero_stage=3", "engine.offload_optimizer=cpu"]
    )
    align, instruct, _ = (config.engine_of(stage) for stage in config.stages)
    assert align == config.engine
    assert instruct == config.engine.model_copy(update={"zero_stage": 3})
    assert parse_config(yaml.safe_load(dump_config(config))) == config
