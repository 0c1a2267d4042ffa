"""Attention within each sample: equal to a mask for every language model, without one."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from llavamed.data.feed.loader import Batch
from llavamed.model.attention import PER_SAMPLE, attend_per_sample
from llavamed.model.loss import supervised_loss

IMAGE_TOKEN = 127
LENGTHS = (23, 4, 17)
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen2": {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"head_dim": 16},
    "phi3": {"sliding_window": 6, "pad_token_id": 0},
    "gemma3_text": {"sliding_window": 6, "head_dim": 16, "sliding_window_pattern": 2},
    "olmo2": {},
    "smollm3": {"pad_token_id": 0},
    "granite": {},
    "cohere": {},
}


def make_llava(kind: str, **settings: Any) -> LlavaForConditionalGeneration:
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
        "initializer_range": 0.3,
    }
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    text = AutoConfig.for_model(kind, **shape | settings)
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN)
    return LlavaForConditionalGeneration(config).train()


def pack() -> Batch:
    generator = torch.Generator().manual_seed(1)
    total = sum(LENGTHS)
    input_ids = torch.randint(3, 120, (1, total), generator=generator)
    input_ids[0, 1:5] = IMAGE_TOKEN
    return Batch(
        input_ids=input_ids,
        targets=torch.randint(3, 120, (1, total), generator=generator),
        position_ids=torch.cat([torch.arange(length) for length in LENGTHS])[None],
        sample_lengths=(LENGTHS,),
        pixel_values=torch.randn(1, 3, 8, 8, generator=generator),
        sample_ids=("first", "second", "third"),
        num_tokens=total,
    )


def loss_and_gradient(model: LlavaForConditionalGeneration) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss = supervised_loss(model, pack())
    loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(gradients)


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_it_computes_what_a_mask_does_without_making_one(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_llava(kind, **LANGUAGE_MODELS[kind])
    masked = loss_and_gradient(model)
    attend_per_sample(model)
    assert model.config.text_config._attn_implementation == PER_SAMPLE
    assert model.config.vision_config._attn_implementation == "sdpa"
    monkeypatch.setattr("transformers.masking_utils.sdpa_mask", pytest.fail)
    apart = loss_and_gradient(model)
    assert apart[0] == pytest.approx(masked[0], rel=1e-5)
    assert (apart[1] - masked[1]).norm() < 1e-5 * masked[1].norm()


def test_layers_that_see_chunks_keep_their_mask() -> None:
    model = make_llava("llama4_text", attention_chunk_size=8, num_local_experts=2, head_dim=8)
    attend_per_sample(model)
    assert model.config.text_config._attn_implementation == "sdpa"


def test_a_config_is_saved_without_it(tmp_path: Any) -> None:
    model = make_llava("llama")
    attend_per_sample(model)
    model.save_pretrained(tmp_path)
    assert PER_SAMPLE not in (tmp_path / "config.json").read_text()
