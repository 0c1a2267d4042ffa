"""Settings that come with published weights neither spoil an export nor change a model silently."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, LlamaForCausalLM

from llavamed.config.model import Model
from llavamed.config.run import RunConfig
from llavamed.errors import CheckpointError, ConfigError
from llavamed.model.export import write_export
from llavamed.model.generation import set_generation_tokens
from llavamed.model.llava import build_model, load_model
from llavamed.processor.build import build_processor, load_processor
from llavamed.processor.pretrained import part_config
from llavamed.processor.tokenizer import load_tokenizer
from llavamed.storage.location import locate
from tests.support.published_parts import composed, save_parts
from tests.support.small_models import save_llava_next
from tests.support.small_tokenizers import chatml

QUANTIZED = ("bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors", "mxfp4")
VICUNA = {"temperature": 0.9, "top_p": 0.6, "max_length": 4096}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def weights(parts: Path, tmp_path: Path) -> Path:
    """A language model of one's own to change, beside the tower."""
    copytree(parts / "tower", tmp_path / "tower")
    return copytree(parts / "untied", tmp_path / "untied")


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def built(config: RunConfig, weights: Path) -> Any:
    changed, processor = composed(config, weights.parent, "tower", weights.name)
    return build_model(changed.model, processor, seed=0, precision="fp32"), processor


@pytest.mark.parametrize("place", ["generation_config.json", "config.json"])
def test_an_export_is_written_whatever_its_weights_say_of_sampling(
    tiny_config: RunConfig, weights: Path, place: str
) -> None:
    change(weights / place, **VICUNA)
    model, processor = built(tiny_config, weights)
    target = locate(str(weights.parent / "export"))
    write_export(target, model, model.state_dict(), processor)
    found = load_model(target.path, "fp32", "sdpa").generation_config
    assert found.eos_token_id == processor.tokenizer.eos_token_id
    assert found.temperature in (None, 1.0)


flags = st.fixed_dictionaries(
    {},
    optional={
        "do_sample": st.booleans(),
        "temperature": st.sampled_from([0.2, 1.0]),
        "top_k": st.sampled_from([5, 50]),
        "num_beams": st.sampled_from([1, 3]),
        "early_stopping": st.booleans(),
        "length_penalty": st.sampled_from([0.5, 1.0]),
        "output_scores": st.booleans(),
        "repetition_penalty": st.just(1.1),
    },
)


