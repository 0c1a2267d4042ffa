"""What trains is exactly what was asked for and can be reached by a gradient."""

from itertools import combinations
from pathlib import Path

import pytest
import torch

from llavamed.config.model import ModelPart
from llavamed.config.run import RunConfig
from llavamed.model.freeze import freeze, part_of
from llavamed.model.llava import build_model, shape_on_meta
from llavamed.model.loss import supervised_loss
from tests.support.training_setup import processor_of, small_config, step_batches

PARTS: tuple[ModelPart, ...] = ("vision_tower", "projector", "language_model")
CHOICES = [choice for number in (1, 2, 3) for choice in combinations(PARTS, number)]

TOWER_LAYER = 4 * (16 * 16 + 16) + 2 * 16 * 32 + 32 + 16 + 4 * 16
TOWER_REACHED = 16 + 3 * 8 * 8 * 16 + 5 * 16 + 2 * 16 + TOWER_LAYER  # class, patches, places, norm
TOWER_BEHIND = TOWER_LAYER + 2 * 16  # the second of two layers, and the norm after it
PROJECTOR = 2 * (16 * 16 + 16)
LANGUAGE = 2 * 320 * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 32 + 2 * 16) + 16


@pytest.fixture(scope="module")
def config(tiny_config: RunConfig) -> RunConfig:
    return small_config(tiny_config, "stages.align.max_steps=1")


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention", "flash_attention_2"])
def test_what_trains_does_not_depend_on_the_attention(
    tiny_config: RunConfig, attention: str
) -> None:
    model = shape_on_meta(tiny_config.model)
    expected = freeze(model, PARTS)
    for part in (model.config.vision_config, model.config.text_config):
        part._attn_implementation = attention  # as on a machine that has it
    assert freeze(model, PARTS) == expected
    assert model.config.vision_config._attn_implementation == attention


@pytest.mark.parametrize("trainable", CHOICES, ids="+".join)
def test_counts_of_each_part(tiny_config: RunConfig, trainable: tuple[ModelPart, ...]) -> None:
    counts = {count.part: count for count in freeze(shape_on_meta(tiny_config.model), trainable)}
    sizes = {
        "vision_tower": (TOWER_REACHED, TOWER_BEHIND),
        "projector": (PROJECTOR, 0),
        "language_model": (LANGUAGE, 0),
    }
    for part, (reached, behind) in sizes.items():
        expected = (reached, behind) if part in trainable else (0, reached + behind)
        assert (counts[part].num_trained, counts[part].num_frozen) == expected, part


@pytest.mark.parametrize("trainable", CHOICES, ids="+".join)
def test_every_trained_parameter_gets_a_gradient_and_no_other_does(
    config: RunConfig, trainable: tuple[ModelPart, ...]
) -> None:
    model = build_model(config.model, processor_of(config), seed=0, precision="fp32")
    freeze(model, trainable)
    supervised_loss(model, step_batches(config)[0][0]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
        assert parameter.requires_grad <= (part_of(name) in trainable), name
    assert {part_of(n) for n, p in model.named_parameters() if p.requires_grad} == set(trainable)


@pytest.mark.parametrize("feature_layer", [-1, -2, -3])
def test_layers_behind_the_projected_one_stay_frozen(config: RunConfig, feature_layer: int) -> None:
    changed = small_config(
        config, "stages.align.max_steps=1", f"model.vision_feature_layer={feature_layer}"
    )
    model = build_model(changed.model, processor_of(config), seed=0, precision="fp32")
    freeze(model, PARTS)
    supervised_loss(model, step_batches(config)[0][0]).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, p in model.named_parameters() if p.grad is not None}
    layers = {
        int(name.split("layers.")[1].split(".")[0])
        for name in trained
        if part_of(name) == "vision_tower" and "layers." in name
    }
    assert layers == set(range(3 + feature_layer))


def test_the_identity_of_a_linear_projector_never_trains(config: RunConfig, tmp_path: Path) -> None:
    changed = small_config(config, "model.projector=linear")
    model = build_model(changed.model, processor_of(config), seed=0, precision="fp32")
    count = next(count for count in freeze(model, PARTS) if count.part == "projector")
    assert (count.num_trained, count.num_frozen) == (16 * 16 + 16, 16 * 16 + 16)
    second = model.model.multi_modal_projector.linear_2
    assert torch.equal(second.weight, torch.eye(16))
    assert not second.bias.any()
    assert not second.weight.requires_grad
