"""Tiny random models of classes of transformers that are not ours, in folders as published."""

from pathlib import Path

import torch
from transformers import (
    AddedToken,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
)

from llavamed.processor.turns import IMAGE_PLACEHOLDER
from tests.support.small_tokenizers import CHATML, PARTS, chatml


def save_llava_next(folder: Path, *, chat_template: bool = True) -> Path:
    """A LLaVA-NeXT, which cuts a picture into tiles: another Auto class and other pixels."""
    tokenizer = chatml()
    tokenizer.add_tokens(AddedToken(IMAGE_PLACEHOLDER, special=True))
    tokenizer.chat_template = None
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**sizes, num_hidden_layers=2, image_size=16, patch_size=8),
        text_config=LlamaConfig(
            **sizes,
            num_hidden_layers=2,
            num_key_value_heads=2,
            vocab_size=len(tokenizer),
            initializer_range=0.3,
        ),
        image_grid_pinpoints=[[16, 32], [32, 16]],
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER),
    )
    model = LlavaNextForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=[[16, 32], [32, 16]],
    )
    processor = LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHATML.replace("{{ message.content }}", PARTS) if chat_template else None,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
