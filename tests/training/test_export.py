"""Models made of published parts, and the exports others load: nothing is lost on the way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoProcessor, LlavaForConditionalGeneration

from llavamed.config.run import RunConfig
from llavamed.errors import CheckpointError, ConfigError, StorageError
from llavamed.model.export import copy_export, fetch_export, serving_note, write_export
from llavamed.model.llava import build_model, load_model, shape_on_meta
from llavamed.processor.build import build_processor
from llavamed.storage.location import MANIFEST, Location, locate
from llavamed.storage.manifest import ExportManifest, find, write
from tests.support.manifests import export_manifest
from tests.support.mixed_samples import TILES
from tests.support.published_names import PUBLISHED_PREFIXES
from tests.support.published_parts import NUM_WORDS, composed, save_parts
from tests.support.training_setup import assert_same_weights, processor_of, small_config

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.mark.parametrize("language_model", ["untied", "tied"])
@pytest.mark.parametrize("tower", ["tower", "clip"])
def test_parts_keep_their_weights_bit_for_bit(
    tiny_config: RunConfig, parts: Path, tower: str, language_model: str
) -> None:
    config, processor = composed(tiny_config, parts, tower, language_model)
    model = build_model(config.model, processor, seed=0, precision="fp32")
    published = load_file(parts / tower / "model.safetensors")
    published = {
        name.removeprefix("vision_model."): weight
        for name, weight in published.items()
        if name.startswith("vision_model.") or tower == "tower"
    }
    assert_same_weights(dict(model.model.vision_tower.state_dict()), published)
    published = load_file(parts / language_model / "model.safetensors")
    mine = {f"model.{n}": w for n, w in model.model.language_model.state_dict().items()}
    mine["lm_head.weight"] = model.lm_head.weight.detach()
    for name, weight in published.items():
        assert torch.equal(mine[name][: len(weight)], weight), name  # rows may have been added
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == (
        language_model == "tied"
    )


@pytest.mark.parametrize("language_model", ["untied", "tied"])
def test_an_export_with_tiles_has_as_many_tables_as_its_language_model(
    tiny_config: RunConfig, parts: Path, tmp_path: Path, language_model: str
) -> None:
    config, processor = composed(tiny_config, parts, "tower", language_model, *TILES)
    model = build_model(config.model, processor, seed=0, precision="fp32")
    write_export(locate(str(tmp_path)), model, model.state_dict(), processor)
    loaded = load_model(tmp_path, "fp32", "sdpa")
    assert_same_weights(loaded.state_dict(), model.state_dict())
    for each in (model, loaded, shape_on_meta(config.model)):
        is_tied = each.lm_head.weight is each.get_input_embeddings().weight
        assert is_tied == (language_model == "tied")


def test_the_vocabulary_grows_for_the_image_token(tiny_config: RunConfig, parts: Path) -> None:
    config, processor = composed(tiny_config, parts, "tower", "untied")
    model = build_model(config.model, processor, seed=0, precision="fp32")
    assert processor.tokenizer.tokenize("word3 <image> word4") == ["word3", "<image>", "word4"]
    assert processor.image_token_id == model.config.image_token_id == NUM_WORDS
    assert model.lm_head.weight.shape == model.get_input_embeddings().weight.shape == (128, 16)
    assert model.config.text_config.vocab_size == 128  # 91 entries, in rows a tensor core wants
    assert processor.image_processor.image_mean == (0.1, 0.2, 0.3)
    again = build_model(config.model, processor, seed=0, precision="fp32")
    assert_same_weights(model.state_dict(), again.state_dict())


def test_a_declared_shape_that_the_weights_contradict_is_refused(
    tiny_config: RunConfig, parts: Path
) -> None:
    declared = "{model_type: llama, hidden_size: 24}"
    config, processor = composed(
        tiny_config, parts, "tower", "untied", f"model.language_model.config={declared}"
    )
    with pytest.raises(
        ConfigError, match=r"language_model.config.hidden_size=24: the weights .*untied have 16"
    ):
        build_model(config.model, processor, seed=0, precision="fp32")


def test_a_part_without_all_its_weights_is_refused(
    tiny_config: RunConfig, parts: Path, tmp_path: Path
) -> None:
    shutil.copytree(parts, tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "untied", lambda tensors: tensors.pop("lm_head.weight"))
    config, processor = composed(tiny_config, tmp_path, "tower", "untied")
    with pytest.raises(
        CheckpointError, match=r"model.language_model.weights=.*1 tensors are missing.*lm_head"
    ):
        build_model(config.model, processor, seed=0, precision="fp32")


def edit(folder: Path, change: Callable[[Tensors], Any]) -> None:
    """Change the tensors of saved weights."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module", params=["random", "untied", "tied"])
