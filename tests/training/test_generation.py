"""Prompts become answers, and answers end where the template of training ends them."""

from typing import Any

import numpy as np
import pytest
from transformers import LlavaForConditionalGeneration

from llavamed.config.run import RunConfig
from llavamed.model.generation import Generator, Prompt, end_token_ids
from llavamed.model.llava import build_model
from llavamed.processor.templates import TEMPLATES, chat_template, get_template
from llavamed.processor.turns import Turn
from tests.support.small_tokenizers import CHATML, chatml, llama_like
from tests.support.training_setup import processor_of, small_config

PARTS = CHATML.replace(
    "{{ message.content }}", "{%- for part in message.content -%}{{ part.text }}{%- endfor -%}"
)


class Holder:
    """A processor, of which only the tokenizer is asked for."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
def test_our_templates_end_answers_with_the_tokenizer_s_own_token(name: str) -> None:
    tokenizer = llama_like()
    tokenizer.chat_template = chat_template(get_template(name))
    assert end_token_ids(Holder(tokenizer)) == [tokenizer.eos_token_id]


@pytest.mark.parametrize("template", [CHATML, PARTS], ids=["text", "parts"])
def test_a_template_s_own_end_of_turn_ends_an_answer_too(template: str) -> None:
    tokenizer = chatml()
    tokenizer.chat_template = template
    end = tokenizer.eos_token_id
    assert end_token_ids(Holder(tokenizer)) == [end]
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    assert end_token_ids(Holder(tokenizer)) == [tokenizer.eos_token_id, end]


@pytest.fixture(scope="module")
def generator(tiny_config: RunConfig) -> tuple[LlavaForConditionalGeneration, Generator]:
    config = small_config(tiny_config, "model.language_model.config.initializer_range=0.3")
    processor = processor_of(small_config(tiny_config))
    model = build_model(config.model, processor, seed=0, precision="fp32")
    return model, Generator(model, processor, get_template(config.model.template))


def prompt(question: str, *shades: int) -> Prompt:
    text = "<image>\n" * len(shades) + question
    images = [np.full((16, 16, 3), shade, dtype=np.uint8) for shade in shades]
    return Prompt([Turn("user", text)], images)


def test_an_answer_does_not_depend_on_what_is_answered_with_it(generator: Any) -> None:
    _, ask = generator
    prompts = [prompt("Where?", 10), prompt("What is shown in these?", 50, 200), prompt("Why?")]
    single = [ask.answer([one], max_new_tokens=8)[0] for one in prompts]
    assert ask.answer(prompts, max_new_tokens=8) == single
    assert len(set(single)) == 3
