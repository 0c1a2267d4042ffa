"""A language model and its tokenizer are taken from a GGUF file, and trained as any other."""

import json
import os
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llavamed.config.load import override_config
from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError
from llavamed.model.llava import build_model
from llavamed.processor.build import build_processor
from llavamed.processor.pretrained import part_config
from llavamed.processor.tokenizer import load_tokenizer
from llavamed.storage.location import locate
from tests.support.small_tokenizers import CHATML, chatml
from tests.support.training_setup import assert_same_weights, make_job, run_stage, small_config

HEADS, LAYERS = 2, 2


def interleaved(weight: torch.Tensor) -> torch.Tensor:
    """The order in which llama.cpp keeps the rows of queries and keys: real, imaginary, real ..."""
    rows = weight.shape[0]
    return weight.reshape(HEADS, 2, rows // HEADS // 2, -1).transpose(1, 2).reshape(rows, -1)


def write_gguf(file: Path, split: str | None = "gpt-2", **more: Any) -> LlamaForCausalLM:
    """Write a tiny Llama with a ChatML tokenizer, as llama.cpp's converter does.

    Args:
        file: The file.
        split: How it says that words are split.
        **more: Further settings, or tensors.
    """
    tokenizer = chatml()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(16)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(32)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(tokenizer))
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = {each["content"] for each in definition["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    if split is not None:
        writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in definition["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(CHATML)
    for name, weight in gguf_names(model).items():
        writer.add_tensor(name, weight.detach().contiguous().numpy())
    for name, value in more.items():
        if torch.is_tensor(value):
            writer.add_tensor(name, value.numpy())
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_float32(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def gguf_names(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    weights = model.model.state_dict()
    named = {
        "token_embd.weight": weights["embed_tokens.weight"],
        "output_norm.weight": weights["norm.weight"],
    }
    for number in range(LAYERS):
        for theirs, ours in {
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
            "attn_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
        }.items():
            weight = weights[f"layers.{number}.{ours}.weight"]
            weight = interleaved(weight) if theirs in ("attn_q", "attn_k") else weight
            named[f"blk.{number}.{theirs}.weight"] = weight
    return named


def with_file(config: RunConfig, source: str, *overrides: str) -> RunConfig:
    part = f"model.language_model={{weights: {source}}}"
    return small_config(config, part, "model.template=tokenizer", *overrides)


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_a_gguf_file_gives_weights_tokenizer_and_template(
    tiny_config: RunConfig, tmp_path: Path, s3_uri: str, where: str
) -> None:
    file = tmp_path / "small.F32.gguf"
    published = write_gguf(file)
    if where == "s3":
        (tmp_path / "large.Q8_0.gguf").write_bytes(b"another file, which nobody asks for")
        locate(f"{s3_uri}/gguf").upload(tmp_path)
    source = f"{s3_uri}/gguf/{file.name}" if where == "s3" else str(file)
    config = with_file(tiny_config, source)
    processor = build_processor(config.model, iter([]))
    tokenizer = chatml()
    text = "<|im_start|>user\nWhere is the lesion?<|im_end|>\n"
    assert processor.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert processor.tokenizer.eos_token == processor.tokenizer.pad_token == "<|im_end|>"
    assert processor.tokenizer.chat_template == CHATML
    model = build_model(config.model, processor, seed=0, precision="fp32")
    found = dict(model.model.language_model.state_dict())
    wanted = dict(published.model.state_dict())
    rows = wanted["embed_tokens.weight"].shape[0]
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    found["embed_tokens.weight"] = found["embed_tokens.weight"][:rows]
    assert_same_weights(found, wanted)


def test_a_model_from_a_gguf_file_trains_and_its_export_is_plain(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "small.gguf")
    place = f"data.directory={tmp_path}/datasets"
    config = with_file(tiny_config, str(tmp_path / "small.gguf"), place, "stages.align.max_steps=2")
    job = make_job(config)
    assert run_stage(job).logits_difference == 0.0
    exported: dict[str, Any] = json.loads((Path(job.export) / "config.json").read_text())
    assert "quantization_config" not in exported["text_config"]


@pytest.mark.parametrize(
    "more",
    [
        {"rope_freqs.weight": torch.tensor([1.0, 1.0, 4.0, 8.0])},
        {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0},
        {"llama.attention.sliding_window": 16.0},
        {"llama.logit_scale": 3.0},
        {"blk.0.attn_q_norm.weight": torch.ones(8)},
        {"blk.1.attn_q.bias": torch.ones(16)},
    ],
    ids=lambda more: next(iter(more)),
)
def test_a_gguf_file_that_is_not_read_whole_is_refused(
    tiny_config: RunConfig, tmp_path: Path, more: dict[str, Any]
) -> None:
    """Files of Llama 3.1, for example, hold their rotary frequencies as a tensor."""
    write_gguf(tmp_path / "whole.gguf", **{"llama.attention.key_length": 8.0})
    write_gguf(tmp_path / "more.gguf", **more)
    for name, is_whole in {"whole": True, "more": False}.items():
        part = with_file(tiny_config, str(tmp_path / f"{name}.gguf")).model.language_model
        assert part is not None
        if is_whole:
            part_config(part, "model.language_model")
            continue
        with pytest.raises(
            ConfigError,
            match=r"^model.language_model.weights=\S+/more.gguf: holds .*, which transf",
        ) as error:
            part_config(part, "model.language_model")
        for lost in more:
            assert lost.removeprefix("llama.") in str(error.value)


def test_the_config_of_a_gguf_file_is_read_once_until_the_file_changes(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "small.gguf"
    write_gguf(file)
    part = with_file(tiny_config, str(file)).model.language_model
    assert part is not None
    read, load = [], AutoConfig.from_pretrained

    def count(*names: Any, **options: Any) -> Any:
        read.append(names)
        return load(*names, **options)

    monkeypatch.setattr(AutoConfig, "from_pretrained", count)
    first = part_config(part, "model.language_model")
    first.hidden_size = 1  # no other caller sees this
    assert part_config(part, "model.language_model").hidden_size == 16
    assert len(read) == 1
    os.utime(file, ns=(0, 0))
    part_config(part, "model.language_model")
    assert len(read) == 2


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("gpt-2", ["ab", "\n", "\n", "12", " is", " 34"]),
        ("smollm", ["ab", "\n\n", "1", "2", " is", " ", "3", "4"]),
        ("llama-bpe", ["ab", "\n\n", "12", " is", " ", "34"]),
    ],
)
def test_words_are_split_as_a_gguf_file_says(tmp_path: Path, split: str, words: list[str]) -> None:
    write_gguf(tmp_path / "small.gguf", split)
    loaded = load_tokenizer(str(tmp_path / "small.gguf"), "model.language_model.weights")
    loaded.save_pretrained(tmp_path / "saved")
    for each in (loaded, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        found = each.backend_tokenizer.pre_tokenizer.pre_tokenize_str("ab\n\n12 is 34")
        spelled = [word.replace("Ġ", " ").replace("Ċ", "\n") for word, _ in found]
        assert spelled == words


@pytest.mark.parametrize("split", [None, "default", "a-way-to-come"])
def test_words_that_a_gguf_file_splits_in_an_unknown_way_need_a_tokenizer(
    tiny_config: RunConfig, tmp_path: Path, split: str | None
) -> None:
    write_gguf(tmp_path / "small.gguf", split)
    config = with_file(tiny_config, str(tmp_path / "small.gguf"))
    message = (
        rf"model.language_model.weights=.*small.gguf: tokenizer.ggml.pre={split}: names no way to "
        r".* name a folder with the model's tokenizer.json in model.tokenizer"
    )
    with pytest.raises(ConfigError, match=message):
        build_processor(config.model, iter([]))
    chatml().save_pretrained(tmp_path / "tokenizer")
    named = override_config(config, [f"model.tokenizer={tmp_path}/tokenizer"])
    assert build_processor(named.model, iter([])).tokenizer.eos_token == "<|im_end|>"


def test_a_gguf_file_that_is_not_there_is_refused(tiny_config: RunConfig, tmp_path: Path) -> None:
    config = with_file(tiny_config, str(tmp_path / "none.gguf"))
    with pytest.raises(ConfigError, match=r"language_model.weights=.*none.gguf: no such file"):
        build_processor(config.model, iter([]))


def test_a_gguf_file_needs_its_package(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llavamed.processor.pretrained.find_spec", lambda _: None)
    config = override_config(tiny_config, ["model.language_model={weights: a/b/small.gguf}"])
    with pytest.raises(ConfigError, match=r"needs the package gguf.*; install llavamed\[gguf\]"):
        build_processor(config.model, iter([]))
