"""Initial weights of a stage must know the images that its datasets are prepared for."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llavamed.config.load import override_config
from llavamed.config.run import RunConfig
from llavamed.data.prepare.job import ensure_processor
from llavamed.errors import ConfigError
from llavamed.model.export import write_export
from llavamed.model.llava import build_model
from llavamed.processor.build import build_processor
from llavamed.run.curriculum import plan_curriculum
from llavamed.run.model_checks import check_vocabulary, check_weights
from llavamed.storage.location import locate
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
    own = (f"data.directory={tmp_path}", "stages.align.max_steps=1", "name=initial-padded")
    job = make_job(small_config(tiny_config, "model.image_aspect_ratio=pad", *own))
    run_stage(job)
    config = small_config(tiny_config, f"stages.align.initial_weights={job.export}")
    with pytest.raises(ConfigError, match=r"images with aspect_ratio=pad, but .*=square; set mod"):
        check_weights(config, plan_curriculum(config))


@given(others=st.integers(0, 300))
@settings(
    max_examples=8,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@example(others=0)
@example(others=1)
def test_initial_weights_that_know_other_words_are_refused(
    tiny_config: RunConfig, tmp_path: Path, others: int
) -> None:
    """Their token of images may have the same number, as in LLaVAs of Vicuna and of Mistral."""
    small = small_config(tiny_config, f"stages.align.initial_weights={tmp_path}")
    processor = processor_of(small)
    build_model(small.model, processor, seed=3, precision="fp32").save_pretrained(tmp_path)
    place, plans = ensure_processor(small), plan_curriculum(small)
    processor.tokenizer.save_pretrained(tmp_path)
    check_vocabulary(plans, place)
    definition = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = definition["model"]["vocab"]
    plain = [token for token in vocabulary if not token.startswith("<")][-others:] if others else []
    numbers = [vocabulary[token] for token in plain]
    vocabulary |= dict(zip(plain, numbers[1:] + numbers[:1], strict=True))
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    renamed = len(plain) if len(plain) > 1 else 0
    if renamed <= 0.02 * len(processor.tokenizer):
        check_vocabulary(plans, place)
        return
    message = (
        rf"align.initial_weights={tmp_path}: {renamed} of \d+ ids stand for other tokens in its"
    )
    with pytest.raises(ConfigError, match=message):
        check_vocabulary(plans, place)


def test_a_whole_llava_has_an_embedding_for_each_token(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    small = small_config(tiny_config, f"stages.align.initial_weights={tmp_path}")
    processor = processor_of(small)
    model = build_model(small.model, processor, seed=3, precision="fp32")
    write_export(locate(str(tmp_path)), model, model.state_dict(), processor)
    whole = override_config(small, [f"model={{weights: {tmp_path}}}"])
    build_processor(whole.model, iter([]))
    rows = model.config.text_config.vocab_size
    more = [f"<more-{number}>" for number in range(rows)]
    processor.tokenizer.add_tokens(more)
    processor.save_pretrained(tmp_path)
    total = len(processor.tokenizer)
    message = rf"{tmp_path}: has embeddings for {rows} tokens, and the tokenizer has {total}; resi"
    with pytest.raises(ConfigError, match="^model.weights=" + message):
        build_processor(whole.model, iter([]))
    with pytest.raises(ConfigError, match="^stages.align.initial_weights=" + message):
        check_vocabulary(plan_curriculum(small), locate(str(tmp_path)))
