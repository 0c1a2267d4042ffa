"""Samples of a pack are apart for every language model, without a mask, or it trains no packs."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from llavamed.config.load import override_config
from llavamed.config.run import RunConfig
from llavamed.data.feed.loader import Batch
from llavamed.errors import ConfigError, TrainingError
from llavamed.model.attention import PER_SAMPLE, attend_per_sample
from llavamed.model.loss import column_logits, supervised_loss
from llavamed.run.curriculum import plan_curriculum
from llavamed.run.model_checks import check_weights
from llavamed.run.preflight import check_settings
from llavamed.train.context import local_context
from llavamed.train.guard import check_separation
from tests.support.training_setup import make_job, run_stage, small_config

IMAGE_TOKEN = 127
LENGTHS = (23, 4, 17)
LLAMA4 = {"attention_chunk_size": 8, "num_local_experts": 2, "head_dim": 8}
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
        supervised=torch.arange(total),
        targets=torch.randint(3, 120, (1, total), generator=generator),
        position_ids=torch.cat([torch.arange(length) for length in LENGTHS])[None],
        sample_lengths=(LENGTHS,),
        pixel_values=torch.randn(1, 3, 8, 8, generator=generator),
        image_sizes=torch.tensor([[8, 8]]),
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


def test_a_language_model_that_keeps_arguments_from_its_attention_stays_as_it_is() -> None:
    """Its samples are kept apart by transformers' mask."""
    model = make_llava("nemotron").eval()
    expected = loss_and_gradient(model)
    attend_per_sample(model)
    assert model.config.text_config._attn_implementation == "sdpa"
    assert loss_and_gradient(model)[0] == expected[0]
    with torch.no_grad():
        alone = model(input_ids=pack().input_ids[:, -LENGTHS[-1] :], use_cache=False).logits
        whole = column_logits(model, pack(), torch.arange(sum(LENGTHS))[-LENGTHS[-1] :])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-4)


LEAKING: dict[str, dict[str, Any]] = {
    "biogpt": {},
    "qwen3_5_text": {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "head_dim": 8,
    },
    "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 16},
}


@pytest.mark.parametrize("kind", [*LANGUAGE_MODELS, "doge", "gpt_neox", "llama4_text", *LEAKING])
def test_a_language_model_whose_samples_see_each_other_trains_no_packs(
    kind: str, tiny_config: RunConfig
) -> None:
    settings = LANGUAGE_MODELS | LEAKING | {"doge": {}, "gpt_neox": {}, "llama4_text": LLAMA4}
    model = make_llava(kind, **settings[kind])
    attend_per_sample(model)
    leaks = r"stages.align.packing=true: the language model lets samples .* by [\d.e-]+; set it to"
    expected = pytest.raises(TrainingError, match=leaks) if kind in LEAKING else nullcontext()
    with local_context(lambda _: None), expected:
        check_separation(tiny_config.stages[0], model, pack(), IMAGE_TOKEN)


def test_attention_that_a_language_model_lacks_is_refused_with_what_it_has(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    shape = "hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 2"
    model = f"{{model_type: granite_swa, {shape}, num_key_value_heads: 1, vocab_size: 320}}"
    own = (f"storage={tmp_path}", f"data.directory={tmp_path}/datasets")
    config = small_config(tiny_config, f"model.language_model.config={model}", *own)
    message = (
        r"^model.attn_implementation=sdpa: model: granite_swa has no such .*; set it to eager$"
    )
    with pytest.raises(ConfigError, match=message):
        check_weights(config, plan_curriculum(config))
    eager = override_config(config, ["model.attn_implementation=eager"])
    check_weights(eager, plan_curriculum(eager))
    assert run_stage(make_job(eager)).steps == 6


def test_a_language_model_that_trains_no_packs_trains_padded(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    biogpt = {"model_type": "biogpt", "vocab_size": 320, "num_hidden_layers": 2}
    biogpt |= {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    model = f"model.language_model.config={json.dumps(biogpt)}"
    own = (f"storage={tmp_path}", f"data.directory={tmp_path}/datasets")
    config = small_config(tiny_config, model, *own)
    with pytest.raises(TrainingError, match="set it to false, without max_tokens"):
        run_stage(make_job(config))
    padded = override_config(config, ["stages.align.packing=false", "stages.align.max_tokens=null"])
    plans = plan_curriculum(padded)[:1]
    check_settings(plans, [make_job(padded)])
    assert run_stage(make_job(padded)).steps == 6


def test_layers_that_see_chunks_keep_their_mask() -> None:
    model = make_llava("llama4_text", **LLAMA4)
    attend_per_sample(model)
    assert model.config.text_config._attn_implementation == "sdpa"


def test_a_config_is_saved_without_it(tmp_path: Path) -> None:
    model = make_llava("llama")
    attend_per_sample(model)
    model.save_pretrained(tmp_path)
    assert PER_SAMPLE not in (tmp_path / "config.json").read_text()
