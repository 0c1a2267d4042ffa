"""Every backbone that the documentation lists trains in packs, and plain transformers loads it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llavamed.config.run import RunConfig
from llavamed.data.feed.loader import StageLoader
from llavamed.model.attention import attend_per_sample
from llavamed.model.export import SERVED_TOWERS, serving_note
from llavamed.model.llava import build_model, load_model
from llavamed.model.loss import supervised_loss
from llavamed.storage.location import locate
from llavamed.train.job import order_of
from tests.support.published_names import PUBLISHED_PREFIXES
from tests.support.training_setup import (
    LEARNING,
    make_job,
    mixture,
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
    "dinov3_vit": {"num_register_tokens": 2},
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
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "granite": "GraniteForCausalLM",
}
"""The field by which vLLM chooses the class of a language model."""
OF_CLIP = [("clip_vision_model", kind) for kind in LANGUAGE_MODELS]
OF_LLAMA = [(kind, "llama") for kind in TOWERS if kind != "clip_vision_model"]
ALL = [*OF_CLIP, *OF_LLAMA]


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
        f"data.directory={tiny_config.storage}/backbones/{tower}-{language}",
        f"model.vision_tower.config={json.dumps(vision)}",
        f"model.language_model.config={json.dumps(text)}",
        "stages.align.max_steps=4",
        *LEARNING,
    )


@pytest.mark.parametrize("config", ALL, ids="-".join, indirect=True)
def test_a_backbone_trains_in_packs_and_its_export_is_what_was_trained(config: RunConfig) -> None:
    """A stage compares every tensor and the logits with what plain transformers loads."""
    job = make_job(config)
    outcome = run_stage(job)
    assert outcome.history[-1]["loss"] < outcome.history[0]["loss"]
    names = load_file(Path(job.export) / "model.safetensors")
    found = json.loads((Path(job.export) / "config.json").read_text())
    language = found["text_config"]
    assert language["architectures"] == [ARCHITECTURES[language["model_type"]]]
    if found["vision_config"]["model_type"] in SERVED_TOWERS:
        assert [name for name in names if not name.startswith(PUBLISHED_PREFIXES)] == []
        assert serving_note(locate(job.export)) is None
    else:
        assert "vLLM cannot serve it" in str(serving_note(locate(job.export)))


@pytest.mark.parametrize("config", ALL, ids="-".join, indirect=True)
def test_packs_and_workers_change_no_gradient_of_a_backbone(config: RunConfig) -> None:
    """Every sample of an epoch counts once, packed or alone, on one worker or on two."""
    expected = epoch_gradient(config, packing=False)
    for num_workers in (1, 2):
        found = epoch_gradient(config, packing=True, num_workers=num_workers)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            scale = expected[name].abs().max().item()
            torch.testing.assert_close(
                gradient, expected[name], rtol=1e-3, atol=1e-4 * scale + 1e-6, msg=name
            )


def epoch_gradient(
    config: RunConfig, *, packing: bool, num_workers: int = 1
) -> dict[str, torch.Tensor]:
    """The loss of all samples, and its gradient by parameter, added up over workers."""
    change = {"packing": packing, "max_steps": None, "micro_batch_size": 1}
    stage = config.stages[0].model_copy(update=change)
    data = mixture(config)
    order = order_of(stage, data, config.seed)
    model = build_model(config.model, processor_of(config), seed=0, precision="fp32").eval()
    attend_per_sample(model)
    total = torch.zeros(())
    for rank in range(num_workers):
        loader = StageLoader(data, order, rank=rank, world_size=num_workers, packing=packing)
        for batches in loader.steps():
            for batch in batches:
                loss = supervised_loss(model, batch)
                loss.backward()
                total += loss.detach()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": total, **gradients}


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
