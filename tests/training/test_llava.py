"""The loss does not depend on how samples are joined, and the model is Hugging Face's own."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llavamed.config.run import RunConfig
from llavamed.data.feed.loader import Batch
from llavamed.data.feed.order import order_stage
from llavamed.errors import ConfigError
from llavamed.model.attention import attend_per_sample
from llavamed.model.freeze import freeze
from llavamed.model.llava import build_model, shape_on_meta
from llavamed.model.loss import supervised_loss
from llavamed.processor.turns import IGNORE_INDEX
from tests.support.small_datasets import IMAGE_TOKEN, SIZE, Prepared
from tests.support.small_datasets import prepare as prepare_random
from tests.support.training_setup import assert_same_weights, processor_of, small_config

NUM_SAMPLES = 8
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Samples with one, no, two and one image, twice."""
    return prepare_random(str(tmp_path_factory.mktemp("random")), NUM_SAMPLES)


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    """A LLaVA that fits the random samples; weights large enough for samples to matter."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**TINY, num_attention_heads=2, image_size=SIZE, patch_size=SIZE // 2)
    text = LlamaConfig(**TINY, num_attention_heads=2, vocab_size=128, initializer_range=0.3)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN)
    return LlavaForConditionalGeneration(config).train()


def batches(samples: Prepared, *, packing: bool, capacity: int) -> Iterator[Batch]:
    tokens = samples.dataset.column("num_tokens")
    order = order_stage(
        samples.dataset.groups,
        tokens if packing else np.ones_like(tokens),
        seed=0,
        num_lanes=1,
        capacity=capacity,
        num_epochs=1,
    )
    loader = samples.loader(order, packing=packing)
    for step in loader.steps():
        yield from step


def loss_and_gradient(
    model: nn.Module, made: Iterator[Batch]
) -> tuple[float, torch.Tensor, list[str]]:
    """The summed loss of some batches, its gradient as one vector, and the samples seen."""
    model.zero_grad()
    total, seen = 0.0, []
    for batch in made:
        loss = supervised_loss(model, batch)
        loss.backward()
        total += loss.item()
        seen += batch.sample_ids
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return total, torch.cat(gradients), sorted(seen)


@pytest.mark.parametrize(
    ("packing", "capacity"), [(True, 1024), (True, 80), (False, 8), (False, 3)], ids=str
)
@pytest.mark.parametrize("attention", ["per sample", "sdpa", "eager"])
def test_loss_and_gradient_of_packs_and_padded_rows_are_those_of_single_samples(
    model: nn.Module, samples: Prepared, packing: bool, capacity: int, attention: str
) -> None:
    if attention == "per sample":
        attend_per_sample(model)
    else:
        model.set_attn_implementation(attention)
    single = loss_and_gradient(model, batches(samples, packing=False, capacity=1))
    joined = loss_and_gradient(model, batches(samples, packing=packing, capacity=capacity))
    model.set_attn_implementation("sdpa")
    assert joined[2] == single[2] == sorted(row["id"] for row in samples.rows)
    assert joined[0] == pytest.approx(single[0], rel=1e-6)
    assert (joined[1] - single[1]).norm() < 1e-6 * single[1].norm()


def test_a_sample_without_position_restarts_would_see_the_others(
    model: nn.Module, samples: Prepared
) -> None:
    """The comparison above can fail: it does when the samples of a pack are not kept apart."""
    pack = next(batches(samples, packing=True, capacity=1024))
    leaking = replace(pack, position_ids=torch.arange(pack.input_ids.shape[1])[None])
    apart, together = (supervised_loss(model, batch).item() for batch in (pack, leaking))
    assert abs(together - apart) > 1e-3 * apart


def test_loss_of_one_sample_is_that_of_hugging_face(model: nn.Module, samples: Prepared) -> None:
    for batch in batches(samples, packing=False, capacity=1):
        row = next(row for row in samples.rows if row["id"] == batch.sample_ids[0])
        if not row["pixels"]:
            continue  # ours then has a blank image beside it
        labels = torch.tensor([row["labels"]])
        theirs = model(
            input_ids=torch.tensor([row["input_ids"]]),
            pixel_values=batch.pixel_values,
            labels=labels,
        ).loss
        num_supervised = int((labels[:, 1:] != IGNORE_INDEX).sum())
        assert supervised_loss(model, batch).item() == pytest.approx(
            theirs.item() * num_supervised, rel=1e-6
        )


def test_an_empty_pack_costs_nothing_and_moves_nothing(model: nn.Module, samples: Prepared) -> None:
    order = order_stage(
        samples.dataset.groups,
        np.ones(NUM_SAMPLES, dtype=np.int64),
        seed=0,
        num_lanes=16,
        capacity=8,
        num_epochs=1,
    )
    loader = samples.loader(order)
    empty = next(batch for batch in next(loader.steps()) if not batch.sample_ids)
    loss, gradient, _ = loss_and_gradient(model, iter([empty]))
    assert loss == 0.0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_a_linear_projector_is_one_linear_layer(tiny_config: RunConfig) -> None:
    config = small_config(
        tiny_config, "model.projector=linear", "model.language_model.config.hidden_size=32"
    )
    processor = processor_of(small_config(tiny_config))
    model = build_model(config.model, processor, seed=0, precision="fp32")
    projector = model.model.multi_modal_projector
    counts = {count.part: count for count in freeze(model, ["projector"])}
    assert counts["projector"].num_trained == 16 * 32 + 32
    features = torch.randn(3, 16)
    plain = nn.functional.linear(features, projector.linear_1.weight, projector.linear_1.bias)
    torch.testing.assert_close(projector(features), plain, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_random_weights_depend_on_the_seed_and_on_nothing_else(
    tiny_config: RunConfig, precision: str
) -> None:
    config = small_config(tiny_config)
    processor = processor_of(config)
    torch.manual_seed(5)
    first = build_model(config.model, processor, seed=1, precision=precision)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)  # the caller's stream of numbers is left alone
    again = build_model(config.model, processor, seed=1, precision=precision)
    other = build_model(config.model, processor, seed=2, precision=precision)
    assert_same_weights(first.state_dict(), again.state_dict())
    for part in ("vision_tower", "multi_modal_projector", "language_model", "lm_head"):
        name = next(n for n, p in first.named_parameters() if part in n and p.ndim == 2)
        assert not torch.equal(first.state_dict()[name], other.state_dict()[name]), name


def test_rotary_frequencies_of_random_bf16_weights_are_not_rounded(tiny_config: RunConfig) -> None:
    config = small_config(tiny_config)
    model = build_model(config.model, processor_of(config), seed=0, precision="bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    rotary = model.model.language_model.rotary_emb.inv_freq
    torch.testing.assert_close(rotary, 10000.0 ** -(torch.arange(0, 8, 2) / 8), rtol=1e-6, atol=0.0)


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused(tiny_config: RunConfig) -> None:
    config = small_config(tiny_config, "model.language_model.config.vocab_size=100")
    with pytest.raises(ConfigError, match=r"vocab_size=100: the tokenizer has 320 entries"):
        build_model(config.model, processor_of(small_config(tiny_config)), seed=0, precision="fp32")


@pytest.mark.parametrize("key", ["model", "model.vision_tower", "model.language_model"])
def test_a_shape_that_is_nowhere_is_not_planned_with(
    tiny_config: RunConfig, key: str, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ConfigError, match=f"{key}.weights={nowhere}: no such folder"):
        shape_on_meta(small_config(tiny_config, f"{key}={{weights: {nowhere}}}").model)


@pytest.mark.parametrize("key", ["model", "model.vision_tower", "model.language_model"])
def test_a_shape_is_planned_with_from_the_config_beside_weights(
    tiny_config: RunConfig, key: str, tmp_path: Path
) -> None:
    declared = shape_on_meta(small_config(tiny_config).model)
    part = {"model.vision_tower": "vision_config", "model.language_model": "text_config"}.get(key)
    (getattr(declared.config, part) if part else declared.config).save_pretrained(tmp_path)
    found = shape_on_meta(small_config(tiny_config, f"{key}={{weights: {tmp_path}}}").model)
    shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (declared, found)]
    assert shapes[0] == shapes[1]


def test_the_planned_shape_is_the_built_one(tiny_config: RunConfig, tmp_path: Path) -> None:
    config = small_config(tiny_config)
    built = build_model(config.model, processor_of(config), seed=0, precision="fp32")
    planned = shape_on_meta(config.model)
    shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (built, planned)]
    assert shapes[0] == shapes[1]
