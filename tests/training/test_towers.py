"""Any tower is used as what it is, or refused before anything starts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llavamed.config.load import override_config
from llavamed.config.model import TOWER_TYPES, Model
from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError
from llavamed.model.freeze import freeze
from llavamed.model.llava import build_model, check_forward, llava_config, load_model
from llavamed.model.placement import trust_image_tokens
from llavamed.processor.build import (
    build_processor,
    image_settings,
    load_processor,
    num_image_tokens,
)
from llavamed.processor.images import ImageSettings, normalize_pixels, to_pixels
from llavamed.processor.pretrained import part_config
from llavamed.processor.tower import tower_of
from llavamed.run.curriculum import plan_curriculum
from llavamed.run.model_checks import check_weights
from llavamed.run.preflight import check_stage
from tests.support.image_files import encoded, photo
from tests.support.training_setup import (
    assert_same_weights,
    make_job,
    mixture,
    run_stage,
    small_config,
)

TINY = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
KINDS = {
    "clip_vision_model": 1,
    "vit": 1,
    "dinov2": 1,
    "dinov2_with_registers": 5,
    "dinov3_vit": 1,
    "siglip_vision_model": 0,
}
"""Tokens before those of the patches."""
TEXT = LlamaConfig(**TINY, vocab_size=320)
SIGLIP = {"model_type": "siglip_vision_model", **TINY, "image_size": 16, "patch_size": 8}


def vision_of(kind: str, **settings: Any) -> Any:
    return AutoConfig.for_model(
        **({"model_type": kind, **TINY, "image_size": 16, "patch_size": 8} | settings)
    )


def with_tower(config: RunConfig, tower: dict[str, Any], *overrides: str) -> RunConfig:
    place = f"data.directory={config.storage}/siglip-datasets"
    return small_config(config, f"model.vision_tower={tower}", place, *overrides)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(patches=st.integers(1, 4), patch=st.sampled_from([4, 7, 8]), left=st.integers(0, 3))
def test_what_is_said_of_a_tower_is_what_it_does(
    kind: str, patches: int, patch: int, left: int
) -> None:
    vision = vision_of(kind, image_size=patches * patch + left, patch_size=patch)
    tower = tower_of(vision, "tower")
    assert tower.num_prefix_tokens == KINDS[kind]
    assert tower.num_tokens == patches**2 + KINDS[kind]
    assert tower.strategy == ("default" if KINDS[kind] else "full")
    for strategy in ("default", "full"):
        config = LlavaConfig(
            vision_config=vision,
            text_config=TEXT,
            vision_feature_select_strategy=strategy,
            vision_feature_layer=[-1, -2],
        )
        if tower.num_image_tokens(strategy):
            check_forward(config, "model")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [-3, -2, -1])
def test_exactly_what_no_gradient_reaches_stays_frozen(kind: str, layer: int) -> None:
    config = LlavaConfig(
        vision_config=vision_of(kind),
        text_config=TEXT,
        vision_feature_layer=layer,
        vision_feature_select_strategy="full",
        image_token_index=5,
    )
    model = LlavaForConditionalGeneration(config)
    freeze(model, ["vision_tower"])
    number = tower_of(config.vision_config, "tower").num_tokens
    ids = torch.tensor([[1, *[5] * number, 2]])
    model(input_ids=ids, pixel_values=torch.rand(1, 3, 16, 16)).logits.sum().backward()
    for name, parameter in model.model.vision_tower.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name


def test_a_tower_of_siglip_trains_and_its_export_loads(tiny_config: RunConfig) -> None:
    config = with_tower(tiny_config, {"config": SIGLIP}, "name=siglip", "stages.align.max_steps=2")
    check_weights(config, plan_curriculum(config))
    job = make_job(config)
    result = run_stage(job)
    assert result.logits_difference == 0.0
    processor = load_processor(Path(job.export))
    assert num_image_tokens(processor) == 4
    assert processor.vision_feature_select_strategy == "full"
    assert type(processor.image_processor) is SiglipImageProcessorPil
    assert image_settings(processor) == ImageSettings(16, "stretch", (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (9, 70), (16, 16)])
@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_pixels_equal_those_of_siglip_s_processor_bit_for_bit(
    size: tuple[int, int], resample: Any
) -> None:
    theirs = SiglipImageProcessorPil(
        size={"height": 24, "width": 24}, resample={"bilinear": 2, "bicubic": 3}[resample]
    )
    image = photo(*size)
    expected = theirs(image, return_tensors="np")["pixel_values"]
    mine = ImageSettings(24, "stretch", (0.5,) * 3, (0.5,) * 3, resample=resample)
    np.testing.assert_array_equal(
        normalize_pixels([to_pixels(encoded(image), mine)], mine), expected
    )


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tower alone and one within a whole SigLIP, with a processor of other statistics."""
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    vision = SiglipVisionConfig(**{k: v for k, v in SIGLIP.items() if k != "model_type"})
    text = SiglipTextConfig(**TINY, vocab_size=50)
    whole = SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    SiglipVisionModel(vision).save_pretrained(folder / "tower")
    SiglipModel(whole).save_pretrained(folder / "whole")
    for name in ("tower", "whole"):
        SiglipImageProcessorPil(
            size={"height": 16, "width": 16}, image_mean=[0.1, 0.2, 0.3], resample=2
        ).save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("name", ["tower", "whole"])
