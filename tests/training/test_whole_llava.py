"""A LLaVA that the original trainer saved starts a run as the model it is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlavaNextForConditionalGeneration

from llavamed.config.load import override_config
from llavamed.config.run import RunConfig
from llavamed.errors import CheckpointError, ConfigError
from llavamed.evaluate.transformers_model import transformers_candidate
from llavamed.model.export import write_export
from llavamed.model.llava import build_model
from llavamed.processor.build import build_processor, image_settings, num_image_tokens, tiling
from llavamed.run.curriculum import plan_curriculum
from llavamed.run.model_checks import check_weights
from llavamed.storage.location import locate
from tests.support.asked_questions import question
from tests.support.original_llava import save_as_original
from tests.support.training_setup import make_job, run_stage, small_config

ANYRES: dict[str, Any] = {
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial_unpad",
    "image_grid_pinpoints": [[48, 16], [16, 32]],  # widths and heights
}


def of_llava(config: RunConfig, source: str, *overrides: str) -> RunConfig:
    return override_config(config, [f"model={{weights: {source}}}", "name=original", *overrides])


@pytest.mark.parametrize(
    ("with_tower", "projector_file"), [(True, False), (False, False), (False, True)]
)
@pytest.mark.parametrize("where", ["folder", "s3"])
def test_each_weight_of_an_original_llava_is_found(
    tiny_config: RunConfig,
    tmp_path: Path,
    s3_uri: str,
    where: str,
    with_tower: bool,
    projector_file: bool,
) -> None:
    folder = tmp_path / "original"
    small = small_config(tiny_config)
    theirs = save_as_original(folder, small, with_tower=with_tower, projector_file=projector_file)
    if where == "s3":
        locate(f"{s3_uri}/original").upload(folder)
    config = of_llava(small, f"{s3_uri}/original" if where == "s3" else str(folder))
    check_weights(config, plan_curriculum(config))
    processor = build_processor(config.model, iter([]))
    assert image_settings(processor).aspect_ratio == "pad"
    model = build_model(config.model, processor, seed=0, precision="fp32")
    assert model.config.image_token_id == processor.tokenizer.convert_tokens_to_ids("<image>")
    assert model.lm_head.weight.shape[0] >= len(processor.tokenizer)
    assert model.lm_head.weight.shape[0] % 64 == 0
    found = model.state_dict()
    for name, weight in theirs.state_dict().items():
        rows = weight.shape[0] if weight.ndim else None
        torch.testing.assert_close(found[name][:rows], weight, rtol=0, atol=0, msg=name)
    number = num_image_tokens(processor)
    ids = torch.tensor([[1, *[processor.image_token_id] * number, 5, 6]])
    pixels = torch.rand(1, 3, 16, 16)
    mine = model(input_ids=ids, pixel_values=pixels).logits
    ids = ids.where(ids != processor.image_token_id, theirs.config.image_token_id)
    expected = theirs(input_ids=ids, pixel_values=pixels).logits
    torch.testing.assert_close(mine[..., : expected.shape[-1]], expected)


def test_an_original_llava_trains_and_its_export_loads(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    small = small_config(tiny_config)
    save_as_original(tmp_path / "original", small)
    place = f"data.directory={tmp_path}/datasets"
    config = of_llava(small, str(tmp_path / "original"), place, "stages.align.max_steps=2")
    assert run_stage(make_job(config)).logits_difference == 0.0


def test_a_linear_projector_of_an_original_llava_stays_linear(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    small = small_config(tiny_config, "model.projector=linear")
    theirs = save_as_original(tmp_path / "it", small, mm_projector_type="linear")
    weights = {
        "model.mm_projector.weight": theirs.model.multi_modal_projector.linear_1.weight,
        "model.mm_projector.bias": theirs.model.multi_modal_projector.linear_1.bias,
    }
    torch.save(weights, tmp_path / "it" / "mm_projector.bin")
    config = of_llava(small, str(tmp_path / "it"))
    model = build_model(
        config.model, build_processor(config.model, iter([])), seed=0, precision="fp32"
    )
    for name, weight in theirs.model.multi_modal_projector.state_dict().items():
        assert torch.equal(model.model.multi_modal_projector.state_dict()[name], weight)


def test_a_projector_that_an_earlier_training_left_behind_is_not_used(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    small = small_config(tiny_config)
    theirs = save_as_original(tmp_path / "it", small)
    weights = theirs.model.multi_modal_projector.state_dict()
    number = {"linear_1": 0, "linear_2": 2}
    stale = {}
    for name, weight in weights.items():
        layer, kind = name.split(".")
        stale[f"model.mm_projector.{number[layer]}.{kind}"] = torch.zeros_like(weight)
    torch.save(stale, tmp_path / "it" / "mm_projector.bin")
    config = of_llava(small, str(tmp_path / "it"))
    processor = build_processor(config.model, iter([]))
    found = build_model(config.model, processor, seed=0, precision="fp32")
    for name, weight in found.model.multi_modal_projector.state_dict().items():
        assert torch.equal(weight, weights[name])


@pytest.mark.parametrize(("kind", "resizing"), [("siglip", "stretch"), ("clip", "square")])
def test_an_original_llava_without_an_aspect_ratio_sees_images_as_its_tower_does(
    tiny_config: RunConfig, tmp_path: Path, kind: str, resizing: str
) -> None:
    tower = f"model.vision_tower.config.model_type={kind}_vision_model"
    small = small_config(tiny_config, tower, f"data.directory={tmp_path}/datasets")
    save_as_original(tmp_path / "it", small, image_aspect_ratio=None)
    processor = build_processor(of_llava(small, str(tmp_path / "it")).model, iter([]))
    assert image_settings(processor).aspect_ratio == resizing


def drop_projector(folder: Path) -> None:
    (folder / "mm_projector.bin").unlink()


def drop_tower(folder: Path) -> None:
    (folder / "tower" / "config.json").unlink()


def add_adapters(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def add_tensor(folder: Path) -> None:
    file = folder / "mm_projector.bin"
    torch.save(torch.load(file) | {"model.mm_projector.4.weight": torch.zeros(2, 2)}, file)


def set_field(**fields: Any) -> Any:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            drop_projector,
            r"4 tensors are missing or of another shape: model.multi_modal_projector.linear_1.bias,"
            r" .*linear_1.weight, .*linear_2.bias, .*linear_2.weight; name a folder that",
        ),
        (drop_tower, r"mm_vision_tower=tower: cannot be loaded: .*; put the image encoder into"),
        (add_tensor, r"has a tensor model.mm_projector.4.weight, which is in no model that can be"),
        (add_adapters, r"holds adapters that are not merged \(adapter_config.json\); merge them"),
        (
            set_field(mm_projector_type="resampler"),
            r"mm_projector_type=resampler: transformers' LLaVA has no such part; use a model with",
        ),
        (
            set_field(model_type="llava_of_ours"),
            r"its language model is of a kind that transformers does not know; ",
        ),
        (
            set_field(mm_use_im_start_end=True),
            r"mm_use_im_start_end=true: was trained with a token before and one after each image, ",
        ),
        (
            set_field(**ANYRES | {"mm_patch_merge_type": "flat"}),
            r"mm_patch_merge_type=flat: transformers' LLaVA has no such part; .*: spatial_unpad",
        ),
        (
            set_field(**ANYRES | {"image_grid_pinpoints": "(1x1),...,(2x2)"}),
            r"image_grid_pinpoints=\(1x1\),...,\(2x2\): must be a list of widths and heights with ",
        ),
        (
            set_field(**ANYRES),
            r"model.image_grid_pinpoints=null: the weights .*, a llava_next, have \[\[16, 48\], ",
        ),
    ],
    ids=[
        *("projector", "tower", "layer", "adapters", "resampler", "language model"),
        *("image tokens", "merge", "pinpoints", "one tile"),
    ],
)
def test_an_original_llava_that_lacks_something_is_refused_with_what_it_lacks(
    tiny_config: RunConfig, tmp_path: Path, change: Any, message: str
) -> None:
    small = small_config(tiny_config)
    save_as_original(tmp_path / "it", small, with_tower=False, projector_file=True)
    change(tmp_path / "it")
    config = of_llava(small, str(tmp_path / "it"))
    with pytest.raises((ConfigError, CheckpointError), match=message):
        build_model(config.model, build_processor(config.model, iter([])), seed=0, precision="fp32")


def test_an_original_llava_is_evaluated_as_the_model_it_is(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    small = small_config(
        tiny_config,
        "model.language_model.config.initializer_range=0.3",
        f"data.directory={tmp_path}/datasets",
    )
    save_as_original(tmp_path / "original", small)
    model_config = of_llava(small, str(tmp_path / "original")).model
    processor = build_processor(model_config, iter([]))
    model = build_model(model_config, processor, seed=0, precision="fp32")
    write_export(locate(str(tmp_path / "ours")), model, model.state_dict(), processor)
    questions = [question(number) for number in range(3)]
    texts = []
    for name in ("original", "ours"):
        candidate = transformers_candidate(
            str(tmp_path / name), template="vicuna_v1", precision="fp32", batch_size=2
        )
        replies = candidate.load().answer(questions, 8)
        texts.append([reply and reply.text for reply in replies])
    assert texts[0] == texts[1]
    assert len({*texts[0]}) > 1


def test_an_original_llava_that_cuts_tiles_is_the_llava_next_it_is(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    own = ("model.image_grid_pinpoints=[[16, 48], [32, 16]]", "data.store_images=original")
    small = small_config(tiny_config, *own, f"data.directory={tmp_path}/datasets")
    theirs: Any = save_as_original(tmp_path / "it", small, **ANYRES)
    assert isinstance(theirs, LlavaNextForConditionalGeneration)
    config = override_config(
        small,
        [
            f"model={{weights: {tmp_path}/it, image_grid_pinpoints: [[16, 48], [32, 16]]}}",
            "name=original",
        ],
    )
    check_weights(config, plan_curriculum(config))
    processor = build_processor(config.model, iter([]))
    assert tiling(processor).pinpoints == ((16, 48), (32, 16))
    found = build_model(config.model, processor, seed=0, precision="fp32")
    weights = found.state_dict()
    for name, weight in theirs.state_dict().items():
        rows = weight.shape[0] if weight.ndim else None
        assert torch.equal(weights[name][:rows], weight), name
    image = np.random.default_rng(0).integers(0, 255, (20, 50, 3), dtype=np.uint8)
    inputs = processor(text="<image>", images=image, return_tensors="pt")
    number = int((inputs.pop("input_ids") == processor.image_token_id).sum())
    assert number == tiling(processor).num_tokens((20, 50)) > num_image_tokens(processor)
    del inputs["attention_mask"]
    logits = []
    for model, token in ((found, processor.image_token_id), (theirs, theirs.config.image_token_id)):
        ids = torch.tensor([[1, *[token] * number, 5, 6]])
        logits.append(model(input_ids=ids, **inputs).logits)
    torch.testing.assert_close(logits[0][..., : logits[1].shape[-1]], logits[1])


@pytest.mark.parametrize("has_config", [True, False], ids=["language model", "adapters"])
def test_a_llava_in_the_form_of_xtuner_is_refused_with_how_to_convert_it(
    tiny_config: RunConfig, tmp_path: Path, has_config: bool
) -> None:
    (tmp_path / "projector").mkdir()
    (tmp_path / "projector" / "config.json").write_text('{"model_type": "projector"}')
    if has_config:
        LlamaConfig().save_pretrained(tmp_path)
    config = of_llava(small_config(tiny_config), str(tmp_path))
    message = f"{tmp_path}: is a LLaVA in the form of xtuner, .* convert it with xtuner's convert_x"
    with pytest.raises(ConfigError, match=message):
        check_weights(config, plan_curriculum(config))