def published(
    request: pytest.FixtureRequest,
    tiny_config: RunConfig,
    parts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[LlavaForConditionalGeneration, Path]:
    """A model and where it was exported to."""
    config = small_config(tiny_config)
    processor = processor_of(config)
    if request.param != "random":
        config, processor = composed(tiny_config, parts, "clip", request.param)
    model = build_model(config.model, processor, seed=0, precision="fp32").eval()
    folder = tmp_path_factory.mktemp("export") / "export"
    write_export(locate(str(folder)), model, model.state_dict(), processor)
    write(locate(str(folder)), export_manifest())
    return model, folder


VLLM_ACTIVATIONS = {
    *("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu"),
    *("relu", "silu", "tanh", "sigmoid"),
}


def test_an_export_has_the_names_and_fields_of_published_checkpoints(
    published: tuple[LlavaForConditionalGeneration, Path],
) -> None:
    folder = published[1]
    tensors = load_file(folder / "model.safetensors")
    assert [name for name in tensors if not name.startswith(PUBLISHED_PREFIXES)] == []
    assert any(name.startswith("vision_tower.vision_model.encoder.layers.0.") for name in tensors)
    config, processor, images, generation = (
        json.loads((folder / name).read_text())
        for name in (
            "config.json",
            "processor_config.json",
            "preprocessor_config.json",
            "generation_config.json",
        )
    )
    vision, text = config["vision_config"], config["text_config"]
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert text["architectures"] == ["LlamaForCausalLM"]
    assert config["image_token_index"] < text["vocab_size"]
    assert config["projector_hidden_act"] in VLLM_ACTIVATIONS
    assert config["image_seq_length"] == (vision["image_size"] // vision["patch_size"]) ** 2
    assert processor["patch_size"] == vision["patch_size"]
    assert processor["vision_feature_select_strategy"] == config["vision_feature_select_strategy"]
    assert images["image_processor_type"] == "CLIPImageProcessor"
    assert images["size"] == {"shortest_edge": vision["image_size"]}
    assert set(images["crop_size"].values()) == {vision["image_size"]}
    loaded = AutoProcessor.from_pretrained(folder, backend="pil")
    assert loaded.tokenizer.convert_tokens_to_ids("<image>") == config["image_token_index"]
    assert generation["eos_token_id"] == loaded.tokenizer.eos_token_id
    assert generation["pad_token_id"] == loaded.tokenizer.pad_token_id
    assert (folder / "chat_template.jinja").exists()
    assert serving_note(locate(str(folder))) is None
    image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    assert image_processor.to_dict() == loaded.image_processor.to_dict()


def test_an_export_has_the_same_names_whatever_its_weights_were_loaded_from(
    published: tuple[LlavaForConditionalGeneration, Path], tmp_path: Path
) -> None:
    """Without the prefix, as transformers writes a tower that was not loaded within a LLaVA."""
    model, folder = published
    tensors = load_file(folder / "model.safetensors")
    shutil.copytree(folder, tmp_path / "bare")
    bare = {
        name.replace("vision_tower.vision_model.", "vision_tower."): w
        for name, w in tensors.items()
    }
    save_file(bare, tmp_path / "bare" / "model.safetensors", metadata={"format": "pt"})
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    for source in (folder, tmp_path / "bare"):
        again = load_model(source, "fp32", "sdpa")
        assert_same_weights(again.state_dict(), model.state_dict())
        place = locate(str(tmp_path / f"again-{source.name}"))
        write_export(place, again, again.state_dict(), processor)
        assert_same_weights(load_file(Path(place.path) / "model.safetensors"), tensors)


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        (
            ["model.projector=linear"],
            "vLLM serves its linear projector with: --hf-overrides "
            """'{"projector_hidden_act": "torch.nn.modules.Identity"}'""",
        ),
        (
            ["model.vision_tower.config.model_type=vit"],
            "vLLM cannot serve it: it knows no tower of the kind vit in a LLaVA",
        ),
    ],
    ids=["projector", "tower"],
)
def test_what_vllm_must_be_told_is_said(
    tiny_config: RunConfig, tmp_path: Path, overrides: list[str], note: str
) -> None:
    config = small_config(tiny_config, *overrides)
    processor = build_processor(config.model, iter(["words"]))
    model = build_model(config.model, processor, seed=0, precision="fp32")
    write_export(locate(str(tmp_path)), model, model.state_dict(), processor)
    assert serving_note(locate(str(tmp_path))) == note
    again = load_model(tmp_path, "fp32", "sdpa")
    assert_same_weights(again.state_dict(), model.state_dict())