@settings(
    max_examples=20,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(fields=flags)
def test_a_generation_config_can_be_saved_and_stays_if_it_could_be(
    tiny_config: RunConfig, parts: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    _, processor = composed(tiny_config, parts, "tower", "untied")
    model = LlamaForCausalLM.from_pretrained(parts / "untied")
    model.generation_config = before = GenerationConfig(**fields)
    set_generation_tokens(model, processor)
    model.generation_config.save_pretrained(tmp_path)
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    try:
        before.save_pretrained(tmp_path)
    except ValueError:
        return
    assert model.generation_config is before


def test_two_tables_that_a_config_calls_one_stay_two(tiny_config: RunConfig, weights: Path) -> None:
    """New rows, and the config of the export, would make them one."""
    change(weights / "config.json", tie_word_embeddings=True)
    published = load_file(weights / "model.safetensors")
    model, processor = built(tiny_config, weights)
    rows = len(published["lm_head.weight"])
    assert len(model.lm_head.weight) > rows
    assert torch.equal(model.lm_head.weight[:rows], published["lm_head.weight"])
    embeddings = model.get_input_embeddings().weight[:rows]
    assert torch.equal(embeddings, published["model.embed_tokens.weight"])
    target = locate(str(weights.parent / "export"))
    write_export(target, model, model.state_dict(), processor)
    found = json.loads(Path(target.path, "config.json").read_text())
    assert not found["tie_word_embeddings"]
    assert not found["text_config"]["tie_word_embeddings"]


@pytest.mark.parametrize("method", QUANTIZED)
def test_quantized_weights_are_refused(tiny_config: RunConfig, weights: Path, method: str) -> None:
    config, _ = composed(tiny_config, weights.parent, "tower", "untied")
    part = config.model.language_model
    assert part is not None
    part_config(part, "model.language_model")
    change(weights / "config.json", quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(
        ConfigError,
        match=rf"^model.language_model.weights=\S+/untied: the weights are quantized \(quant_method"
        rf"={method}\), and such weights are not trained .*; name the weights that they were made",
    ):
        part_config(part, "model.language_model")


def test_adapters_beside_weights_are_refused(tiny_config: RunConfig, weights: Path) -> None:
    """Transformers adds them to the model, whose other weights would then not train."""
    config, _ = composed(tiny_config, weights.parent, "tower", "untied")
    model = LlamaForCausalLM.from_pretrained(weights)
    get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(weights)
    part = config.model.language_model
    assert part is not None
    with pytest.raises(ConfigError, match=r"untied: holds adapters that are not merged \(adapter"):
        part_config(part, "model.language_model")


@pytest.mark.parametrize(
    "more",
    ["model.layers.0.self_attn.q_proj.bias", "model.layers.2.mlp.up_proj.weight", "lm_head.bias"],
)
def test_tensors_that_a_config_has_no_place_for_are_refused(
    tiny_config: RunConfig, weights: Path, more: str
) -> None:
    """Transformers would leave them out, and another model would be trained."""
    file = weights / "model.safetensors"
    tensors = load_file(file) | {
        "rotary_emb.inv_freq": torch.ones(8),
        "score.weight": torch.ones(2),
    }
    save_file(tensors, file, metadata={"format": "pt"})
    built(tiny_config, weights)  # they belong to no module of the model
    save_file(tensors | {more: torch.ones(16)}, file, metadata={"format": "pt"})
    name = more.replace(".0.", ".N.").replace(".2.", ".N.")
    message = rf"untied: 1 tensors have no place in the model of its config.json: {name}; correct"
    with pytest.raises(CheckpointError, match=message):
        built(tiny_config, weights)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin"]
)
def test_pointers_of_git_lfs_are_named(tiny_config: RunConfig, weights: Path, name: str) -> None:
    if name == "pytorch_model.bin":
        (weights / "model.safetensors").unlink()
    (weights / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{0:064}\n")
    with pytest.raises(
        (CheckpointError, ConfigError),
        match=rf"untied: holds pointers of Git LFS in place of {name}",
    ):
        built(tiny_config, weights)


@pytest.mark.parametrize("other", [None, "{{ 'no place for an image' }}"])
def test_the_template_of_a_whole_llava_is_that_of_its_processor(
    tmp_path: Path, other: str | None
) -> None:
    """Older files hold it apart, and the tokenizer's is of the language model alone, or missing."""
    folder = save_llava_next(tmp_path / "llava")
    own = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": own}))
    if other is not None:
        change(folder / "tokenizer_config.json", chat_template=other)
    pinpoints = [[16, 32], [32, 16]]
    model = Model(weights=str(folder), template="tokenizer", image_grid_pinpoints=pinpoints)
    build_processor(model, iter([])).save_pretrained(tmp_path / "saved")
    for processor in (build_processor(model, iter([])), load_processor(tmp_path / "saved")):
        assert processor.chat_template == processor.tokenizer.chat_template == own


@pytest.mark.parametrize(("kind", "is_mended"), [("mistral", True), ("qwen2", False)])
def test_words_are_split_as_mistral_splits_them(tmp_path: Path, kind: str, is_mended: bool) -> None:
    """The published pattern of its large vocabularies takes "pH" and "mL" for one word each."""
    tokenizer = chatml()
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    definition["model"]["vocab"] |= {f"spare {each}": 1000 + each for each in range(100_000)}
    splits = {"type": "Split", "behavior": "Isolated", "invert": False}
    splits["pattern"] = {"Regex": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    parts = [splits, plain | {"use_regex": False}]
    definition["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    config = {"model_type": kind, "transformers_version": "4.49.0"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(str(tmp_path), "tokenizer")
    loaded.save_pretrained(tmp_path / "saved")
    for each in (loaded, load_tokenizer(str(tmp_path / "saved"), "tokenizer")):
        words = [word for word, _ in each.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a pH")]
        assert words == (["a", "Ġp", "H"] if is_mended else ["a", "ĠpH"])


def test_a_text_is_spelled_in_one_way(tmp_path: Path) -> None:
    tokenizer = chatml()
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    definition["model"]["dropout"] = 0.5
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    loaded = load_tokenizer(str(tmp_path), "tokenizer")
    text = "Where is the lesion? In the left lower lobe. " * 20
    for _ in range(3):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
