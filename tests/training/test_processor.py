import re

import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from llavamed.config.data import Dataset
from llavamed.config.load import parse_config
from llavamed.data.prepare.processor import ensure_processor
from llavamed.errors import ConfigError, DataError
from llavamed.processor.build import (
    build_processor,
    image_settings,
    load_processor,
    num_image_tokens,
    tokenizer_hash,
)
from llavamed.processor.images import ImageSettings
from llavamed.processor.pretrained import part_config
from llavamed.processor.tower import CLIP_MEAN, CLIP_STD
from tests.support.small_tokenizers import QWEN_3, chatml, llama_like

TEXTS = ["Where is the lesion? In the left lower lobe.", "Ä 漢 <image>"]


def model(tiny_config, **changes):
    """The tiny model with other settings, by dotted keys with `__` for the dot."""
    tree = tiny_config.model_dump(mode="json")
    for key, value in changes.items():
        *path, last = key.split("__")
        node = tree["model"]
        for part in path:
            node = node[part]
        node[last] = value
    return parse_config(tree).model


def message(model):
    with pytest.raises(ConfigError) as caught:
        build_processor(model, iter(TEXTS))
    return str(caught.value)


def test_a_saved_processor_comes_back(processor_folder, tiny_config):
    processor = load_processor(processor_folder)
    assert image_settings(processor) == ImageSettings(16, "square", CLIP_MEAN, CLIP_STD)
    assert num_image_tokens(processor) == 4
    again = build_processor(tiny_config.model, iter(TEXTS))
    assert image_settings(again) == image_settings(processor)
    assert tokenizer_hash(load_processor(processor_folder)) == tokenizer_hash(processor)
    assert tokenizer_hash(again) != tokenizer_hash(processor)


def test_a_trained_tokenizer_is_the_same_for_the_same_text_and_has_tokens_for_any(tiny_config):
    one, two = (build_processor(tiny_config.model, iter(TEXTS)) for _ in range(2))
    assert tokenizer_hash(one) == tokenizer_hash(two)
    assert len(one.tokenizer) <= 320
    text = "Ünseen 心臓 \n\t 🫀"
    assert one.tokenizer.decode(one.tokenizer(text).input_ids) == text
    assert one.tokenizer("<image>").input_ids == [one.image_token_id]


def test_the_processor_expands_an_image_to_as_many_tokens_as_we_do(processor_folder):
    processor = load_processor(processor_folder)
    found = processor(text="<image>\nWhere?", images=Image.new("RGB", (30, 20)))
    assert found["input_ids"][0].count(processor.image_token_id) == num_image_tokens(processor)


def test_padding_is_taken_from_the_config(tiny_config):
    processor = build_processor(model(tiny_config, image_aspect_ratio="pad"), iter(TEXTS))
    assert image_settings(processor).aspect_ratio == "pad"


CHANGES_OF_A_PROCESSOR = {
    "image_aspect_ratio": "pad",
    "vision_tower__image_size": 32,
    "template": "plain",
    "thinking": "leave_out",
}


@pytest.mark.parametrize(("key", "value"), CHANGES_OF_A_PROCESSOR.items())
def test_a_processor_is_not_used_for_settings_that_would_have_made_another(
    tiny_config, tmp_path, key, value
):
    tokenizer = chatml()
    tokenizer.chat_template = QWEN_3
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    before = {"tokenizer": str(tmp_path / "tokenizer"), "template": "tokenizer"}

    def config(**changes):
        update = {"storage": str(tmp_path), "model": model(tiny_config, **before, **changes)}
        return tiny_config.model_copy(update=update)

    before |= {"language_model__config__vocab_size": len(tokenizer) + 1}
    place = ensure_processor(config())
    assert ensure_processor(config()) == place
    before.pop(key, None)
    dotted = key.replace("__", ".")
    with pytest.raises(DataError, match=rf"prepared with other settings: model\.{dotted}="):
        ensure_processor(config(**{key: value}))


def test_the_template_of_an_export_is_not_used_for_other_thinking(tiny_config, tmp_path):
    tokenizer = chatml()
    tokenizer.chat_template = QWEN_3
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = {"language_model__config__vocab_size": len(tokenizer) + 1, "template": "tokenizer"}
    masked = model(tiny_config, tokenizer=str(tmp_path / "tokenizer"), thinking="mask", **rows)
    build_processor(masked, iter([])).tokenizer.save_pretrained(tmp_path / "export")
    again = model(tiny_config, tokenizer=str(tmp_path / "export"), **rows)
    with pytest.raises(ConfigError, match=r"model.thinking=train: .* with mask, and says so; set"):
        build_processor(again, iter([]))


def test_a_tokenizer_in_a_folder_is_used_and_gets_the_image_token(
    tiny_config, processor_folder, tmp_path
):
    folder = tmp_path / "tokenizer"
    load_processor(processor_folder).tokenizer.save_pretrained(folder)
    processor = build_processor(model(tiny_config, tokenizer=str(folder)), iter(()))
    assert processor.tokenizer.convert_ids_to_tokens(processor.image_token_id) == "<image>"


