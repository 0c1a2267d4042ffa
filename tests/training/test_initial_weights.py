"""Initial weights of a stage must know the images that its datasets are prepared for."""

from pathlib import Path

import pytest

from llavamed.config.load import override_config
from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError
from llavamed.model.llava import build_model
from llavamed.run.curriculum import plan_curriculum
from llavamed.run.preflight import check_weights
from tests.support.original_llava import save_as_original
from tests.support.training_setup import make_job, processor_of, run_stage, small_config


@pytest.mark.parametrize("resizing", ["anyres_max_9", "highres", "crop_split"])
def test_initial_weights_that_cut_images_as_no_llava_of_transformers_does_are_refused(
    tiny_config: RunConfig, tmp_path: Path, resizing: str
) -> None:
    """They would train on one tile of each image."""
    small = small_config(tiny_config, f"stages.align.initial_weights={tmp_path}/it")
    save_as_original(tmp_path / "it", small, image_aspect_ratio=resizing)
    message = rf"image_aspect_ratio={resizing}: transformers' LLaVA has no such part; .*: pad, squ"
    with pytest.raises(ConfigError, match=message):
        check_weights(small, plan_curriculum(small))


@pytest.mark.parametrize(("theirs", "ours"), [("pad", "square"), ("square", "pad")])
def test_initial_weights_that_saw_images_made_otherwise_are_refused(
    tiny_config: RunConfig, tmp_path: Path, theirs: str, ours: str
) -> None:
    """They would train on other pictures than those they know."""
    small = small_config(tiny_config, f"stages.align.initial_weights={tmp_path}/it")
    save_as_original(tmp_path / "it", small, image_aspect_ratio=theirs)
    config = override_config(small, [f"model.image_aspect_ratio={ours}"])
    message = (
        rf"^stages.align.initial_weights={tmp_path}/it: its processor makes images with "
        rf"aspect_ratio={theirs}, but the model section, by which datasets are prepared, with "
        rf"aspect_ratio={ours}; set model.image_aspect_ratio to {theirs}$"
    )
    with pytest.raises(ConfigError, match=message):
        check_weights(config, plan_curriculum(config))
    advised = override_config(config, [f"model.image_aspect_ratio={theirs}"])
    check_weights(advised, plan_curriculum(advised))


def test_initial_weights_with_other_colours_are_refused(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    small = small_config(tiny_config, f"stages.align.initial_weights={tmp_path}")
    model = build_model(small.model, processor_of(small), seed=3, precision="fp32")
    model.save_pretrained(tmp_path)
    check_weights(small, plan_curriculum(small))  # without a processor nothing is known
    processor = processor_of(small)
    processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    processor.save_pretrained(tmp_path)
    message = (
        r"makes images with mean=\(0.5, 0.5, 0.5\), but .*, with mean=\(0.48.*; name these weights"
    )
    with pytest.raises(ConfigError, match=message):
        check_weights(small, plan_curriculum(small))
    whole = override_config(small, [f"model={{weights: {tmp_path}}}"])
    check_weights(whole, plan_curriculum(whole))
    processor.image_processor.do_normalize = False
    processor.save_pretrained(tmp_path)
    message = rf"^stages.align.initial_weights={tmp_path}: image_processor.do_normalize=False: "
    with pytest.raises(ConfigError, match=message):
        check_weights(small, plan_curriculum(small))


def test_the_export_of_a_run_that_made_images_otherwise_is_refused(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    own = (f"data.directory={tmp_path}", "stages.align.max_steps=1", "name=padded")
    job = make_job(small_config(tiny_config, "model.image_aspect_ratio=pad", *own))
    run_stage(job)
    config = small_config(tiny_config, f"stages.align.initial_weights={job.export}")
    with pytest.raises(ConfigError, match=r"images with aspect_ratio=pad, but .*=square; set mod"):
        check_weights(config, plan_curriculum(config))
