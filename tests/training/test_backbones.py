"""Every backbone that the documentation lists trains in packs, and plain transformers loads it."""

import json
from pathlib import Path
from typing import Any

import pytest

from llavamed.config.run import RunConfig
from llavamed.model.llava import build_model, load_model
from llavamed.model.loss import supervised_loss
from llavamed.storage.location import locate
from tests.support.training_setup import (
    LEARNING,
    make_job,
    processor_of,
    run_stage,
    small_config,
    step_batches,
)

TOWERS: dict[str, dict[str, Any]] = {
    "clip_vision_model": {},
    "siglip_vision_model": {},
    "dinov2": {},
    "dinov2_with_registers": {"num_register_tokens": 2},
    "vit": {},
}
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 24},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 24, "sliding_window_pattern": 2},
    "phi3": {"pad_token_id": 0},
    "olmo2": {},
    "smollm3": {"pad_token_id": 0, "no_rope_layers": [1, 0]},
    "granite": {},
}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
OF_CLIP = [("clip_vision_model", kind) for kind in LANGUAGE_MODELS]
OF_LLAMA = [(kind, "llama") for kind in TOWERS if kind != "clip_vision_model"]


@pytest.fixture
def config(request: pytest.FixtureRequest, tiny_config: RunConfig, tmp_path: Path) -> RunConfig:
    """A run of four steps with a backbone of this kind, without weights to start from."""
    tower, language = request.param
    vision = SHAPE | {"model_type": tower, "image_size": 16, "patch_size": 8} | TOWERS[tower]
    if tower.startswith("dinov2"):
        vision["mlp_ratio"] = 2
    else:
        vision["intermediate_size"] = 48
    text = SHAPE | {"model_type": language, "vocab_size": 320, "intermediate_size": 48}
    text |= {"num_key_value_heads": 1} | LANGUAGE_MODELS[language]
    return small_config(
        tiny_config,
        f"storage={tmp_path}",
        f"data.directory={tmp_path}/datasets",
        f"model.vision_tower.config={json.dumps(vision)}",
        f"model.language_model.config={json.dumps(text)}",
        "stages.align.max_steps=4",
        *LEARNING,
    )


@pytest.mark.parametrize("config", [*OF_CLIP, *OF_LLAMA], ids="-".join, indirect=True)
def test_a_backbone_trains_in_packs_and_its_export_is_what_was_trained(config: RunConfig) -> None:
    """A stage compares every tensor and the logits with what plain transformers loads."""
    outcome = run_stage(make_job(config))
    assert outcome.history[-1]["loss"] < outcome.history[0]["loss"]


@pytest.mark.parametrize("config", OF_CLIP, ids="-".join, indirect=True)
def test_adapters_of_a_backbone_merge_into_its_export(config: RunConfig) -> None:
    job = make_job(config.model_copy(update={"stages": (with_adapters(config),)}))
    run_stage(job)
    batch = step_batches(config)[0][0]
    processor = processor_of(config)
    loss = {
        name: supervised_loss(model.eval(), batch).item()
        for name, model in {
            "before": build_model(config.model, processor, seed=0, precision="fp32"),
            "after": load_model(locate(job.export).path, "fp32", "sdpa"),
        }.items()
    }
    assert loss["after"] < loss["before"]


def with_adapters(config: RunConfig) -> Any:
    lora = {"r": 4, "alpha": 8.0}
    stage = config.stages[0]
    return type(stage).model_validate(stage.model_dump() | {"lora": lora})