@torch.no_grad()
def test_plain_transformers_loads_an_export(
    published: tuple[LlavaForConditionalGeneration, Path],
) -> None:
    model, folder = published
    theirs = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    image = torch.randint(0, 256, (3, 20, 16), dtype=torch.uint8)
    inputs = processor(text="USER: <image> word5 ASSISTANT:", images=image, return_tensors="pt")
    assert (inputs["input_ids"] == theirs.config.image_token_id).sum() == 4
    assert torch.equal(theirs(**inputs).logits, model(**inputs).logits)
    assert theirs.generation_config.eos_token_id == processor.tokenizer.eos_token_id


def test_an_export_holds_what_its_manifest_tells(
    published: tuple[LlavaForConditionalGeneration, Path],
) -> None:
    model, folder = published
    assert find(ExportManifest, locate(str(folder))) == export_manifest()
    loaded = load_model(fetch_export(locate(str(folder))), "fp32", "sdpa")
    assert_same_weights(loaded.state_dict(), model.state_dict())


PROJECTION = "multi_modal_projector.linear_1.weight"


def shrink(tensors: Tensors) -> None:
    name = next(name for name in tensors if name.endswith(PROJECTION))
    tensors[name] = tensors[name][:3].contiguous()


def drop(tensors: Tensors) -> None:
    del tensors[next(name for name in tensors if name.endswith(PROJECTION))]


@pytest.mark.parametrize("change", [drop, shrink])
def test_weights_that_are_not_whole_are_refused(
    published: tuple[LlavaForConditionalGeneration, Path], tmp_path: Path, change: Any
) -> None:
    shutil.copytree(published[1], tmp_path, dirs_exist_ok=True)
    edit(tmp_path, change)
    with pytest.raises(
        CheckpointError, match=rf"1 tensors are missing or of another shape: .*{PROJECTION}"
    ):
        load_model(tmp_path, "fp32", "sdpa")


def test_weights_that_are_cut_off_are_refused(
    published: tuple[LlavaForConditionalGeneration, Path], tmp_path: Path
) -> None:
    shutil.copytree(published[1], tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"weights=.*cannot be loaded: .*incomplete"):
        load_model(tmp_path, "fp32", "sdpa")


def test_a_model_of_another_kind_is_refused(parts: Path) -> None:
    with pytest.raises(CheckpointError, match=r"its model_type is llama, not llava"):
        load_model(parts / "untied", "fp32", "sdpa")


def test_an_export_that_was_never_finished_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    place = locate(str(tmp_path))
    assert find(ExportManifest, place) is None
    with pytest.raises(CheckpointError, match=r"no export there \(manifest.json is missing\)"):
        fetch_export(place)


@pytest.mark.parametrize("inside", ["export", "stages/align/export"])
def test_the_folder_of_a_stage_or_a_run_is_told_apart_from_its_export(
    inside: str, published: tuple[LlavaForConditionalGeneration, Path], tmp_path: Path
) -> None:
    place = locate(str(tmp_path))
    (place / inside).upload(published[1])
    with pytest.raises(CheckpointError, match=rf"^{place}: is no export; name one: .*/{inside}$"):
        fetch_export(place)
    assert fetch_export(place / inside) == tmp_path / inside


def test_copying_an_export_checks_it_and_spares_what_is_there(
    published: tuple[LlavaForConditionalGeneration, Path], tmp_path: Path
) -> None:
    source, target = locate(str(published[1])), locate(str(tmp_path / "copy"))
    copy_export(source, target)
    names = {path.name for path in published[1].iterdir()}
    assert set(target.children()) == names
    assert MANIFEST in names
    with pytest.raises(CheckpointError, match=r"copy: is not empty; name a new folder"):
        copy_export(source, target)


def test_a_copy_that_fails_can_be_started_again(
    published: tuple[LlavaForConditionalGeneration, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target = locate(str(published[1])), locate(str(tmp_path / "copy"))

    def full(*_: object) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr(Location, "write_bytes", full)  # of the manifest, which comes last
    with pytest.raises(StorageError, match="no space left"):
        copy_export(source, target)
    assert not target.exists()
    monkeypatch.undo()
    copy_export(source, target)
    assert MANIFEST in target.children()