def test_published_towers_of_siglip_keep_weights_and_statistics(
    tiny_config: RunConfig, siglip: Path, name: str
) -> None:
    model = with_tower(tiny_config, {"weights": str(siglip / name)}).model
    processor = build_processor(model, iter(["words"]))
    found = image_settings(processor)
    assert (found.mean, found.resample) == ((0.1, 0.2, 0.3), "bilinear")
    built = build_model(model, processor, seed=0, precision="fp32")
    published: Any = SiglipVisionModel.from_pretrained(siglip / "tower")
    if name == "whole":
        published = SiglipModel.from_pretrained(siglip / "whole").vision_model
    assert_same_weights(dict(built.model.vision_tower.state_dict()), dict(published.state_dict()))


def whole(
    folder: Path, config: RunConfig, change: Any = lambda model, processor: None, **fields: Any
) -> Model:
    """Save a whole LLaVA and its processor, and return the section that names it."""
    processor = build_processor(config.model, iter(["words"]))
    tower = part_config(config.model.vision_tower, "model.vision_tower")
    text = part_config(config.model.language_model, "model.language_model")
    shape = llava_config(config.model, tower, text)
    shape.image_token_index = processor.image_token_id
    for name, value in fields.items():
        setattr(shape, name, value)
    change(shape, processor)
    LlavaForConditionalGeneration(shape).save_pretrained(folder)
    processor.save_pretrained(folder)
    return Model(weights=str(folder))


def drop_patch_size(_: Any, processor: LlavaProcessor) -> None:
    processor.patch_size = None


def drop_pad_token(_: Any, processor: LlavaProcessor) -> None:
    processor.tokenizer.pad_token = None


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("change", [drop_patch_size, drop_pad_token], ids=lambda f: f.__name__)
def test_a_whole_model_says_itself_how_many_tokens_an_image_takes(
    tiny_config: RunConfig, tmp_path: Path, tower: str, strategy: str, change: Any
) -> None:
    config = with_tower(tiny_config, {"config": SIGLIP}) if tower == "siglip" else tiny_config
    model = whole(tmp_path, config, change, vision_feature_select_strategy=strategy)
    processor = build_processor(model, iter([]))
    number = 4 + (tower == "clip") - (strategy == "default")
    assert num_image_tokens(processor) == number
    assert processor.tokenizer.pad_token is not None
    built = build_model(model, processor, seed=0, precision="fp32")
    found = processor(text="<image> words", images=photo(20, 30), return_tensors="pt")
    assert (found["input_ids"] == processor.image_token_id).sum() == number
    assert built(**found).logits.isfinite().all()


def grow_pixels(_: Any, processor: LlavaProcessor) -> None:
    processor.image_processor.size = {"shortest_edge": 32}
    processor.image_processor.crop_size = {"height": 32, "width": 32}


def not_square(_: Any, processor: LlavaProcessor) -> None:
    processor.image_processor.size = {"height": 16, "width": 24}
    processor.image_processor.do_center_crop = False


def not_normalized(_: Any, processor: LlavaProcessor) -> None:
    processor.image_processor.do_normalize = False


def nearest(_: Any, processor: LlavaProcessor) -> None:
    processor.image_processor.resample = 0


def other_scale(_: Any, processor: LlavaProcessor) -> None:
    processor.image_processor.rescale_factor = 1.0


def bytes_for_mean(_: Any, processor: LlavaProcessor) -> None:
    processor.image_processor.image_mean = [123.7, 116.3, 103.5]


def no_spread(_: Any, processor: LlavaProcessor) -> None:
    processor.image_processor.image_std = [0.3, 0.3, 0.0]


def one_channel(_: Any, processor: LlavaProcessor) -> None:
    processor.image_processor.image_mean = [0.5]