def test_a_tokenizer_of_another_language_model_is_refused(tiny_config, tmp_path):
    part_config(tiny_config.model.language_model, "model.language_model").save_pretrained(tmp_path)
    for folder, tokenizer in ((tmp_path, chatml()), (tmp_path / "other", llama_like())):
        tokenizer.save_pretrained(folder)
    named = {"language_model__weights": str(tmp_path), "language_model__config": {}}
    found = message(model(tiny_config, tokenizer=str(tmp_path / "other"), **named))
    assert re.match(rf"model.tokenizer={tmp_path}/other: \d+ of \d+ ids stand for other", found)
    renamed = chatml()
    renamed.add_tokens(["<think>"])
    renamed.save_pretrained(tmp_path / "renamed")
    same = model(tiny_config, tokenizer=str(tmp_path / "renamed"), **named)
    assert build_processor(same, iter(()))


def test_a_tower_s_processor_that_does_not_normalise_is_refused(tiny_config, tmp_path):
    CLIPImageProcessorPil(do_normalize=False).save_pretrained(tmp_path)
    part_config(tiny_config.model.vision_tower, "model.vision_tower").save_pretrained(tmp_path)
    found = message(model(tiny_config, vision_tower__weights=str(tmp_path)))
    assert found.startswith("image_processor.do_normalize=False: images are always resized")


def test_mean_and_deviation_are_those_of_the_tower_s_weights(tiny_config, tmp_path):
    CLIPImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(tmp_path)
    vision = part_config(tiny_config.model.vision_tower, "model.vision_tower")
    vision.save_pretrained(tmp_path)
    changed = model(tiny_config, vision_tower__weights=str(tmp_path))
    settings = image_settings(build_processor(changed, iter(TEXTS)))
    assert settings == ImageSettings(16, "square", (0.5,) * 3, (0.25,) * 3)


def test_a_declared_shape_that_is_not_the_weights_own_is_refused(tiny_config, tmp_path):
    part_config(tiny_config.model.vision_tower, "model.vision_tower").save_pretrained(tmp_path)
    changed = model(
        tiny_config, vision_tower__weights=str(tmp_path), vision_tower__config__hidden_size=24
    )
    assert message(changed) == (
        f"model.vision_tower.config.hidden_size=24: the weights {tmp_path} have 16; correct the "
        "declared value or remove it"
    )


@pytest.mark.parametrize("key", ["tokenizer", "vision_tower__weights", "language_model__weights"])
def test_a_missing_folder_is_named_at_once(key, tiny_config):
    dotted = key.replace("__", ".")
    assert message(model(tiny_config, **{key: "/nowhere"})) == (
        f"model.{dotted}=/nowhere: no such folder; give one, or a name on the hub"
    )


def test_a_missing_whole_model_is_named(tiny_config):
    changed = model(tiny_config, weights="./nowhere", vision_tower=None, language_model=None)
    assert message(changed).startswith("model.weights=./nowhere: no such folder; give one")


def test_a_folder_without_a_tokenizer_is_named(tiny_config, tmp_path):
    found = message(model(tiny_config, tokenizer=str(tmp_path)))
    assert found == (
        f"model.tokenizer={tmp_path}: has no tokenizer that can be loaded; save the tokenizer "
        "there with `save_pretrained`"
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"language_model__config__model_type": "lama"},
            "model.language_model.config.model_type=lama: transformers knows no such model; "
            "give the name of one, such as clip_vision_model or llama",
        ),
        (
            {"vision_tower__config__image_size": "large"},
            "model.vision_tower.config: transformers refuses it: TypeError: Field 'image_size' ",
        ),
        (
            {"language_model__config__num_attention_heads": 3},
            "model.language_model.config: transformers refuses it: ValueError: The hidden size "
            "(16) is not a multiple of the number of attention heads (3)",
        ),
    ],
    ids=["model type", "field", "fields together"],
)
def test_a_mistake_is_named_with_its_cure(changes, sentence, tiny_config):
    found = message(model(tiny_config, **changes))
    assert sentence in found
    assert "\n" not in found


def test_a_processor_that_read_the_same_texts_is_used(tiny_config, tmp_path):
    """Its tokenizer was trained on the texts; where the images are does not matter."""
    (tmp_path / "rows.json").write_text(
        '[{"id": 1, "conversations": [{"from": "human", "value": "What?"}, '
        '{"from": "gpt", "value": "A lung."}]}]'
    )

    def config(folder, path="rows.json"):
        read = {"source": "llava_json", "path": f"{tmp_path}/{path}", "image_folder": folder}
        datasets = {"captions": Dataset(read=read)}
        data = tiny_config.data.model_copy(update={"datasets": datasets})
        return tiny_config.model_copy(update={"storage": str(tmp_path), "data": data})

    place = ensure_processor(config("imges"))
    assert ensure_processor(config("images")) == place
    with pytest.raises(DataError, match="prepared with other settings: datasets"):
        ensure_processor(config("images", "others.json"))
