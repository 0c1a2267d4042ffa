"""Generate answers to turns and images, with the template and pixels of training.

Evaluation and every other caller use this class, so the same question gets the same answer
everywhere.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from llavamed.errors import ConfigError, SampleError
from llavamed.processor.build import image_settings, num_image_tokens
from llavamed.processor.encode import Template, encode_prompt, stop_strings
from llavamed.processor.images import Pixels, normalize_pixels
from llavamed.processor.own_template import OwnTemplate
from llavamed.processor.token_labels import special_token_pattern
from llavamed.processor.turns import Turn


@dataclass(frozen=True)
class Prompt:
    """A dialogue to be answered."""

    turns: Sequence[Turn]
    """The turns of the dialogue, of which the last is the user's."""
    images: Sequence[Pixels]
    """uint8 arrays of shape [size, size, 3], in the order of their placeholders."""


class Generator:
    """Answers prompts with one model by greedy decoding."""

    def __init__(
        self, model: LlavaForConditionalGeneration, processor: LlavaProcessor, template: Template
    ) -> None:
        self._model, self._processor, self._template = model.eval(), processor, template
        self._images = image_settings(processor)
        self._num_image_tokens = num_image_tokens(processor)
        set_generation_tokens(model, processor)

    @torch.inference_mode()
    def answer(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, blank_images: bool = False
    ) -> list[str]:
        """Answer prompts in one batch.

        Args:
            prompts: The prompts to answer.
            max_new_tokens: The most tokens of an answer.
            blank_images: Whether to replace all images by images of the mean colour.

        Returns:
            The answers, without surrounding white space and without the text that ends them.
        """
        tokenizer, device = self._processor.tokenizer, self._model.device
        encoded = [self._encode(prompt) for prompt in prompts]
        length = max(map(len, encoded))
        padding = [length - len(ids) for ids in encoded]
        ids = [[tokenizer.pad_token_id] * n + own for n, own in zip(padding, encoded, strict=True)]
        mask = [[0] * n + [1] * (length - n) for n in padding]
        images = [image for prompt in prompts for image in prompt.images]
        inputs = {
            "input_ids": torch.tensor(ids, device=device),
            "attention_mask": torch.tensor(mask, device=device),
        }
        if images:  # `generate` fails on pixel_values=None
            pixels = torch.from_numpy(normalize_pixels(images, self._images))
            pixels = pixels.to(device, self._model.dtype)
            inputs["pixel_values"] = pixels.zero_() if blank_images else pixels
        stops = stop_strings(self._template)
        generated = self._model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            stop_strings=list(stops) or None,
            tokenizer=tokenizer,
        )
        texts = tokenizer.batch_decode(generated[:, length:], skip_special_tokens=True)
        return [_cut(text, stops) for text in texts]

    def _encode(self, prompt: Prompt) -> list[int]:
        return encode_prompt(
            prompt.turns,
            template=self._template,
            tokenizer=self._processor.tokenizer,
            num_image_tokens=self._num_image_tokens,
        )


def set_generation_tokens(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Set the tokens that end an answer in the generation config, which every engine reads."""
    tokenizer, config = processor.tokenizer, model.generation_config
    ends = end_token_ids(processor)
    config.eos_token_id = ends if len(ends) > 1 else next(iter(ends), None)
    config.pad_token_id = tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id


def end_token_ids(processor: LlavaProcessor) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's end token, and that of the template.

    A chat template may end a turn with another special token than the tokenizer's end token. A
    model that was trained with the template ends its answers with that token.
    """
    tokenizer, words = processor.tokenizer, "answer"
    ends = [tokenizer.eos_token_id]
    turns = [Turn("user", "question"), Turn("assistant", words)]
    # Without a template, or with one that refuses this dialogue, only the tokenizer's token ends.
    with suppress(SampleError, ConfigError):
        text = OwnTemplate(tokenizer).label(turns)
        last = text.words.rindex(words) + len(words)
        trained = "".join(
            letter
            for letter, is_trained in zip(text.words[last:], text.trained[last:], strict=True)
            if is_trained
        )
        end = re.search(special_token_pattern(tokenizer), trained)
        ends += [tokenizer.convert_tokens_to_ids(end[0])] if end else []
    return [number for number in dict.fromkeys(ends) if number is not None]


def _cut(text: str, stops: tuple[str, ...]) -> str:
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text.strip()