def other_image_token(shape: Any, _: LlavaProcessor) -> None:
    shape.image_token_index = 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (grow_pixels, r"makes images of 32 pixels, and its tower takes 16; correct size"),
        (not_square, r"image_processor.size={'height': 16, 'width': 24}, crop_size=None: must"),
        (not_normalized, r"image_processor.do_normalize=False: images are always resized"),
        (nearest, r"image_processor.resample=0: must be 2 \(bilinear\) or 3 \(bicubic\)"),
        (other_scale, r"image_processor.rescale_factor=1.0: must be 1/255"),
        (
            bytes_for_mean,
            r"image_processor.image_mean=\[123.7, .*: must be three numbers from 0 to 1",
        ),
        (
            no_spread,
            r"image_processor.image_std=\[0.3, 0.3, 0.0\]: must be three numbers from 0.001",
        ),
        (one_channel, r"image_processor.image_mean=\[0.5\]: must be three numbers"),
        (other_image_token, r"image_token_index=7 in its config, but its tokenizer has <image> at"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_whole_model_that_contradicts_itself_is_refused(
    tiny_config: RunConfig, tmp_path: Path, change: Any, message: str
) -> None:
    model = whole(tmp_path, tiny_config, change)
    with pytest.raises(ConfigError, match=message):
        build_processor(model, iter([]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.vision_feature_layer=-9"],
            r"model.vision_feature_layer=-9: the tower has 2 layers, whose hidden states are -3 to",
        ),
        (
            ["model.vision_tower.config.image_size=[16, 24]"],
            r"model.vision_tower.config.image_size=\[16, 24\]: must be one length in pixels",
        ),
        (
            ["model.vision_tower.config.num_channels=1"],
            r"model: an image cannot pass through the model: RuntimeError: .*; correct its config",
        ),
    ],
    ids=["layer", "square", "channels"],
)
def test_a_tower_that_cannot_be_used_is_refused_before_anything_starts(
    tiny_config: RunConfig, overrides: list[str], message: str
) -> None:
    config = override_config(tiny_config, overrides)
    with pytest.raises(ConfigError, match=message):
        check_weights(config, plan_curriculum(config))


def test_every_kind_that_a_config_may_name_is_known_and_no_other_is() -> None:
    assert set(KINDS) == set(TOWER_TYPES)
    message = r"tower.model_type=llama: is not a known image encoder; use one of: clip"
    with pytest.raises(ConfigError, match=message):
        tower_of(TEXT, "tower")


def test_a_whole_model_with_a_layer_it_does_not_have_is_refused(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    whole(tmp_path, tiny_config, vision_feature_layer=5)
    config = override_config(tiny_config, [f"model={{weights: {tmp_path}}}"])
    with pytest.raises(ConfigError, match=r"vision_feature_layer=5: the tower has 2 layers"):
        check_weights(config, plan_curriculum(config))
    first = override_config(tiny_config, [f"stages.align.initial_weights={tmp_path}"])
    with pytest.raises(ConfigError, match=r"align.initial_weights=.*vision_feature_layer=5"):
        check_weights(first, plan_curriculum(first))


def test_initial_weights_that_take_other_images_than_the_datasets_have_are_refused(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    whole(tmp_path, tiny_config, vision_feature_select_strategy="full")
    config = override_config(tiny_config, [f"stages.align.initial_weights={tmp_path}"])
    message = r"align.initial_weights=.*: takes images of 16 pixels as 5 tokens, but .* 16 as 4; na"
    with pytest.raises(ConfigError, match=message):
        check_weights(config, plan_curriculum(config))


def test_initial_weights_that_look_for_another_token_of_images_are_refused(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    """They would find no place for any image, and train without a word as if there were none."""
    whole(tmp_path, tiny_config, image_token_index=7)
    config = override_config(tiny_config, [f"stages.align.initial_weights={tmp_path}"])
    job, data = make_job(config), mixture(config)
    message = rf"align.initial_weights=.*: its token of images is 7, but .* {data.image_token_id};"
    with pytest.raises(ConfigError, match=message):
        check_stage(plan_curriculum(config)[0], job, data)
    model = load_model(tmp_path, "fp32", "sdpa")
    with pytest.raises(ConfigError, match=r"^model: its token of images is 7, but"):
        trust_image_tokens(model, data.image_token_id)


@pytest.mark.parametrize(
    "part", [{"tokenizer": "other"}, {"projector": "linear"}, {"vision_feature_layer": -3}]
)
def test_a_part_beside_a_whole_model_that_has_its_own_is_refused(part: dict[str, Any]) -> None:
    (name,) = part
    with pytest.raises(ConfigError, match=rf"^model.{name}=.*: has no effect with model.weights"):
        build_processor(Model(weights="llava", **part), iter([]))


def test_a_whole_model_whose_processor_adds_no_borders_is_refused_for_images_with_borders(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    model = whole(tmp_path, tiny_config)
    with pytest.raises(ConfigError, match=r"image_aspect_ratio=pad: the processor of .* adds no"):
        build_processor(model.model_copy(update={"image_aspect_ratio": "pad"}), iter([]))
    padded = override_config(tiny_config, ["model.image_aspect_ratio=pad"])
    model = whole(tmp_path, padded).model_copy(update={"image_aspect_ratio": "pad"})
    assert image_settings(build_processor(model, iter([]))).aspect_ratio == "pad"
