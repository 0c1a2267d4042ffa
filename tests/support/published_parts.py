"""A tower and language models in folders as published, and the models that are made of them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from llavamed.config.run import RunConfig
from llavamed.processor.build import build_processor
from tests.support.training_setup import small_config

TINY = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION = CLIPVisionConfig(**TINY, image_size=16, patch_size=8)
NUM_WORDS = 90


def save_parts(folder: Path) -> Path:
    """A tower alone, a tower within a whole CLIP, and language models with a tokenizer."""
    torch.manual_seed(0)
    text = CLIPTextConfig(**TINY, vocab_size=50, bos_token_id=0, eos_token_id=1)
    whole = CLIPConfig(text_config=text.to_dict(), vision_config=VISION.to_dict(), projection_dim=8)
    CLIPVisionModel(VISION).save_pretrained(folder / "tower")
    CLIPModel(whole).save_pretrained(folder / "clip")
    for name in ("tower", "clip"):
        CLIPImageProcessorPil(image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder / name)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {
        f"word{number}": number for number in range(3, NUM_WORDS)
    }
    model = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    for name, tied in (("untied", False), ("tied", True)):
        config = LlamaConfig(**TINY, vocab_size=NUM_WORDS, tie_word_embeddings=tied)
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def composed(
    config: RunConfig, parts: Path, tower: str, language_model: str, *overrides: str
) -> tuple[RunConfig, LlavaProcessor]:
    changed = small_config(
        config,
        f"model.vision_tower={{weights: {parts / tower}}}",
        f"model.language_model={{weights: {parts / language_model}}}",
        *overrides,
    )
    return changed, build_processor(changed.model, iter([]))
