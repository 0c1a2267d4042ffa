"""Generate answers to turns and images, with the template and pixels of training.

Evaluation and every other caller use this class, so the same question gets the same answer
everywhere.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from llavamed.errors import ConfigError, SampleError
from llavamed.model.continuation import Continuation, Sampling
from llavamed.model.llava import Llava
from llavamed.model.running_batch import EncodedPrompt, RunningBatch
from llavamed.processor.build import Processor, image_settings, tiling
from llavamed.processor.encode import encode_prompt
from llavamed.processor.image_files import Pixels
from llavamed.processor.images import model_inputs
from llavamed.processor.own_template import end_of_answers
from llavamed.processor.templates import Template, stop_strings
from llavamed.processor.turns import Turn


@dataclass(frozen=True)
class Prompt:
    """A dialogue to be answered."""

    turns: Sequence[Turn]
    """The turns of the dialogue, of which the last is the user's."""
    images: Sequence[Pixels]
    """uint8 arrays as `llavamed.processor.images.fit` returns them, in the order of their
    placeholders."""


class Generator:
    """Answers prompts with one model: a batch of them, one in parts, or as they come.

    Greedy decoding is the likeliest token at every place. What a `generation_config.json` adds for
    conversations, such as a penalty for repetition, is not applied.
    """

    def __init__(self, model: Llava, processor: Processor, template: Template) -> None:
        self._model, self._template = model.eval(), template
        self.tokenizer = processor.tokenizer
        self.images = image_settings(processor)
        """How an image becomes the pixels of a prompt."""
        self.tiling = tiling(processor)
        """How an image becomes tiles and tokens."""
        self._end_tokens, self._stop = end_token_ids(processor), stop_strings(template)
        set_generation_tokens(model, processor)

    @property
    def context_length(self) -> int:
        """Return the maximum number of tokens of a prompt and its answer."""
        return int(self._model.config.text_config.max_position_embeddings)

    def answer(self, prompts: Sequence[Prompt], *, max_new_tokens: int) -> list[str]:
        """Answer prompts in one batch, by greedy decoding.

        Args:
            max_new_tokens: Maximum number of tokens of an answer.

        Returns:
            The answers, without surrounding white space and without the text that ends them.
        """
        answers = [self.begin(Sampling(max_new_tokens)) for _ in prompts]
        encoded = [self.encode(prompt) for prompt in prompts]
        batch = self.running_batch()
        batch.join(encoded, [[answer] for answer in answers])
        while len(batch):
            batch.step()
        return [answer.text for answer in answers]

    def stream(self, prompt: EncodedPrompt, sampling: Sampling) -> Iterator[Continuation]:
        """Answer one prompt, and yield the answer after each of its tokens."""
        answer, batch = self.begin(sampling), self.running_batch()
        batch.join([prompt], [[answer]])
        yield answer
        while len(batch):
            batch.step()
            yield answer

    def running_batch(self) -> RunningBatch:
        """Return an empty batch, which prompts may join while others are answered."""
        return RunningBatch(self._model, self.tokenizer.pad_token_id)

    def begin(self, sampling: Sampling) -> Continuation:
        """Return an empty answer, which the tokens and the text of the template end."""
        return Continuation(sampling, self.tokenizer, end_tokens=self._end_tokens, stop=self._stop)

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Encode a prompt.

        Raises:
            SampleError: The template cannot render its turns, an image is a line, or there are
                other images than placeholders.
        """
        numbers = [self.tiling.num_tokens(each.shape[:2]) for each in prompt.images]
        input_ids = encode_prompt(
            prompt.turns,
            template=self._template,
            tokenizer=self.tokenizer,
            num_image_tokens=numbers,
        )
        pixels, sizes = model_inputs(prompt.images, self.images)
        return EncodedPrompt(
            input_ids, torch.from_numpy(pixels), torch.from_numpy(sizes), sum(numbers)
        )


def set_generation_tokens(model: Llava, processor: Processor) -> None:
    """Set the tokens that end an answer in the generation config, which every engine reads.

    A config that contradicts itself, such as Vicuna's with a temperature and no sampling, is
    replaced by one with these tokens alone, because transformers saves no such config.
    """
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        model.generation_config = GenerationConfig()
    tokenizer, config = processor.tokenizer, model.generation_config
    ends = end_token_ids(processor)
    config.eos_token_id = ends if len(ends) > 1 else next(iter(ends), None)
    config.pad_token_id = tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id


def end_token_ids(processor: Processor) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's end token, and that of the template.

    A chat template may end a turn with another special token than the tokenizer's end token. A
    model that was trained with the template ends its answers with that token.
    """
    tokenizer = processor.tokenizer
    ends = [tokenizer.eos_token_id]
    # Without a template, or with one that refuses this dialogue, only the tokenizer's token ends.
    with suppress(SampleError, ConfigError):
        end = end_of_answers(tokenizer)
        ends += [tokenizer.convert_tokens_to_ids(end)] if end else []
    return [number for number in dict.fromkeys(ends) if number is not None]
