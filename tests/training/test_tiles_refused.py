"""A model that cannot cut images into the tiles it is asked for is refused before it starts."""

from pathlib import Path
from typing import Any

import pytest
from transformers import LlavaNextForConditionalGeneration

from llavamed.config.load import override_config
from llavamed.config.run import RunConfig
from llavamed.data.prepare.job import initial_manifest
from llavamed.errors import ConfigError, SampleError
from llavamed.model.llava import build_model
from llavamed.processor.build import build_processor, load_processor, tiling
from llavamed.processor.encode import encode_prompt
from llavamed.processor.templates import get_template
from llavamed.processor.turns import Turn
from llavamed.run.curriculum import plan_curriculum
from llavamed.run.model_checks import check_weights
from llavamed.run.plan import plan_run
from tests.support.mixed_samples import TILES, Mixed, make_samples
from tests.support.small_models import save_llava_next
from tests.support.training_setup import processor_of, small_config


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    return make_samples(tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module")
def config(tiny_config: RunConfig, mixed: Mixed) -> RunConfig:
    return small_config(tiny_config, "name=refused", *mixed.overrides("tiles"), *TILES)


@pytest.fixture(scope="module")
def processor(config: RunConfig) -> Any:
    return processor_of(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.store_images=pixels"], "data.store_images=pixels: stores images at the size of"),
        (["model.image_aspect_ratio=pad"], "image_aspect_ratio=pad: has no effect with image_grid"),
        (["model.template=llava_med_v0"], "template=llava_med_v0: counts the labels of LLaVA-Med"),
        (["model.image_grid_pinpoints=[]"], "image_grid_pinpoints"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_config(
    config: RunConfig, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        override_config(config, overrides)


def weights_of(folder: Path) -> str:
    save_llava_next(folder)
    return f"model={{weights: {folder}, template: tokenizer, image_grid_pinpoints: PINPOINTS}}"


def test_a_whole_llava_next_is_trained_with_its_own_tiles(
    config: RunConfig, tmp_path: Path
) -> None:
    own = weights_of(tmp_path)
    for asked in ("null", "[[16, 32]]"):
        wrong = override_config(config, [own.replace("PINPOINTS", asked)])
        message = (
            r"image_grid_pinpoints=.*: the weights .*, a llava_next, have \[\[16, 32\], \[32, "
            r"16\]\]; set it to that, or to \[\[16, 16\]\] for one tile beside the whole image"
        )
        with pytest.raises(ConfigError, match=message):
            build_processor(wrong.model, iter([]))
        with pytest.raises(ConfigError, match=message):
            check_weights(wrong, plan_curriculum(wrong))
    right = override_config(config, [own.replace("PINPOINTS", "[[16, 32], [32, 16]]")])
    check_weights(right, plan_curriculum(right))
    processor = build_processor(right.model, iter([]))
    assert tiling(processor).pinpoints == ((16, 32), (32, 16))
    model = build_model(right.model, processor, seed=0, precision="fp32")
    assert isinstance(model, LlavaNextForConditionalGeneration)


def test_a_whole_llava_next_whose_processor_cuts_other_tiles_is_refused(
    config: RunConfig, tmp_path: Path
) -> None:
    own = weights_of(tmp_path).replace("PINPOINTS", "[[16, 32], [32, 16]]")
    processor = load_processor(tmp_path)
    processor.image_processor.image_grid_pinpoints = [[16, 32]]
    processor.save_pretrained(tmp_path)
    wrong = override_config(config, [own])
    message = (
        r"image_grid_pinpoints=\(\(16, 32\), \(32, 16\)\) in its config, but its processor has "
        r"\(\(16, 32\),\); correct one of the two"
    )
    with pytest.raises(ConfigError, match=message):
        build_processor(wrong.model, iter([]))


def test_initial_weights_with_other_tiles_are_refused(
    config: RunConfig, tiny_config: RunConfig, tmp_path: Path
) -> None:
    save_llava_next(tmp_path)
    start = f"stages.align.initial_weights={tmp_path}"
    for run, ours in ((config, r"\[\[16, 32\], "), (tiny_config, "one tile")):
        run = override_config(run, [start])
        with pytest.raises(ConfigError, match=f"cuts images into .*, into {ours}"):
            check_weights(run, plan_curriculum(run))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.image_grid_pinpoints=[[16, 40]]", r"=\[16, 40\]: is not made of whole tiles of 16"),
        (
            "model.vision_tower.config={model_type: dinov2_with_registers, hidden_size: 16, "
            "num_hidden_layers: 2, num_attention_heads: 2, image_size: 16, patch_size: 8}",
            r"makes 8 tokens of a tile, which are not a grid of 4 patches, because it has 5",
        ),
    ],
    ids=["size", "registers"],
)
def test_a_tower_that_does_not_fit_the_tiles_is_refused(
    config: RunConfig, override: str, message: str
) -> None:
    config = override_config(config, [override])
    with pytest.raises(ConfigError, match=message):
        check_weights(config, plan_curriculum(config))
    with pytest.raises(ConfigError, match=message):
        build_processor(config.model, iter(["a text"]))


def test_an_image_that_no_sample_has_room_for_is_refused(config: RunConfig, processor: Any) -> None:
    config = override_config(config, ["data.max_length=24"])
    message = r"data.max_length=24: an image takes up to 24 tokens"
    with pytest.raises(ConfigError, match=message):
        initial_manifest(config, "mixed", processor)
    with pytest.raises(ConfigError, match=message):
        check_weights(config, plan_curriculum(config))
    with pytest.raises(ConfigError, match=message):
        plan_run(config, accelerator="A100")


def test_images_that_the_rendered_text_does_not_place_are_refused(processor: Any) -> None:
    with pytest.raises(SampleError, match="1 <image> in the rendered text, 2 images"):
        encode_prompt(
            [Turn("user", "<image>\nWhat is shown?")],
            template=get_template("vicuna_v1"),
            tokenizer=processor.tokenizer,
            num_image_tokens=[4, 5],
        )
